"""What clusters are: their marker genes, and which slides and tissues they are found in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import open_run
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._stats import adjust_pvalues
from sagefm._utils import check_key, shorten
from sagefm.pp._normalize import normalize_total, read_counts
from sagefm.tl._points import get_column

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


# What scanpy calls the columns, and what they are called here.
COLUMNS = {
    "group": "cluster",
    "names": "gene",
    "scores": "score",
    "logfoldchanges": "log2_fold_change",
    "pvals": "pval",
    "pvals_adj": "padj",
    "pct_nz_group": "share_in",
    "pct_nz_reference": "share_out",
}


@fill_docstring
def cluster_markers(
    adata: AnnData | SpatialData,
    key: str = _keys.CLUSTER,
    *,
    min_spots: int = 5,
    target_sum: float | None = None,
    layer: str | None = None,
    key_added: str = _keys.CLUSTER_MARKERS,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Compare every gene in each cluster with the rest of the spots, by scanpy's Wilcoxon test.

    Parameters
    ----------
    adata
        Slide or slides with raw counts and clusters.
    key
        Column of ``obs`` with the clusters, or any other groups.
    min_spots
        Genes that fewer spots show are left out.
    target_sum
        Counts that every spot is scaled to before log1p. By default, the median of the spots.
    {layer}
    {key_added}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``uns["sage_cluster_markers"]``
        ``params``, and ``results``: ``cluster, gene, score, log2_fold_change, pval, padj`` (Benjamini-Hochberg in
        each cluster), ``share_in`` and ``share_out`` (of spots that show the gene), best score first.

    Raises
    ------
    KeyError
        If the clusters or the layer are missing.
    ValueError
        If there are fewer than two clusters, none of two spots, or the counts are not raw counts.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 4d-f, with ``target_sum=10_000``. Spots of a cluster are neighbors, not
    replicates, so the p-values rank genes and say little else. Clusters made from expression differ in expression.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=500)
    >>> sg.tl.cluster_markers(adata, "domain")
    >>> adata.uns["sage_cluster_markers"]["results"].columns[:2].tolist()
    ['cluster', 'gene']
    """
    import scanpy as sc

    if target_sum is not None and not 0 < target_sum < np.inf:
        raise ValueError(f"target_sum={target_sum!r} has to be above 0.")
    run = open_run(adata, "tl.cluster_markers", key_added, _keys.CLUSTER_MARKERS, table_key=table_key, copy=copy)
    clusters = _clusters(run.adata, key)
    names, sizes = np.unique(clusters, return_counts=True)
    tested = [str(name) for name in names[sizes > 1]]
    if len(names) < 2 or not tested:
        raise ValueError(f"obs[{key!r}] has to hold two clusters or more, one of them of two spots or more.")
    if len(tested) < len(names):
        logger.warning("Clusters of one spot (%s) have no markers.", shorten(names[sizes < 2]))
    slide = read_counts(run.adata, layer)
    slide.obs["cluster"] = pd.Categorical(clusters)
    slide.var_names_make_unique()  # or scanpy multiplies the rows of genes that share a name
    slide = slide[:, slide.X.getnnz(axis=0) >= min_spots].copy()
    if not slide.n_vars:
        raise ValueError(f"no gene is seen in {min_spots} spots. Set a smaller min_spots.")
    normalize_total(slide, target_sum)
    sc.pp.log1p(slide)
    sc.tl.rank_genes_groups(slide, "cluster", groups=tested, method="wilcoxon", pts=True)
    found = sc.get.rank_genes_groups_df(slide, group=None).rename(columns=COLUMNS)[list(COLUMNS.values())]
    texts = dict.fromkeys(("cluster", "gene"), str)
    results = found.astype({name: texts.get(name, float) for name in found})
    logger.info("Compared %d genes in %d clusters; wrote uns['%s'].", slide.n_vars, len(names), key_added)
    params = {"key": key, "min_spots": int(min_spots), "target_sum": target_sum, "layer": layer}
    return run.commit({}, params, results=results.set_index(results.index.astype(str)))


@fill_docstring
def cluster_proportions(
    adata: AnnData | SpatialData,
    groupby: str,
    key: str = _keys.CLUSTER,
    *,
    key_added: str = _keys.CLUSTER_PROPORTIONS,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Count the spots of each cluster in each tissue (slide, donor, label), beside what independence would give.

    Parameters
    ----------
    adata
        Slides with clusters.
    groupby
        Column of ``obs``, such as the tissue.
    key
        Column of ``obs`` with the clusters.
    {key_added}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``uns["sage_cluster_proportions"]``
        ``params``, and ``results``, one row for each cluster and group: ``cluster, group, n_spots, share`` (of the
        cluster's spots), ``log2_enrichment`` (over independence, with half a spot added to both), ``pval`` (Fisher's
        exact test of the spot counts, two-sided), ``padj``.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If a spot has no cluster or no group.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure S5 and 4d. Spots of a slide are no independent draws: the p-values rank.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=500)
    >>> adata.obs["half"] = (adata.obs["array_row"] < 5).astype(str)
    >>> sg.tl.cluster_proportions(adata, "half", "domain")
    >>> int(adata.uns["sage_cluster_proportions"]["results"]["n_spots"].sum())
    100
    """
    from scipy.stats import fisher_exact

    run = open_run(
        adata, "tl.cluster_proportions", key_added, _keys.CLUSTER_PROPORTIONS, table_key=table_key, copy=copy
    )
    check_key("groupby", groupby)
    clusters, groups = _clusters(run.adata, key), get_column(run.adata, "groupby", groupby)
    counts = pd.crosstab(clusters, groups)
    n, of_cluster, of_group = len(clusters), counts.sum(axis=1), counts.sum(axis=0)
    rows = []
    for cluster in counts.index:
        for group in counts.columns:
            both, inside, around = int(counts.loc[cluster, group]), int(of_cluster[cluster]), int(of_group[group])
            table = [[both, inside - both], [around - both, n - inside - around + both]]
            rows.append(
                {
                    "cluster": str(cluster),
                    "group": str(group),
                    "n_spots": both,
                    "share": both / inside,
                    "log2_enrichment": float(np.log2((both + 0.5) / (inside * around / n + 0.5))),
                    "pval": float(fisher_exact(table).pvalue),
                }
            )
    results = pd.DataFrame(rows, index=pd.RangeIndex(len(rows)).astype(str))
    results["padj"] = adjust_pvalues(results["pval"].to_numpy())
    logger.info("Counted %d clusters in %d groups; wrote uns['%s'].", *counts.shape, key_added)
    return run.commit({}, {"key": key, "groupby": groupby}, results=results)


def _clusters(adata: AnnData, key: str) -> np.ndarray:
    check_key("key", key)
    if key == _keys.CLUSTER and key not in adata.obs:
        raise KeyError(f"{key!r} not in adata.obs. Run sg.tl.cluster(adata) first.")
    return get_column(adata, "key", key)
