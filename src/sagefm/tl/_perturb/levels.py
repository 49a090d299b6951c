"""Lowest and highest counts of genes over many sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagefm._docs import fill_docstring
from sagefm._settings import ROWS_AT_A_TIME, logger
from sagefm._slides import find_sections
from sagefm._types import Floats32
from sagefm._utils import progress, shorten
from sagefm.pp._counts import Counts
from sagefm.pp._genes import get_alignment
from sagefm.read._section import read_section

if TYPE_CHECKING:
    import pandas as pd

    from sagefm.models import Model
    from sagefm.models._vocabulary import Vocabulary

COLUMNS = ("lowest", "highest")


@fill_docstring
def ligand_levels(
    sections: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    layer: str | None = None,
    table_key: str = "table",
) -> pd.DataFrame:
    """Find the lowest and the highest count of every gene over many sections, to clamp ligands at.

    By default :func:`perturb_lr` clamps a ligand at the extremes of its own slide, so slides are clamped at different
    levels, and a ligand that is constant on a slide can't be tested there. The paper takes the extremes of all sections
    together: pass this table as ``levels``.

    Parameters
    ----------
    sections
        Folder with sections (``.h5ad``, ``.zarr``, or Space Ranger's ``outs``), or their files, or files by name. They
        are read one after the other.
    {model}
    {layer}
    {table_key}

    Returns
    -------
    One row for each gene of the model that a section has, named by its symbol: ``lowest`` and ``highest`` log1p count
    of a spot, and ``n_sections`` that have the gene.

    Raises
    ------
    FileNotFoundError
        If a section isn't there.
    KeyError
        If a section lacks the layer.
    ValueError
        If the counts of a section are not raw, or too few of its genes are known.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), results on in silico perturbation: ligands are set to "the observed minimum or maximum
    across samples in the validation and test sets".

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import sagefm as sg
    >>> folder = Path(tempfile.mkdtemp())
    >>> for seed in range(2):
    ...     sg.datasets.simulated_visium(8, 8, n_genes=8000, rng=seed).write_h5ad(folder / f"section_{{seed}}.h5ad")
    >>> levels = sg.tl.ligand_levels(folder, "sagefm-mini")
    >>> list(levels.columns)
    ['lowest', 'highest', 'n_sections']
    """
    import pandas as pd

    from sagefm import models

    vocabulary = models.load(model).vocabulary
    low, high = np.full(len(vocabulary), np.inf), np.full(len(vocabulary), -np.inf)
    n_sections = np.zeros(len(vocabulary), dtype=np.int64)
    files = find_sections(sections)
    for path in progress(files.values(), "Levels", unit="section"):
        adata = read_section(path, table_key)
        counts = Counts(adata, get_alignment(adata, vocabulary)[0].index, layer)
        values = counts.log1p(counts.genes, ROWS_AT_A_TIME)
        low[counts.genes] = np.minimum(low[counts.genes], values.min(axis=0).toarray().ravel())
        high[counts.genes] = np.maximum(high[counts.genes], values.max(axis=0).toarray().ravel())
        n_sections[counts.genes] += 1
    known = np.flatnonzero(n_sections)
    logger.info("Read the levels of %d genes in %d sections.", len(known), len(files))
    table = pd.DataFrame(dict(zip(COLUMNS, (low, high), strict=True)), index=list(vocabulary.symbols)).iloc[known]
    return table.astype(np.float32).assign(n_sections=n_sections[known])


def read_levels(levels: pd.DataFrame | None, vocabulary: Vocabulary) -> tuple[Floats32, Floats32] | None:
    """Lowest and highest log1p count of each gene (vocabulary index) that the user gave; NaN for others.

    Raises
    ------
    TypeError
        If it is no table.
    KeyError
        If it lacks a column, or names a gene that the model doesn't know.
    ValueError
        If a value is no log1p count, or a highest one lies below the lowest.
    """
    if levels is None:
        return None
    advise = "Pass what sg.tl.ligand_levels returns."
    if not hasattr(levels, "columns"):
        raise TypeError(f"levels has to be a DataFrame, got {type(levels).__name__}. {advise}")
    if missing := [name for name in COLUMNS if name not in levels]:
        raise KeyError(f"levels has no column {missing[0]!r}; it has {shorten(levels.columns)}. {advise}")
    at = vocabulary.find_symbols(levels.index)
    if (at < 0).any():
        raise KeyError(f"levels names genes that the model doesn't know: {shorten(levels.index[at < 0])}.")
    ends = []
    for name in COLUMNS:
        every = np.full(len(vocabulary), np.nan, dtype=np.float32)
        every[at] = levels[name].to_numpy(dtype=np.float32)
        ends.append(every)
    low, high = ends
    if not (np.isfinite(low[at]) & (low[at] >= 0) & np.isfinite(high[at]) & (high[at] >= low[at])).all():
        raise ValueError(f"levels holds values that are no log1p counts, or a highest below its lowest. {advise}")
    return low, high
