"""HEST-1k, that the published model was trained on: which samples, and each of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sagefm import _keys
from sagefm._docs import fill_docstring
from sagefm._io.download import notice
from sagefm._settings import logger
from sagefm._utils import shorten
from sagefm.datasets._fetch import UNREADABLE, are_counts, describe, fetch, folder_of, read_csv, unreadable

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

PAGE = "https://huggingface.co/datasets/MahmoodLab/hest"
# The table of version 1.1.0, the last one before the paper, as its authors' repository has it: open, and pinned.
METADATA_URL = "https://raw.githubusercontent.com/mahmoodlab/HEST/56b242670f4bd27e30fd2438a2aafc414cae1460/assets"
METADATA = "HEST_v1_1_0.csv"
NEEDED = ("id", "dataset_title", "patient", "organ", "species", "st_technology", "nb_genes")
NOTICE = (
    "HEST-1k (Jaume et al. 2024) is licensed CC BY-NC-SA 4.0: no commercial use, and what is made of it is shared "
    f"alike. Its files are sent to those who accepted the terms at {PAGE}."
)


@fill_docstring
def hest1k_samples(
    metadata: str | Path | pd.DataFrame | None = None,
    *,
    species: str | None = "Homo sapiens",
    technology: str | None = "Visium",
    min_genes: int = 10_000,
    folder: str | Path | None = None,
    sha256: Mapping[str, str] | None = None,
    base_url: str = METADATA_URL,
) -> pd.DataFrame:
    """List the samples of HEST-1k that the paper's criteria leave: human, Visium, more than 10,000 genes.

    Parameters
    ----------
    metadata
        Table of HEST-1k, or the path of its CSV file. By default that of version 1.1.0 is fetched, which needs no
        token. A newer one lies beside the data, as ``HEST_v1_3_0.csv``.
    species, technology
        What ``species`` and ``st_technology`` have to be, exactly (``"Visium HD"`` and ``"Spatial Transcriptomics"``
        are others). None takes all.
    min_genes
        ``nb_genes`` has to be above it.
    folder
        Where the file goes; by default ``hest1k`` in ``sg.settings.cache_dir``.
    {sha256}
    {base_url}

    Returns
    -------
    The rows of the table that are left, with all its columns, indexed by ``id``, and a column ``donor``: study and
    patient. Where the table names no patient, a whole study counts as one donor, so that no split tears one apart.

    Raises
    ------
    KeyError
        If the table lacks a column that is needed.
    ValueError
        If the file is no such table, or an id is there twice.
    RuntimeError
        If it can't be downloaded.

    Notes
    -----
    The criteria are the paper's (arXiv 2601.15504), and they leave its 416 samples of version 1.1.0. These have 981,074
    spots under tissue by the table, and 981,797 by the paper. The table gives several patients of one study the same
    name (colorectal P1, P2 and P5 are all ``Patient 1``): such donors are too coarse, never too fine.

    Examples
    --------
    >>> import pandas as pd
    >>> import sagefm as sg
    >>> table = pd.DataFrame(
    ...     {{
    ...         "id": ["TENX1", "TENX2", "NCBI3"],
    ...         "dataset_title": ["A", "A", "B"],
    ...         "patient": ["Patient 1", "Patient 2", None],
    ...         "organ": ["Breast", "Breast", "Brain"],
    ...         "species": ["Homo sapiens", "Homo sapiens", "Mus musculus"],
    ...         "st_technology": ["Visium", "Xenium", "Visium"],
    ...         "nb_genes": [18085, 541, 32285],
    ...     }}
    ... )
    >>> sg.datasets.hest1k_samples(table)["donor"].to_dict()
    {{'TENX1': 'A: Patient 1'}}
    >>> list(sg.datasets.hest1k_samples(table, species=None, technology=None, min_genes=0).index)
    ['TENX1', 'TENX2', 'NCBI3']
    """
    table = _table(metadata, folder_of("hest1k", folder), sha256, base_url)
    keep = table["nb_genes"] > min_genes
    for column, value in (("species", species), ("st_technology", technology)):
        if value is not None:
            keep &= table[column] == value
    logger.info("%d of %d samples of HEST-1k meet the criteria.", keep.sum(), len(table))
    return table[keep]


@fill_docstring
def hest1k(
    sample: str,
    metadata: str | Path | pd.DataFrame | None = None,
    *,
    token: str | None = None,
    folder: str | Path | None = None,
    sha256: Mapping[str, str] | None = None,
    base_url: str = f"{PAGE}/resolve/main",
) -> AnnData:
    """Fetch one sample of HEST-1k, and read it.

    Parameters
    ----------
    sample
        Its id, as :func:`hest1k_samples` lists them.
    metadata
        Table of HEST-1k, or the path of its CSV file; by default fetched as by :func:`hest1k_samples`.
    token
        Of a HuggingFace account that accepted the terms; ``$HF_TOKEN`` by default. It is never logged or stored.
    folder
        Where files go, ``st/<sample>.h5ad`` being this one; by default ``hest1k`` in ``sg.settings.cache_dir``. A
        folder that HEST's own tools filled serves as it is. What lies there isn't fetched again.
    {sha256}
    {base_url}

    Returns
    -------
    The section: raw counts, ``obsm["spatial"]`` in pixels of its image, ``obs["sample"]``, ``obs["donor"]`` (see
    :func:`hest1k_samples`) and ``obs["tissue"]`` (the organ).

    Raises
    ------
    KeyError
        If there is no such sample, or the table lacks a column that is needed.
    ValueError
        If the file isn't a section with counts and coordinates.
    RuntimeError
        If it can't be downloaded; without leave, the message says where it is given.

    Notes
    -----
    Address and layout follow HEST's documentation and code that reads it; this isn't checked against the real files.
    Gene names stay as each file has them, most of them symbols; :func:`sagefm.pp.align_genes` reads Ensembl ids too.

    Examples
    --------
    A folder that has the sample already needs neither a token nor a network:

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import pandas as pd
    >>> import sagefm as sg
    >>> columns = ["id", "dataset_title", "patient", "organ", "species", "st_technology", "nb_genes"]
    >>> table = pd.DataFrame([["TENX1", "A", "Patient 1", "Breast", "Homo sapiens", "Visium", 18085]], columns=columns)
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "st").mkdir()
    ...     sg.datasets.simulated_visium(8, 8, n_genes=200).write_h5ad(Path(folder, "st", "TENX1.h5ad"))
    ...     adata = sg.datasets.hest1k("TENX1", table, folder=folder)
    >>> adata.obs[["sample", "donor", "tissue"]].iloc[0].to_list()
    ['TENX1', 'A: Patient 1', 'Breast']
    """
    import anndata as ad

    at = folder_of("hest1k", folder)
    table = _table(metadata, at, sha256, METADATA_URL)
    if sample not in table.index:
        raise KeyError(f"no sample {sample!r} in HEST-1k's table; sg.datasets.hest1k_samples() lists {len(table)}.")
    notice(NOTICE)
    path = fetch(
        base_url,
        at,
        f"st/{sample}.h5ad",
        sha256,
        token=token or os.environ.get("HF_TOKEN"),
        refused=f"accept the terms at {PAGE}, then pass token=... of that account, or set HF_TOKEN",
    )
    try:
        adata = ad.read_h5ad(path)
    except UNREADABLE as error:
        raise unreadable(path, "an h5ad file", error) from error
    if _keys.SPATIAL not in adata.obsm:
        raise unreadable(path, "a section of HEST-1k", f"no obsm[{_keys.SPATIAL!r}], only {sorted(adata.obsm)}")
    if not are_counts(adata):
        raise unreadable(path, "a section of HEST-1k", "X holds other values than counts")
    row = table.loc[sample]
    return describe(adata, sample=sample, donor=str(row["donor"]), tissue=str(row["organ"]))


def _table(
    metadata: str | Path | pd.DataFrame | None, folder: Path, sha256: Mapping[str, str] | None, base_url: str
) -> pd.DataFrame:
    """Read and check the table, indexed by id, with donors."""
    import pandas as pd

    if isinstance(metadata, pd.DataFrame):
        table = metadata.copy()
        if table.index.name == "id" and "id" not in table:
            table = table.reset_index()
    else:
        if metadata is None:
            notice(NOTICE)
            metadata = fetch(base_url, folder, METADATA, sha256)
        table = read_csv(metadata, "metadata table")
    source = "the metadata" if isinstance(metadata, pd.DataFrame) else metadata
    if missing := [column for column in NEEDED if column not in table]:
        raise KeyError(
            f"{source} has no column {shorten(missing, 9)}, only {shorten(table.columns, 9)}. HEST-1k's table has "
            f"them; it is HEST_v*.csv at {PAGE}."
        )
    if (twice := table["id"][table["id"].duplicated()]).any():
        raise ValueError(f"{source} has {shorten(twice)} more than once; drop all but one.")
    table["nb_genes"] = pd.to_numeric(table["nb_genes"], errors="coerce")  # what isn't a number meets no criterion
    study, patient = table["dataset_title"].fillna("unknown").astype(str), table["patient"]
    table["donor"] = study.where(patient.isna(), study + ": " + patient.astype(str))
    return table.set_index("id")
