"""Oral squamous cell carcinoma with a pathologist's labels (Arora et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from sagefm._docs import fill_docstring
from sagefm._io.download import notice
from sagefm._settings import logger
from sagefm._utils import shorten
from sagefm.datasets._fetch import GEO, describe, folder_of, geo_section, read_csv

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

# The sections in the order of GEO's accessions.
SAMPLES = {f"s{i}": f"GSM{6339630 + i}" for i in range(1, 13)}
FIGSHARE = "https://doi.org/10.6084/m9.figshare.20304456.v1"
# The column of the authors' Seurat objects, and the names under which it is commonly written out.
LABELS = ("pathologist_anno.x", "pathologist_anno", "pathologist_annotation", "pathologist")
NOTICE = (
    "The OSCC sections are of Arora et al. 2023 (Nat Commun 14:5029), GEO GSE208253. GEO states no licence of its own: "
    "cite the paper, and see there for what is allowed."
)
CLASSES = {
    "tumor": ("SCC", "Keratin"),
    "stroma": ("Lymphocyte Negative Stroma", "Lymphocyte Positive Stroma", "Glandular Stroma"),
    "muscle": ("Muscle", "Lymphocyte Positive Muscles"),
}
# Labels of none of these classes: artifacts and rare tissues.
LEFT_OUT = ("Artifact", "Fold", "Cautery", "Edge Effects", "Non-cancerous Mucosa", "Artery/Vein")
# Of the four sections that the paper holds out.
TEST_SPOTS = {"tumor": 5_148, "stroma": 2_347, "muscle": 249}


@fill_docstring
def oscc(
    sample: str,
    annotations: str | Path | pd.DataFrame | None = None,
    *,
    folder: str | Path | None = None,
    sha256: Mapping[str, str] | None = None,
    base_url: str = GEO,
) -> AnnData:
    """Fetch one of the twelve oral carcinoma sections of Arora et al. 2023 (GSE208253), and read it.

    Parameters
    ----------
    sample
        ``"s1"`` to ``"s12"``.
    annotations
        The pathologist's labels, a table or the path of a CSV file with barcodes in its first column (or index) and
        labels in ``pathologist_anno.x``. GEO doesn't have them. They are in the authors' Seurat objects
        (doi 10.6084/m9.figshare.20304456.v1, ``sample_1.Robj`` for ``"s1"``), from which R writes them:
        ``load("sample_1.Robj"); write.csv(sample_1@meta.data["pathologist_anno.x"], "s1.csv")``.
    folder
        Where files go; by default ``oscc`` in ``sg.settings.cache_dir``. What lies there isn't fetched again.
    {sha256}
    {base_url}

    Returns
    -------
    The section: raw counts, ``obsm["spatial"]`` in pixels, ``obs["array_row"]``, ``obs["array_col"]``,
    ``obs["sample"]``, ``obs["donor"]``, ``obs["tissue"]``, and with ``annotations`` ``obs["pathologist"]``, missing
    where a spot has no label.

    Raises
    ------
    ValueError
        If the sample is unknown, a file isn't what it should be, or no label is for one of its spots.
    KeyError
        If the annotations lack the column.
    RuntimeError
        If it can't be downloaded.

    Notes
    -----
    Names of the files are as code that reads GSE208253 has them; GEO's address is its general rule. Neither is checked
    against the real files. Which sections are of one patient couldn't be established, so each is its own donor here:
    see the paper before you split by donor. The Seurat objects end barcodes in the sample's number (``-2``) where GEO's
    end in ``-1``; they are matched without it. Others report that under half of the spots of ``"s3"`` find their label.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.oscc("s1", "s1.csv")  # doctest: +SKIP
    >>> adata.obs["class"] = adata.obs["pathologist"].map(sg.datasets.oscc_classes())  # doctest: +SKIP
    >>> sg.datasets.oscc("s13")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: unknown sample 's13': give one of 's1', 's2', ...
    """
    labels = None if annotations is None else _labels(annotations)
    notice(NOTICE)
    adata, name = geo_section(sample, SAMPLES, folder=folder_of("oscc", folder), sha256=sha256, base_url=base_url)
    adata = describe(adata, sample=name, donor=name, tissue="oral cavity")
    if labels is not None:
        _annotate(adata, labels, name)
    return adata


def oscc_classes() -> dict[str, str]:
    """Return the paper's three classes for the pathologist's labels of :func:`oscc`: tumor, stroma, muscle.

    Returns
    -------
    The class of each label. Artifacts (``Artifact``, ``Fold``, ``Cautery``, ``Edge Effects``) and rare tissues
    (``Non-cancerous Mucosa``, ``Artery/Vein``) have none, so that ``.map`` leaves their spots out.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Methods, downstream task 1. The paper's class counts confirm the grouping: its 15,921
    tumor spots in the training and test sets are 15,395 of ``SCC`` and 526 of ``Keratin``.

    Examples
    --------
    >>> import sagefm as sg
    >>> classes = sg.datasets.oscc_classes()
    >>> classes["SCC"], classes["Lymphocyte Positive Stroma"], classes.get("Fold")
    ('tumor', 'stroma', None)
    """
    return {label: name for name, labels in CLASSES.items() for label in labels}


def oscc_splits(counts: pd.DataFrame, n_test: int = 4) -> list[list[str]]:
    """Find the held-out sections of the paper: those whose spots by class add up to its test set.

    The paper doesn't name its four test sections, but counts their spots: 5,148 of tumor, 2,347 of stroma, 249 of
    muscle. There are 495 choices of four from twelve.

    Parameters
    ----------
    counts
        Spots by section (rows) and class (columns ``tumor``, ``stroma`` and ``muscle``, as :func:`oscc_classes` names
        them).
    n_test
        Number of sections in the test set.

    Returns
    -------
    Every choice that fits. One alone is the paper's; none says that the labels differ from the paper's.

    Raises
    ------
    KeyError
        If there is no column of a class.
    ValueError
        If a section is there twice.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Methods, downstream task 1. Not tried on the real labels.

    Examples
    --------
    >>> import pandas as pd
    >>> import sagefm as sg
    >>> spots = {"tumor": [5_000, 148, 9], "stroma": [2_000, 347, 9], "muscle": [0, 249, 9]}
    >>> sg.datasets.oscc_splits(pd.DataFrame(spots, index=["s1", "s2", "s3"]), n_test=2)
    [['s1', 's2']]
    """
    if missing := [name for name in TEST_SPOTS if name not in counts]:
        raise KeyError(f"counts has no column {missing[0]!r}; it has {shorten(counts.columns)}.")
    if counts.index.has_duplicates:
        raise ValueError(f"counts has {counts.index[counts.index.duplicated()][0]!r} more than once.")
    table = counts[list(TEST_SPOTS)].to_numpy()
    target = list(TEST_SPOTS.values())
    choices = combinations(range(len(table)), n_test)
    return [[str(counts.index[i]) for i in rows] for rows in choices if (table[list(rows)].sum(axis=0) == target).all()]


def _labels(annotations: str | Path | pd.DataFrame) -> pd.Series:
    """Read the labels, by barcode."""
    import pandas as pd

    source = "annotations" if isinstance(annotations, pd.DataFrame) else annotations
    if isinstance(annotations, pd.DataFrame):
        table = annotations.set_index("barcode") if "barcode" in annotations else annotations
    else:
        table = read_csv(annotations, "annotations", f"; the labels come from {FIGSHARE}", index_col=0)
    column = next((name for name in LABELS if name in table), None)
    if column is None:
        raise KeyError(
            f"{source} has no column {LABELS[0]!r} (or {shorten(LABELS[1:])}), only {shorten(table.columns)}."
        )
    return table[column].dropna()


def _annotate(adata: AnnData, labels: pd.Series, sample: str) -> None:
    """Write the labels into ``obs``; barcodes match without the number that ends them."""
    import pandas as pd

    labels = labels.set_axis(labels.index.astype(str).str.replace(r"-\d+$", "", regex=True))
    if repeated := labels.index[labels.index.duplicated()].to_list():
        raise ValueError(f"{shorten(repeated, 3)} are labelled more than once: pass the labels of {sample!r} alone.")
    barcodes = adata.obs_names.str.replace(r"-\d+$", "", regex=True)
    found = labels.reindex(barcodes)
    n_found = int(found.notna().sum())
    if not n_found:
        raise ValueError(
            f"none of {len(labels)} labels is for a spot of {sample!r}: labels have barcodes such as "
            f"{shorten(labels.index, 1)}, spots {shorten(barcodes, 1)}. Are they another sample's?"
        )
    adata.obs["pathologist"] = pd.Categorical(found)
    report = logger.warning if n_found < adata.n_obs / 2 else logger.info
    report("%d of %d spots of %s have a pathologist's label.", n_found, adata.n_obs, sample)
