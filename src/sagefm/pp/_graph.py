"""Neighbourhoods of 15 spots: the graph that every tool reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._settings import logger
from sagefm._types import Floats, Ints
from sagefm._utils import check_choice, check_key, check_whole, shorten
from sagefm.pp._neighbors import is_hexagonal, lattice_neighbors, nearest_neighbors
from sagefm.pp._regions.regions import region_coordinates, region_library

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

Method = Literal["auto", "visium", "knn"]

# The tip of a 60 degree corner has its 14th neighbour 4.8 spacings away, so no spot of a connected tissue
# is further from it than this.
FAR_SPACINGS = 5.0

MAX_COORDINATE = 1e100  # squares of larger ones overflow


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
    """Connect every spot with its nearest spots: the neighbourhoods that SAGE-FM was trained on.

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
        Spots of a neighbourhood, the centre included. The published model was trained on 15.
    library_key
        Categorical in ``obs`` naming the slide of each spot. Neighbours never cross it. Where the table of a
        ``SpatialData`` annotates several regions, these by default.
    spatial_key
        Coordinates in ``obsm``, shape (spots, 2 or 3), x before y. Where they are absent from the table of a
        ``SpatialData``, the centroids of the regions that it annotates, in the regions' own coordinates.
    key_added
        Prefix of what is written.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    copy
        Return a copy instead of writing in place.

    Returns
    -------
    ``None``, or the copy. Writes

    ``obsp["sage_connectivities"]``
        CSR of ones, shape (spots, spots): ``n_spots - 1`` in row i, the neighbours of spot i. Directed,
        nothing on the diagonal.
    ``obsp["sage_distances"]``
        CSR of the same pattern: centre-to-centre spacings of the lattice (``"visium"``), or the unit of the
        coordinates (``"knn"``).
    ``obs["sage_far_neighbors"]``
        True where the last neighbour is more than five spacings away: the spot is scattered or on a small
        island, and its neighbourhood isn't one the model has seen.
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
    SAGE-FM (arXiv 2601.15504), Methods, neighbourhoods of 15 spots.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=500)
    >>> sg.pp.neighborhood_graph(adata)
    >>> adata.obsp["sage_connectivities"].shape
    (100, 100)
    """
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    check_choice("method", method, ("auto", "visium", "knn"))
    n_spots = check_whole("n_spots", n_spots, 2)
    check_key("key_added", key_added)
    key_added = key_added.removesuffix("_connectivities")
    sdata = None if isinstance(adata, AnnData) else adata
    adata = get_anndata(adata, table_key, copy=copy)
    by_region = region_library(adata) if sdata is not None and library_key is None else None
    library_key = by_region if library_key is None else library_key
    libraries = split_libraries(adata, library_key)
    for name, spots in libraries:
        if len(spots) < n_spots:
            raise ValueError(
                f"{name} has {len(spots)} spots, fewer than the n_spots={n_spots} of a neighbourhood. "
                "Remove it or set a smaller n_spots."
            )
    used, reason = _choose(adata, method, libraries)
    try:
        coordinates, from_regions = find_coordinates(adata, spatial_key, sdata)
    except (KeyError, ValueError):
        if used == "knn":
            raise
        coordinates, from_regions = np.empty((0, 0)), False  # the lattice doesn't need them
    if used == "visium":
        for name, spots in libraries:
            positions = _array_positions(adata, spots)
            _refuse_doubled(positions, name)
            _refuse_exchanged(adata, positions, spots, coordinates, spatial_key, name)
    k = n_spots - 1
    neighbors = np.empty((adata.n_obs, k), dtype=np.int64)
    distances = np.empty((adata.n_obs, k))
    far = np.zeros(adata.n_obs, dtype=bool)
    for name, spots in libraries:
        if used == "visium":
            found, length, spacing = lattice_neighbors(_array_positions(adata, spots), k)
        else:
            checked = check_coordinates(adata, coordinates, spatial_key, spots, name)
            found, length, spacing = nearest_neighbors(checked, k)
        neighbors[spots], distances[spots] = spots[found], length
        far[spots] = length[:, -1] > FAR_SPACINGS * spacing

    # Sorted columns: CSR that every library takes as it is.
    order = np.argsort(neighbors, axis=1)
    indices = np.take_along_axis(neighbors, order, axis=1).ravel()
    indptr = np.arange(0, adata.n_obs * k + 1, k)
    shape = (adata.n_obs, adata.n_obs)
    lengths = np.take_along_axis(distances, order, axis=1).ravel()

    connectivities_key = _keys.CONNECTIVITIES.format(key_added)
    distances_key = _keys.DISTANCES.format(key_added)
    adata.obsp[connectivities_key] = csr_matrix((np.ones(len(indices), dtype=np.float32), indices, indptr), shape)
    adata.obsp[distances_key] = csr_matrix((lengths, indices, indptr), shape)
    adata.obs[_keys.FAR_NEIGHBORS.format(key_added)] = far
    params: dict[str, object] = {"method": used, "n_spots": int(n_spots), "n_neighbors": int(k)}
    params["distance_unit"] = "lattice spacing" if used == "visium" else f"obsm['{spatial_key}']"
    if library_key is not None:
        params["library_key"] = library_key
    adata.uns[_keys.NEIGHBORS.format(key_added)] = {
        "connectivities_key": connectivities_key,
        "distances_key": distances_key,
        "params": params,
    }
    if from_regions:
        adata.obsm[spatial_key] = coordinates
        logger.info("Took the coordinates from the centroids of the table's regions; wrote obsm['%s'].", spatial_key)
    if by_region is not None:
        logger.info("The table annotates several regions: neighbours stay within obs['%s'].", by_region)
    if far.any():
        logger.warning(
            "%d of %d spots have their last neighbour more than %g spacings away (scattered spots or islands). "
            "The model has seen no such neighbourhoods; they are True in obs['%s'].",
            far.sum(),
            adata.n_obs,
            FAR_SPACINGS,
            _keys.FAR_NEIGHBORS.format(key_added),
        )
    logger.info(
        "Connected %d spots on %d slide(s) with %d neighbours each by method '%s'%s; wrote obsp['%s'], obsp['%s'].",
        adata.n_obs,
        len(libraries),
        k,
        used,
        reason,
        connectivities_key,
        distances_key,
    )
    return adata if copy else None


def get_graph(adata: AnnData, connectivity_key: str) -> sparse.csr_matrix:
    """Neighbours of every spot from ``obsp``: its pattern alone, without the diagonal."""
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
        raise ValueError(f"adata.obsp[{key!r}] connects no spots. Run sg.pp.neighborhood_graph(adata) again.")
    graph.data = np.ones(graph.nnz, dtype=np.float32)
    return graph


def split_libraries(adata: AnnData, library_key: str | None) -> list[tuple[str, Ints]]:
    """Return a printable name and the row numbers of each slide."""
    if library_key is None:
        return [("the slide", np.arange(adata.n_obs))]
    check_key("library_key", library_key)
    if library_key not in adata.obs:
        raise KeyError(f"library_key={library_key!r} not in adata.obs.")
    column: pd.Series = adata.obs[library_key]
    if column.isna().any():
        raise ValueError(f"obs[{library_key!r}] is missing for {int(column.isna().sum())} spots.")
    return [(f"{library_key} {name!r}", np.flatnonzero((column == name).to_numpy())) for name in column.unique()]


def _choose(adata: AnnData, method: Method, libraries: list[tuple[str, Ints]]) -> tuple[str, str]:
    """Method to use, and why where the choice was left open."""
    if method != "auto":
        return method, ""
    if _keys.ARRAY_ROW not in adata.obs or _keys.ARRAY_COL not in adata.obs:
        return "knn", " (no array_row and array_col in obs)"
    for name, spots in libraries:
        try:
            positions = _array_positions(adata, spots)
        except ValueError as error:
            return "knn", f" ({error})"
        # Slides on top of each other: coordinates would mix them just as well.
        _refuse_doubled(positions, name)
        if not is_hexagonal(positions):
            return "knn", " (array_row and array_col are no hexagonal lattice)"
    return "visium", ""


def _array_positions(adata: AnnData, spots: Ints) -> Ints:
    """Lattice rows and columns of the spots of one slide, shape (spots, 2)."""
    columns = []
    for key in (_keys.ARRAY_ROW, _keys.ARRAY_COL):
        if key not in adata.obs:
            raise KeyError(f"{key!r} not in adata.obs. Use method='knn' for a slide without lattice positions.")
        try:
            values = adata.obs[key].to_numpy()[spots].astype(float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"obs[{key!r}] holds no numbers: {error}") from error
        if not np.isfinite(values).all() or (values != np.rint(values)).any() or (abs(values) > 2**31).any():
            raise ValueError(f"obs[{key!r}] holds values that are no whole lattice positions")
        columns.append(values.astype(np.int64))
    return np.column_stack(columns)


def _refuse_doubled(positions: Ints, name: str) -> None:
    n_doubled = len(positions) - len(np.unique(positions, axis=0))
    if n_doubled:
        raise ValueError(
            f"{n_doubled} spots of {name} share their array_row and array_col with another one. If the object holds "
            "several slides, pass library_key='...', the column of obs that tells them apart; else use method='knn'."
        )


def _refuse_exchanged(
    adata: AnnData, positions: Ints, spots: Ints, found: NDArray[Any], spatial_key: str, name: str
) -> None:
    """Refuse lattice positions whose rows and columns are exchanged, told by the coordinates where there are any.

    A step of one row is √3 times as long as a step of one column on the hexagonal lattice, and as long where
    the coordinates are the lattice positions themselves; exchanged, it is 1/√3 times as long.
    """
    try:
        coordinates = check_coordinates(adata, found, spatial_key, spots, name)
    except ValueError:
        return  # absent or no good, and this method doesn't need them
    steps = np.linalg.lstsq(np.column_stack([positions, np.ones(len(spots))]), coordinates, rcond=None)[0]
    row, col = np.linalg.norm(steps[:2], axis=1)
    if row < 0.75 * col:
        raise ValueError(
            f"array_row and array_col of {name} look exchanged: by obsm[{spatial_key!r}] a step of one row is "
            f"{row / max(col, 1e-12):.2f} times as long as a step of one column, where it should be 1.73 times. "
            "Exchange the columns, or use method='knn'."
        )


def find_coordinates(adata: AnnData, spatial_key: str, sdata: SpatialData | None) -> tuple[NDArray[Any], bool]:
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


def check_coordinates(adata: AnnData, found: NDArray[Any], spatial_key: str, spots: Ints, name: str) -> Floats:
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
