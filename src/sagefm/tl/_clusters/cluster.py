"""Clusters of spots in an embedding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._anndata import open_run
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._utils import check_whole, progress
from sagefm.tl._points import get_points, sample_distances, silhouette

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

CANDIDATES = range(4, 11)
MAX_SILHOUETTE = 5_000  # spots, whose distances take 100 MB


@fill_docstring
def cluster(
    adata: AnnData | SpatialData,
    use_rep: str = _keys.EMBEDDING,
    *,
    n_clusters: int | Iterable[int] | None = None,
    rng: int | np.random.Generator = 0,
    key_added: str = _keys.CLUSTER,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Group spots by k-means on a representation.

    Parameters
    ----------
    adata
        Slide with the representation.
    use_rep
        Representation in ``obsm``, shape (spots, dimensions).
    n_clusters
        Number of clusters, or several to choose from by the silhouette, such as ``range(2, 8)``. By default, 4 to 10.
    {rng}
    {key_added}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obs["sage_cluster"]``
        Cluster of each spot, categorical ``"0"``, ``"1"``, … by falling size.
    ``uns["sage_cluster"]``
        ``params``, and ``scores``: a ``DataFrame`` with ``silhouette`` (of at most 5,000 spots),
        ``calinski_harabasz`` and ``davies_bouldin`` by ``n_clusters``.

    Raises
    ------
    KeyError
        If the representation is missing.
    ValueError
        If it isn't finite, or has fewer distinct spots than clusters.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Methods: k-means of embeddings, number of clusters by silhouette.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> sg.tl.cluster(adata, n_clusters=4)
    >>> adata.obs["sage_cluster"].cat.categories.tolist()
    ['0', '1', '2', '3']
    """
    import pandas as pd
    from sklearn.cluster import KMeans
    from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score

    run = open_run(adata, "tl.cluster", key_added, _keys.CLUSTER, ["obs"], table_key=table_key, copy=copy)
    if n_clusters is None:
        n_clusters = CANDIDATES
    tried = sorted(set(n_clusters)) if isinstance(n_clusters, Iterable) else [n_clusters]
    candidates = [check_whole("n_clusters", k, 2) for k in tried]
    if not candidates:
        raise ValueError("n_clusters is empty: name at least one number.")
    points = get_points(run.adata, use_rep)
    n_distinct = len(np.unique(points, axis=0))
    if n_distinct <= candidates[0]:
        raise ValueError(
            f"{n_distinct} distinct spots in obsm[{use_rep!r}] can't be grouped into {candidates[0]} clusters. Set a "
            "smaller n_clusters."
        )
    candidates = [k for k in candidates if k < n_distinct]
    seed = int(np.random.default_rng(rng).integers(2**31))

    sample = sample_distances(points, MAX_SILHOUETTE, seed)
    labels, scores = {}, {}
    for k in progress(candidates, "Clustering", unit="k"):
        labels[k] = KMeans(k, n_init=10, random_state=seed).fit_predict(points)
        scores[k] = {
            "silhouette": silhouette(sample, labels[k]),
            "calinski_harabasz": calinski_harabasz_score(points, labels[k]),
            "davies_bouldin": davies_bouldin_score(points, labels[k]),
        }
    table = pd.DataFrame.from_dict(scores, orient="index").rename_axis("n_clusters")
    best = int(table["silhouette"].idxmax())

    rank = np.argsort(np.argsort(-np.bincount(labels[best], minlength=best), kind="stable"))
    clusters = pd.Categorical.from_codes(rank[labels[best]], [str(i) for i in range(best)])
    logger.info("Found %d clusters (silhouette %.2f); wrote obs['%s'].", best, table["silhouette"].max(), key_added)
    if len(table) > 1 and best == candidates[0]:
        logger.info("That is the fewest that were tried; n_clusters=range(2, %d) tries fewer.", best + 1)
    # Text index: the only one that h5ad and zarr both keep.
    return run.commit(
        {("obs", key_added): clusters},
        {"use_rep": use_rep, "n_clusters": best, "seed": seed},
        scores=table.set_index(table.index.astype(str)),
    )
