"""Neighborhoods of 15 spots: the graph that every tool reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from sagefm import _keys
from sagefm._anndata import open_run
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._slides import Libraries, split_libraries
from sagefm._types import Array, Bools, Floats, Ints
from sagefm._utils import check_choice, check_key, check_whole, shorten
from sagefm.pp._lattice import array_positions, is_hexagonal, lattice_neighbors, refuse_doubled, refuse_exchanged
from sagefm.pp._neighbors import nearest_neighbors
from sagefm.pp._regions.regions import region_coordinates, region_library

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

Method = Literal["auto", "visium", "knn"]

# The tip of a 60 degree corner has its 14th neighbor 4.8 spacings away, so no spot of a connected tissue
# is further from it than this.
FAR_SPACINGS = 5.0

MAX_COORDINATE = 1e100  # squares of larger ones overflow


@fill_docstring
def neighborhood_graph(
    adata: AnnData | SpatialData,
    method: Method = "auto",
    *,
    n_spots: int = 15,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    key_added: str = _keys.GRAPH,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Connect every spot with its nearest spots: the neighborhoods that SAGE-FM was trained on.

    Parameters
    ----------
    adata
        Slide, or several slides told apart by ``library_key``.
    method
        ``"visium"`` ranks spots by their exact distance on the hexagonal lattice, from
        ``obs["array_row"]`` and ``obs["array_col"]``. Ties go to the smaller row offset, then to the
        smaller column, then to the smaller row, so an interior spot gets two spots on each side of its row,
        four on each adjacent row and one on each row beyond. ``"knn"`` ranks by Euclidean distance in
        ``obsm[spatial_key]``, ties by y, then x. ``"auto"`` takes ``"visium"`` where the columns exist and
        form the hexagonal lattice, else ``"knn"``.
    n_spots
        Spots of a neighborhood, the center included. The published model was trained on 15.
    library_key
        Categorical in ``obs`` naming the slide of each spot. Neighbors never cross it. Where the table of a
        ``SpatialData`` annotates several regions, these by default.
    spatial_key
        Coordinates in ``obsm``, shape (spots, 2 or 3), x before y. Where they are absent from the table of a
        ``SpatialData``, the centroids of the regions that it annotates, in the regions' own coordinates.
    key_added
        Prefix of the keys to write the results to.
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obsp["sage_connectivities"]``
        CSR of ones, shape (spots, spots): ``n_spots - 1`` in row i, the neighbors of spot i. Directed,
        nothing on the diagonal.
    ``obsp["sage_distances"]``
        CSR of the same pattern: center-to-center spacings of the lattice (``"visium"``), or the unit of the
        coordinates (``"knn"``).
    ``obs["sage_far_neighbors"]``
        True where the last neighbor is more than five spacings away: the spot is scattered or on a small
        island, and its neighborhood isn't one the model has seen.
    ``uns["sage_neighbors"]``
        Keys and parameters, laid out as squidpy does, so ``connectivity_key="sage"`` works in ``squidpy.gr``.
    ``obsm["spatial"]``
        Only where the coordinates came from the regions of a ``SpatialData``.

    Raises
    ------
    KeyError
        If the coordinates, a region or instance that they come from, or ``library_key`` are missing.
    ValueError
        If a slide has fewer than ``n_spots`` spots, or its coordinates can't be used.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Methods, neighborhoods of 15 spots.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=500)
    >>> sg.pp.neighborhood_graph(adata)
    >>> adata.obsp["sage_connectivities"].shape
    (100, 100)
    """
    from anndata import AnnData

    check_choice("method", method, ("auto", "visium", "knn"))
    n_spots = check_whole("n_spots", n_spots, 2)
    check_key("key_added", key_added)
    key_added = key_added.removesuffix("_connectivities")
    connectivities_key, distances_key, far_key, key = (
        name.format(key_added) for name in (_keys.CONNECTIVITIES, _keys.DISTANCES, _keys.FAR_NEIGHBORS, _keys.NEIGHBORS)
    )
    sdata = None if isinstance(adata, AnnData) else adata
    more = [("obsp", connectivities_key), ("obsp", distances_key), ("obs", far_key)]
    default = _keys.NEIGHBORS.format(_keys.GRAPH)
    run = open_run(adata, "pp.neighborhood_graph", key, default, more=more, table_key=table_key, copy=copy)
    slide = run.adata
    if sdata is not None and library_key is None and (library_key := region_library(slide)) is not None:
        logger.info("The table annotates several regions: neighbors stay within obs['%s'].", library_key)
    libraries = split_libraries(slide, library_key)
    for name, spots in libraries.rows():
        if len(spots) < n_spots:
            raise ValueError(
                f"{libraries.title(name)} has {len(spots)} spots, fewer than the n_spots={n_spots} of a "
                "neighborhood. Remove it or set a smaller n_spots."
            )
    used, reason = _choose(slide, method, libraries)
    try:
        coordinates, from_regions = find_coordinates(slide, spatial_key, sdata)
    except (KeyError, ValueError):
        if used == "knn":
            raise
        coordinates, from_regions = np.empty((0, 0)), False  # the lattice doesn't need them
    distances, far = _connect(slide, libraries, used, n_spots - 1, coordinates, spatial_key)
    connectivities = distances.astype(np.float32)
    connectivities.data[:] = 1
    written = dict(zip(more, (connectivities, distances, far), strict=True))
    if from_regions:
        written["obsm", spatial_key] = coordinates
        logger.info("Took the coordinates from the centroids of the table's regions; wrote obsm['%s'].", spatial_key)
    if far.any():
        logger.warning(
            "%d of %d spots have their last neighbor more than %g spacings away (scattered spots or islands). "
            "The model has seen no such neighborhoods; they are True in obs['%s'].",
            *(far.sum(), slide.n_obs, FAR_SPACINGS, far_key),
        )
    logger.info(
        "Connected %d spots on %d slide(s) with %d neighbors each by method '%s'%s; wrote obsp['%s'], obsp['%s'].",
        *(slide.n_obs, len(libraries), n_spots - 1, used, reason, connectivities_key, distances_key),
    )
    params = {
        "method": used,
        "n_spots": n_spots,
        "n_neighbors": n_spots - 1,
        "distance_unit": "lattice spacing" if used == "visium" else f"obsm['{spatial_key}']",
        "library_key": library_key,
    }
    return run.commit(written, params, connectivities_key=connectivities_key, distances_key=distances_key)


def _choose(adata: AnnData, method: Method, libraries: Libraries) -> tuple[str, str]:
    """Method to use, and why where the choice was left open."""
    if method != "auto":
        return method, ""
    if _keys.ARRAY_ROW not in adata.obs or _keys.ARRAY_COL not in adata.obs:
        return "knn", " (no array_row and array_col in obs)"
    for name, spots in libraries.rows():
        try:
            positions = array_positions(adata, spots)
        except ValueError as error:
            return "knn", f" ({error})"
        # Slides on top of each other: coordinates would mix them just as well.
        refuse_doubled(positions, libraries.title(name))
        if not is_hexagonal(positions):
            return "knn", " (array_row and array_col are no hexagonal lattice)"
    return "visium", ""


def _connect(
    adata: AnnData, libraries: Libraries, method: str, k: int, found: Array, spatial_key: str
) -> tuple[sparse.csr_matrix, Bools]:
    """Distances to the k nearest spots of the same slide, and which spots have far ones."""
    from scipy.sparse import csr_matrix

    neighbors, distances = np.empty((adata.n_obs, k), dtype=np.int64), np.empty((adata.n_obs, k))
    far = np.zeros(adata.n_obs, dtype=bool)
    for name, spots in libraries.rows():
        title = libraries.title(name)
        if method == "visium":
            positions = array_positions(adata, spots)
            _check_positions(adata, positions, spots, found, spatial_key, title)
            nearest, length, spacing = lattice_neighbors(positions, k)
        else:
            coordinates = check_coordinates(adata, found, spatial_key, spots, title)
            nearest, length, spacing = nearest_neighbors(coordinates, k)
        neighbors[spots], distances[spots] = spots[nearest], length
        far[spots] = length[:, -1] > FAR_SPACINGS * spacing
    indptr = np.arange(0, adata.n_obs * k + 1, k)
    graph = csr_matrix((distances.ravel(), neighbors.ravel(), indptr), (adata.n_obs, adata.n_obs))
    graph.sort_indices()
    return graph, far


def _check_positions(adata: AnnData, positions: Ints, spots: Ints, found: Array, spatial_key: str, title: str) -> None:
    """Refuse lattice positions that are doubled or, if there are coordinates to tell, exchanged."""
    refuse_doubled(positions, title)
    try:
        coordinates = check_coordinates(adata, found, spatial_key, spots, title)
    except ValueError:
        return  # absent or no good, and the lattice doesn't need them
    refuse_exchanged(positions, coordinates, spatial_key, title)


def get_graph(adata: AnnData, connectivity_key: str) -> sparse.csr_matrix:
    """Neighbors of every spot from ``obsp``: its pattern alone, without the diagonal."""
    from scipy import sparse

    check_key("connectivity_key", connectivity_key)
    key = _keys.connectivities(connectivity_key)
    if key not in adata.obsp:
        if connectivity_key == _keys.GRAPH:
            raise KeyError(f"{key!r} not in adata.obsp. Run sg.pp.neighborhood_graph(adata) first.")
        raise KeyError(f"{key!r} not in adata.obsp; it has {sorted(adata.obsp)}. Set connectivity_key.")
    found = adata.obsp[key]
    if hasattr(found, "compute"):  # as read_lazy reads it
        found = found.compute()
    graph = sparse.csr_matrix(found, copy=True)
    if not np.isfinite(graph.data).all():
        raise ValueError(f"adata.obsp[{key!r}] holds values that are not finite.")
    graph.sum_duplicates()
    graph.setdiag(0)
    graph.eliminate_zeros()
    if adata.n_obs and not graph.nnz:
        raise ValueError(f"adata.obsp[{key!r}] connects no spots. Build the graph again.")
    graph.data = np.ones(graph.nnz, dtype=np.float32)
    return graph


def find_coordinates(adata: AnnData, spatial_key: str, sdata: SpatialData | None) -> tuple[Array, bool]:
    """Coordinates from ``obsm``, else from the regions of the table's SpatialData; whether from the latter."""
    if spatial_key in adata.obsm:
        found = adata.obsm[spatial_key]
        return np.asarray(found.toarray() if hasattr(found, "toarray") else found), False
    absent = f"{spatial_key!r} not in adata.obsm: put the coordinates of the spots there or set spatial_key."
    if sdata is None:
        raise KeyError(absent)
    try:
        return region_coordinates(sdata, adata), True
    except KeyError as error:
        raise KeyError(f"{absent} They can't be taken from regions either: {error.args[0]}") from error


def check_coordinates(adata: AnnData, found: Array, spatial_key: str, spots: Ints, name: str) -> Floats:
    """Coordinates of the spots of one slide, checked."""
    if found.ndim != 2 or found.shape[1] not in (2, 3):
        raise ValueError(f"obsm[{spatial_key!r}] has shape {found.shape}, expected (spots, 2) or (spots, 3).")
    try:
        coordinates = found[spots].astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"obsm[{spatial_key!r}] holds no numbers: {error}") from error
    bad = ~(np.abs(coordinates) <= MAX_COORDINATE).all(axis=1)
    if bad.any():
        raise ValueError(
            f"obsm[{spatial_key!r}] is not finite (or above {MAX_COORDINATE:g}) for {int(bad.sum())} spots of {name}: "
            f"{shorten(adata.obs_names[spots[bad]])}. Remove them first."
        )
    return coordinates
