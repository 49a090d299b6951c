"""Sections of any kind into a training corpus."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from sagefm import _keys, models, pp
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._io.files import atomic
from sagefm._settings import ROWS_AT_A_TIME, logger
from sagefm._slides import find_sections, section_name, split_libraries
from sagefm._types import Ints
from sagefm._utils import check_whole, progress
from sagefm.models._vocabulary import Vocabulary, hest1k, to_header
from sagefm.pp._counts import Counts
from sagefm.pp._genes import MIN_COVERAGE, match_genes
from sagefm.pp._graph import find_coordinates
from sagefm.read._section import read_section
from sagefm.train._corpus import ATTRIBUTE, FORMAT, Corpus
from sagefm.train._similar import find_steps
from sagefm.train._split import assign, check_fractions

if TYPE_CHECKING:
    from anndata import AnnData

    from sagefm.models import Model

# Columns of obs that the table of sections keeps where they hold one value a section.
KEPT = ("donor", "sample", "tissue", "platform")


@fill_docstring
def prepare_corpus(
    sections: Any,
    path: str | Path,
    *,
    split: str | Mapping[str, str] | pd.DataFrame | Path = "random",
    split_by: str = "donor",
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    rng: int = 0,
    model: str | Path | Model | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    gene_symbols: str | None = None,
    min_coverage: float = MIN_COVERAGE,
    similar: bool = True,
    table_key: str = "table",
    overwrite: bool = False,
) -> Corpus:
    """Write sections as a training corpus: raw counts in the vocabulary's order, graphs, and the split.

    One section is in memory at a time. Counts are checked to be raw, genes are matched as
    :func:`sagefm.pp.align_genes` does and neighbors found as :func:`sagefm.pp.neighborhood_graph` does.

    Parameters
    ----------
    sections
        A folder with ``.h5ad`` and ``.zarr`` files (AnnData or SpatialData), or any number of paths, ``AnnData`` and
        ``SpatialData`` objects. A mapping gives them names; otherwise a file is called by its name.
    path
        Folder to write, such as ``corpus.zarr``.
    split
        Which group goes where: ``"random"`` shares the groups out by ``fractions``; ``"paper"`` as the published
        script, 80/10/10 by sample with its seed (samples of one donor may be torn apart, which is said); a mapping or
        a table (a DataFrame, or the path of a CSV file, with columns ``group`` and ``split``) names the groups of
        ``"train"``, ``"validate"`` and ``"test"``, and what it leaves out is trained on.
    split_by
        Column of ``obs`` that names the group, which is never split. It has to hold one value a section.
    fractions
        Shares of the groups for training, validation and test, with ``split="random"``.
    {seed}
    model
        Name or path of a model whose vocabulary is used, or a loaded model. By default, the 14,558 genes of the
        published model.
    {layer}
    library_key
        Column of ``obs`` with the slide of each spot. Each slide becomes a section. By default, each object is one.
    {gene_symbols}
    min_coverage
        Minimum share of the vocabulary that a section has to contain.
    similar
        Find the similar spots of each section, for recipes that show them (``Recipe.similar``, as ``"mini"`` does). It
        takes a principal component analysis for each of four folds of the genes.
    {table_key}
    overwrite
        Replace what is at ``path``.

    Returns
    -------
    The corpus, opened.

    Raises
    ------
    FileExistsError
        If there is something at ``path`` already.
    KeyError
        If a section lacks a column or layer of that name.
    ValueError
        If a section can't be used (its name is in the message), or if the split would leak: one group or donor in two
        splits, or the same counts twice.

    Examples
    --------
    >>> import tempfile
    >>> import sagefm as sg
    >>> slides = {{f"slide{{i}}": sg.datasets.simulated_visium(8, 8, n_genes=5_000, rng=i) for i in range(3)}}
    >>> for name, slide in slides.items():
    ...     slide.obs["donor"] = name
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     corpus = sg.train.prepare_corpus(slides, f"{{folder}}/corpus.zarr", split={{"slide2": "validate"}})
    >>> corpus.sections["split"].to_dict()
    {{'slide0': 'train', 'slide1': 'train', 'slide2': 'validate'}}
    """
    import zarr
    from anndata.io import write_elem

    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already. Pass overwrite=True to replace it.")
    check_fractions(fractions)
    seed = check_whole("rng", rng, 0)
    if isinstance(split, str | Path) and split not in ("random", "paper"):
        split = pd.read_csv(split)  # before hours of reading, not after
    vocabulary = hest1k() if model is None else models.load(model).vocabulary
    rows: list[dict[str, Any]] = []
    errors: dict[str, Exception] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as partial:
        store = zarr.open_group(partial, mode="w")
        group = store.create_group("section")
        for name, section in progress(_named(sections), "Preparing", unit="section"):
            try:
                whole = _read(section, table_key)
                for library, spots in split_libraries(whole, library_key).rows():
                    adata = whole if library_key is None else whole[spots].copy()
                    full_name = (name if library_key is None else f"{name}_{library}").replace("/", "_")
                    if any(row["name"] == full_name for row in rows):
                        raise ValueError("a second section of this name; give names by a mapping.")
                    prepared, row = _prepare(adata, vocabulary, split_by, layer, gene_symbols, min_coverage, similar)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # of zarr, on string types that anndata chooses
                        write_elem(group, full_name, prepared)
                    rows.append({"name": full_name, **row})
            except (ValueError, KeyError, TypeError) as error:
                errors[name] = error
        if errors:  # all of them, so that they can be mended together
            lines = [f"section {name!r}: {error.args[0] if error.args else error}" for name, error in errors.items()]
            kinds = {type(error) for error in errors.values()}
            raise (kinds.pop() if len(kinds) == 1 else ValueError)("\n".join(lines)) from list(errors.values())[-1]
        if not rows:
            raise ValueError("no section was given: expected a folder with .h5ad or .zarr files, or sections.")
        table = pd.DataFrame(rows).set_index("name")
        table = assign(table, split, "group", fractions, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_elem(store, "sections", table)
        about: Any = {"format": FORMAT, "vocabulary": to_header(vocabulary)}
        store.attrs[ATTRIBUTE] = about
    corpus = Corpus.open(path)
    n_values = int(corpus.sections["n_values"].sum())
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    logger.info("Wrote %r: %d stored counts in %.1f bytes each.", corpus, n_values, size / max(n_values, 1))
    return corpus


def _named(sections: Any) -> list[tuple[str, Any]]:
    """Sections with a name each; files are not read yet."""
    if isinstance(sections, str | Path):
        return list(find_sections(sections).items())
    if isinstance(sections, Mapping):
        return [(str(name), section) for name, section in sections.items()]
    if not isinstance(sections, Iterable) or hasattr(sections, "obs"):
        sections = [sections]
    return [(section_name(Path(s)) if isinstance(s, str | Path) else f"section{i}", s) for i, s in enumerate(sections)]


def _read(section: Any, table_key: str) -> AnnData:
    """Load a section from wherever it is."""
    return (
        read_section(Path(section), table_key) if isinstance(section, str | Path) else get_anndata(section, table_key)
    )


def _prepare(
    adata: AnnData,
    vocabulary: Vocabulary,
    split_by: str,
    layer: str | None,
    gene_symbols: str | None,
    min_coverage: float,
    similar: bool,
) -> tuple[AnnData, dict[str, Any]]:
    """One section as it is stored, and its row of the table."""
    from anndata import AnnData

    group = _only_value(adata, split_by)
    if group is None:
        held = adata.obs[split_by].nunique(dropna=False) if split_by in adata.obs else 0
        raise ValueError(
            f"split_by={split_by!r} has to name a column of obs with one value a section; here "
            + (f"it holds {held}. Pass library_key to part the slides." if held else "there is none.")
        )
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"layer {layer!r} not in adata.layers; it has {sorted(adata.layers)}.")
    slim = AnnData(adata.X if layer is None else adata.layers[layer], obs=adata.obs, var=adata.var, obsm=adata.obsm)
    pp.neighborhood_graph(slim)
    slim = slim[_along_space(slim)].copy()
    index = match_genes(slim, vocabulary, gene_symbols=gene_symbols, min_coverage=min_coverage).index
    log_counts = Counts(slim, index).log1p(np.arange(len(vocabulary)), ROWS_AT_A_TIME)
    counts = np.expm1(log_counts.data, dtype=np.float64)
    whole = np.rint(counts)
    if (np.abs(counts - whole) > 0.01 + 1e-5 * whole).any():  # beyond the rounding of float32
        raise ValueError("holds values that are not counts, such as fractions.")
    dtype = np.uint16 if whole.max(initial=0) < 2**16 else np.uint32
    stored = sparse.csr_matrix((whole.astype(dtype), log_counts.indices, log_counts.indptr), log_counts.shape)
    stored.sort_indices()
    mean = np.asarray(log_counts.mean(axis=0)).ravel()
    prepared = AnnData(
        stored,
        obs=pd.DataFrame(index=slim.obs_names.astype(str)),
        var=pd.DataFrame(
            {"measured": np.isin(np.arange(len(vocabulary)), index), "mean_log1p": mean.astype(np.float32)},
            index=list(vocabulary.symbols),
        ),
        obsm={_keys.SPATIAL: find_coordinates(slim, _keys.SPATIAL, None)[0]} if _keys.SPATIAL in slim.obsm else None,
        obsp={_keys.connectivities(_keys.GRAPH): slim.obsp[_keys.connectivities(_keys.GRAPH)].astype(np.int8)},
    )
    digest = hashlib.sha256()
    for array in (stored.indptr.astype(np.int64), stored.indices.astype(np.int32), stored.data.astype(np.uint32)):
        digest.update(array.tobytes())
    steps = find_steps(log_counts, digest.hexdigest()) if similar else {}
    for key, step in steps.items():
        prepared.obsp[key] = step
    row = {
        "n_spots": prepared.n_obs,
        "n_values": stored.nnz,
        "coverage": float(prepared.var["measured"].mean()),
        "group": group,
        "digest": digest.hexdigest(),
        "similar": bool(steps),
        **{column: _only_value(adata, column) or "" for column in KEPT},
    }
    return prepared, row


def _along_space(adata: AnnData) -> Ints:
    """Order of the spots, row after row of the slide, so that a range of them is a band with few outer neighbors."""
    if _keys.SPATIAL not in adata.obsm:
        return np.lexsort((adata.obs[_keys.ARRAY_COL], adata.obs[_keys.ARRAY_ROW]))
    x, y = find_coordinates(adata, _keys.SPATIAL, None)[0].astype(float)[:, :2].T
    return np.lexsort((x, y))


def _only_value(adata: AnnData, column: str) -> str | None:
    """Value of a column of ``obs`` that holds one, else None."""
    if column not in adata.obs:
        return None
    values = adata.obs[column].astype(str).unique()
    return str(values[0]) if len(values) == 1 and not adata.obs[column].isna().any() else None
