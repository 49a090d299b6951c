"""Quality of the counts, by spot and beside its neighbors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._anndata import open_run
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._slides import find_libraries
from sagefm.pp._graph import get_graph
from sagefm.pp._normalize import read_counts

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

    from sagefm._types import Floats, Ints

FINE, NO_COUNTS = "fine", "no counts"
# What makes a spot stand out, by metric: the reason, and whether low or high values do.
OUTLIERS = {
    "total_counts": ("few counts", -1),
    "n_genes_by_counts": ("few genes", -1),
    "pct_counts_mt": ("mitochondrial", 1),
}


@fill_docstring
def quality_control(
    adata: AnnData | SpatialData,
    *,
    max_zscore: float = 3.0,
    layer: str | None = None,
    library_key: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    key_added: str = _keys.QUALITY,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Flag spots with fewer counts or genes, or more mitochondrial counts, than their neighbors would let expect.

    Depth differs between tissues, so one limit for a slide throws whole tissues away. Here each spot is compared with
    the mean of its neighbors: a spot stands out if it differs from them by more than the spots of the slide usually do.
    Nothing is removed.

    Parameters
    ----------
    adata
        Slide with raw counts and a graph.
    max_zscore
        How many standard deviations (by the median absolute deviation) a spot may differ from its neighbors.
    {layer}
    {library_key}
    {connectivity_key}
    {key_added}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obs["sage_quality"]``
        ``"fine"``, or the first that applies of ``"no counts"``, ``"few counts"``, ``"few genes"`` and
        ``"mitochondrial"``; categorical.
    ``obsm["sage_quality"]``
        :func:`scanpy.pp.calculate_qc_metrics` of each spot: ``total_counts``, ``n_genes_by_counts`` and, where genes
        are named ``MT-``, ``pct_counts_mt``; and ``{{metric}}_zscore`` beside the neighbors. Counts and genes are
        compared by their logarithms.
    ``uns["sage_quality"]``
        ``params``, and ``slides``: spots, medians of the metrics and flagged spots of each slide.

    Raises
    ------
    KeyError
        If there is no graph, layer or column of that name.
    ValueError
        If the counts are not raw, or ``max_zscore`` isn't above 0.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=500)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.pp.quality_control(adata)
    >>> adata.obs["sage_quality"].value_counts()["fine"] > 90
    np.True_
    """
    import pandas as pd
    import scanpy as sc

    if not max_zscore > 0:
        raise ValueError(f"max_zscore={max_zscore!r} has to be above 0.")
    run = open_run(
        *(adata, "pp.quality_control", key_added, _keys.QUALITY, ["obs", "obsm"]), table_key=table_key, copy=copy
    )
    slide = read_counts(run.adata, layer)
    libraries, graph = find_libraries(run.adata, library_key, connectivity_key), get_graph(run.adata, connectivity_key)
    slide.var["mt"] = slide.var_names.str.upper().str.startswith("MT-")
    mitochondrial = ["mt"] if slide.var["mt"].any() else []
    spots, _ = sc.pp.calculate_qc_metrics(slide, qc_vars=mitochondrial, percent_top=None, log1p=False)
    names = [name for name in OUTLIERS if name in spots]
    table = spots[names].fillna(0.0).set_axis(run.adata.obs_names)
    level = np.full(run.adata.n_obs, FINE, dtype=object)
    for name in reversed(names):  # the first counts
        values = table[name].to_numpy(dtype=float)
        reason, sign = OUTLIERS[name]
        found = _local_zscores(np.log1p(values) if sign < 0 else values, graph, [rows for _, rows in libraries.rows()])
        table[f"{name}_zscore"] = found
        level[sign * found > max_zscore] = reason
    level[table["total_counts"] == 0] = NO_COUNTS
    groups = [FINE, NO_COUNTS, *(reason for reason, _ in OUTLIERS.values())]
    rows = [
        {"slide": name, "spots": len(at), **table[names].iloc[at].median(), "flagged": int((level[at] != FINE).sum())}
        for name, at in libraries.rows()
    ]
    n_flagged = int((level != FINE).sum())
    logger.info("Flagged %d of %d spots; wrote obs['%s'].", n_flagged, run.adata.n_obs, key_added)
    written = {("obs", key_added): pd.Categorical(level, groups), ("obsm", key_added): table}
    params = {"max_zscore": float(max_zscore), "layer": layer, "library_key": libraries.key}
    return run.commit(written, params, slides=pd.DataFrame(rows, index=[str(i) for i in range(len(rows))]))


def _local_zscores(values: Floats, graph: csr_matrix, slides: list[Ints]) -> Floats:
    """Difference of each spot from the mean of its neighbors, in robust standard deviations of its slide's spots.

    A spot without neighbors is compared with its slide's median.
    """
    degree = np.diff(graph.indptr)
    around = graph @ values / np.maximum(degree, 1)
    zscores = np.zeros(len(values))
    for rows in slides:
        expected = np.where(degree[rows] > 0, around[rows], np.median(values[rows]))
        difference = values[rows] - expected
        centered = difference - np.median(difference)
        spread = 1.4826 * np.median(np.abs(centered))
        zscores[rows] = np.divide(centered, spread, out=np.zeros(len(rows)), where=spread > 0)
    return zscores
