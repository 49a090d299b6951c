"""Communities of spots in an embedding, by scanpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._anndata import open_run
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._utils import check_positive, check_whole
from sagefm.tl._points import get_points

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


@fill_docstring
def leiden(
    adata: AnnData | SpatialData,
    use_rep: str = _keys.EMBEDDING,
    *,
    resolution: float = 1.0,
    n_neighbors: int = 15,
    rng: int | np.random.Generator = 0,
    key_added: str = _keys.LEIDEN,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Group spots by the Leiden algorithm on the nearest neighbors in a representation.

    scanpy does the work, on a graph of its own: ``adata`` keeps the graphs that it has.

    Parameters
    ----------
    adata
        Slide with the representation.
    use_rep
        Representation in ``obsm``, shape (spots, dimensions).
    resolution
        The higher, the more clusters.
    n_neighbors
        Number of nearest neighbors in the representation.
    {rng}
    {key_added}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obs["sage_leiden"]``
        Cluster of each spot, categorical ``"0"``, ``"1"``, … by falling size.
    ``uns["sage_leiden"]``
        ``params``.

    Raises
    ------
    ImportError
        If ``igraph`` is not installed, which the extra ``leiden`` brings.
    KeyError
        If the representation is missing.
    ValueError
        If it isn't finite, or an argument is wrong.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> sg.tl.leiden(adata, resolution=0.5)
    >>> ax = sg.pl.cluster(adata, "sage_leiden", show=False)
    """
    import scanpy as sc
    from anndata import AnnData

    run = open_run(adata, "tl.leiden", key_added, _keys.LEIDEN, ["obs"], table_key=table_key, copy=copy)
    resolution = check_positive("resolution", resolution)
    n_neighbors = check_whole("n_neighbors", n_neighbors, 2)
    points = get_points(run.adata, use_rep)
    if len(points) <= n_neighbors:
        raise ValueError(f"{len(points)} spots are too few for n_neighbors={n_neighbors}. Set a smaller one.")
    try:
        import igraph  # noqa: F401
    except ImportError as error:
        raise ImportError("sg.tl.leiden needs igraph: pip install igraph, or use sg.tl.cluster(adata).") from error
    seed = int(np.random.default_rng(rng).integers(2**31))
    graph = AnnData(obsm={use_rep: points})
    sc.pp.neighbors(graph, n_neighbors, use_rep=use_rep, transformer="sklearn", random_state=seed)
    options = {"flavor": "igraph", "n_iterations": 2, "directed": False}
    sc.tl.leiden(graph, resolution, random_state=seed, key_added=key_added, **options)
    clusters = graph.obs[key_added].cat.remove_unused_categories()
    logger.info("Found %d clusters; wrote obs['%s'].", clusters.cat.categories.size, key_added)
    params = {"use_rep": use_rep, "resolution": resolution, "n_neighbors": n_neighbors, "seed": seed}
    return run.commit({("obs", key_added): clusters.array}, params)
