"""Bins and cells of high resolution, added up to spots like those that the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from sagefm import _keys
from sagefm._anndata import open_run
from sagefm._settings import logger
from sagefm._slides import Libraries, split_libraries
from sagefm._types import Array, Bools, Floats, Ints
from sagefm._utils import check_positive, check_whole, progress
from sagefm.pp._counts import Counts
from sagefm.pp._graph import check_coordinates, find_coordinates
from sagefm.pp._regions.regions import add_spots, find_regions, refuse_taken, region_library
from sagefm.pp._regions.units import find_scales

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

FUNCTION = "pp.pseudospots"
# Values of a block of rows if it were dense: 256 MB in float32.
BLOCK_VALUES = 2**26
# Bins whose nearest one is looked for, to tell the size of a bin.
N_SAMPLED = 2000


def pseudospots(
    adata: AnnData | SpatialData,
    diameter: float | None = 55.0,
    *,
    spacing: float = 100.0,
    microns_per_unit: float | None = None,
    min_bins: int | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    key_added: str = _keys.PSEUDOSPOT,
    table_key: str = "table",
) -> AnnData:
    """Add up bins or cells to spots of the size and on the lattice that SAGE-FM was trained on.

    For Visium HD bins and single-cell coordinates. Centres lie on a hexagonal lattice, the first at the smallest
    x and y of the slide. A bin belongs to the hexagon of the nearest centre, and is counted where it lies
    within half the ``diameter`` of it.

    Parameters
    ----------
    adata
        Slide of bins or cells with raw counts, or several slides told apart by ``library_key``.
    diameter
        Diameter of a pseudo-spot in µm, at most ``spacing``. ``None`` counts every bin of the hexagon.
    spacing
        Distance of neighbouring centres in µm. The defaults are Visium's, and leave out about 73 % of the area.
    microns_per_unit
        µm per unit of the coordinates. By default ``microns_per_pixel`` in the scale factors of
        ``uns["spatial"]``, as scanpy and squidpy read Visium HD; it is never guessed.
    min_bins
        Pseudo-spots with fewer counted bins are dropped. By default a quarter of the median of those with any.
    layer
        Layer with the raw counts; ``X`` by default.
    library_key
        Categorical in ``obs`` naming the slide of each bin, each with a lattice of its own. Where the table of a
        ``SpatialData`` annotates several regions, these by default.
    spatial_key
        Coordinates in ``obsm``, shape (bins, 2), x before y. Where they are absent from the table of a
        ``SpatialData``, the centroids of the regions that it annotates.
    key_added
        Where the pseudo-spot of each bin goes.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.

    Returns
    -------
    The pseudo-spots, an ``AnnData`` of its own:

    ``X``, ``var``
        Sums of the raw counts (CSR, float32), and ``var`` of the bins.
    ``obs``
        ``array_row`` and ``array_col`` as Visium counts them, so ``neighborhood_graph`` takes the lattice;
        ``n_bins``, the bins counted; the library. Names are ``"pseudospot_0012x0034"`` (row, column), after the
        library where there is one.
    ``obsm["spatial"]``
        Centres, in the unit of the bins' coordinates.
    ``uns["pseudospot"]``, ``uns["spatial"]``
        ``params``; images and scale factors of the bins with the diameter of the pseudo-spots.

    Writes to the bins

    ``obs["pseudospot"]``
        Name of the pseudo-spot whose hexagon the bin lies in, categorical; missing where it was dropped.
    ``obs["in_pseudospot"]``
        Whether the bin was counted in it.
    ``uns["pseudospot"]``
        ``params``.

    To a ``SpatialData``, the pseudo-spots are added as ``tables["pseudospots"]``, which annotates the circles
    ``shapes["pseudospots_circles"]`` (one element a region, ``"pseudospots_circles_REGION"``, where there are
    several) in the coordinates of the source region, with its transformations. ``obsm["spatial"]`` is taken to be
    in these coordinates.

    Raises
    ------
    KeyError
        If the coordinates, the counts or ``library_key`` are missing.
    ValueError
        If the unit of the coordinates isn't known, a length makes no sense, bins are as large as the pseudo-spots,
        no pseudo-spot has enough bins, or coordinates or counts can't be used.

    Notes
    -----
    The model was trained on Visium spots of 55 µm, 100 µm apart. Whether its predictions on pseudo-spots are as good
    was not tested.

    Examples
    --------
    >>> import anndata, numpy as np
    >>> import sagefm as sg
    >>> counts = np.random.default_rng(0).poisson(0.1, (10_000, 20)).astype("float32")
    >>> bins = anndata.AnnData(counts, obsm={"spatial": 8.0 * np.argwhere(np.ones((100, 100)))})
    >>> spots = sg.pp.pseudospots(bins, microns_per_unit=1.0)
    >>> sg.pp.neighborhood_graph(spots)
    >>> spots.uns["sage_neighbors"]["params"]["method"]
    'visium'
    """
    from anndata import AnnData

    spacing, diameter, min_bins = _check_lengths(spacing, diameter, min_bins)
    sdata = None if isinstance(adata, AnnData) else adata
    inside_key = _keys.IN_PSEUDOSPOT.format(key_added)
    more = [("obs", inside_key)]
    run = open_run(adata, FUNCTION, key_added, _keys.PSEUDOSPOT, ["obs"], more, table_key=table_key, copy=False)
    bins = run.adata
    if inside_key in bins.obs and key_added not in bins.uns:
        raise ValueError(f"adata.obs[{inside_key!r}] exists and wasn't written by this function. Set key_added.")
    if sdata is not None:
        refuse_taken(sdata, *_element_names(key_added)[:2], key_added, FUNCTION)
        library_key = region_library(bins) if library_key is None else library_key
    libraries = split_libraries(bins, library_key)
    labels: list[str | None] = [None] if library_key is None else list(libraries.names)
    found, from_regions = find_coordinates(bins, spatial_key, sdata)
    in_pixels = spatial_key == _keys.SPATIAL and not from_regions
    scales = np.array(find_scales(bins if in_pixels else None, labels, microns_per_unit))
    sources = None if sdata is None else find_regions(bins, libraries)

    hexagons = _find_hexagons(bins, libraries, found, spatial_key, scales, spacing, diameter)
    n_bins = np.bincount(hexagons.of_bin[hexagons.inside], minlength=len(hexagons.library))
    if min_bins is None:
        min_bins = max(1, int(np.ceil(np.median(n_bins[n_bins > 0]) / 4))) if n_bins.any() else 1
    kept = n_bins >= min_bins
    if not kept.any():
        raise ValueError(
            f"no pseudo-spot has min_bins={min_bins} bins: the fullest has {n_bins.max()} of {bins.n_obs} in all. "
            "Set a smaller min_bins or a larger diameter, or check microns_per_unit."
        )
    spot = np.where(kept, np.cumsum(kept) - 1, -1)[hexagons.of_bin]
    inside = hexagons.inside & (spot >= 0)
    library = hexagons.library[kept]
    centers = hexagons.centers[kept] / scales[library, None]
    obs = hexagons.describe(libraries).assign(**{_keys.N_BINS: n_bins})[kept]
    counts = _add_up(Counts(bins, np.arange(bins.n_vars), layer), np.where(inside, spot, -1), len(obs), bins.n_vars)

    params = {
        "spacing": spacing,
        "min_bins": min_bins,
        "microns_per_unit": scales.tolist(),
        "bin_size": hexagons.bin_sizes,
        "spatial_key": spatial_key,
        "diameter": diameter,
        "layer": layer,
        "library_key": library_key,
    }
    uns = {key_added: {"params": run.describe(params)}}
    spots = AnnData(counts, obs=obs, var=bins.var.copy(), obsm={spatial_key: centers}, uns=uns)
    width = spacing if diameter is None else diameter
    if in_pixels and (images := _with_diameter(bins, labels, width / scales)):
        spots.uns[_keys.SPATIAL] = images
    if sdata is not None and sources is not None:
        regions = [sources[number] for number in library]
        spots = add_spots(sdata, spots, centers, width / 2 / scales[library], regions, *_element_names(key_added))

    logger.info(
        "Added up %d of %d bins to %d pseudo-spots (median %d bins; %d with fewer than %d dropped); wrote obs['%s'], "
        "obs['%s'].",
        *(inside.sum(), bins.n_obs, spots.n_obs, np.median(n_bins[kept]), (~kept).sum(), min_bins),
        *(key_added, inside_key),
    )
    recorded = {name: value for name, value in get_record(bins, key_added).items() if name != "params"}
    run.commit(
        {("obs", key_added): pd.Categorical.from_codes(spot, spots.obs_names), ("obs", inside_key): inside},
        params,
        **recorded,
    )
    return spots


@dataclass(frozen=True)
class _Hexagons:
    """Hexagons that have bins, by library, row and column.

    Attributes
    ----------
    library, row, col, centers
        Number of each hexagon's library, its place on the lattice, and its centre in µm.
    of_bin, inside
        Number of each bin's hexagon, and whether the bin is near enough to the centre to count.
    bin_sizes
        Size of the bins of each library in µm.
    """

    library: Ints
    row: Ints
    col: Ints
    centers: Floats
    of_bin: Ints
    inside: Bools
    bin_sizes: list[float]

    def describe(self, libraries: Libraries) -> pd.DataFrame:
        """``obs`` of the hexagons."""
        names = [f"pseudospot_{row:04d}x{col:04d}" for row, col in zip(self.row, self.col, strict=True)]
        obs = pd.DataFrame({_keys.ARRAY_ROW: self.row, _keys.ARRAY_COL: self.col}, index=names)
        if libraries.key is not None:
            obs[libraries.key] = pd.Categorical.from_codes(self.library, libraries.names)
            obs.index = obs[libraries.key].astype(str) + "_" + obs.index
        return obs.rename_axis(None)


def _find_hexagons(
    bins: AnnData,
    libraries: Libraries,
    found: Array,
    spatial_key: str,
    scales: Floats,
    spacing: float,
    diameter: float | None,
) -> _Hexagons:
    """Find the hexagon of every bin, on a lattice for each library."""
    position = np.empty((bins.n_obs, 3), dtype=np.int64)  # library, row, column
    distance, origins, sizes = np.empty(bins.n_obs), np.empty((len(libraries), 2)), []
    for number, (name, rows) in enumerate(libraries.rows()):
        title = libraries.title(name)
        xy = check_coordinates(bins, found, spatial_key, rows, title)
        if xy.shape[1] != 2:
            raise ValueError(f"the coordinates of {title} have {xy.shape[1]} dimensions; pseudo-spots are made in two.")
        xy *= scales[number]
        sizes.append(_bin_size(xy, spacing if diameter is None else diameter, title))
        origins[number] = xy.min(axis=0)
        position[rows, 0] = number
        position[rows, 1:], distance[rows] = nearest_centers(xy - origins[number], spacing)
    code = np.ravel_multi_index(tuple(position.T), position.max(axis=0) + 1)
    _, first, of_bin = np.unique(code, return_index=True, return_inverse=True)
    library, row, col = position[first].T
    centers = lattice_points(row, col, spacing) + origins[library]
    # Bins at the very edge count, whatever their coordinates are rounded to.
    inside = np.full(bins.n_obs, diameter is None) | (distance <= (diameter or spacing) / 2 * (1 + 1e-9))
    return _Hexagons(library, row, col, centers, of_bin, inside, sizes)


def nearest_centers(xy: Floats, spacing: float) -> tuple[Ints, Floats]:
    """Row and column of the nearest centre of the hexagonal lattice through the origin, and the distance to it.

    A point is nearer to its hexagon's centre than rows are apart, so the centre is in one of the two rows that the
    point lies between.
    """
    below = np.floor(xy[:, 1] / (spacing * np.sqrt(0.75))).astype(np.int64)
    best, best_distance = np.empty((len(xy), 2), dtype=np.int64), np.full(len(xy), np.inf)
    for row in (below, below + 1):
        odd = row % 2
        col = odd + 2 * np.floor((2 * xy[:, 0] / spacing - odd) / 2 + 0.5).astype(np.int64)
        distance = np.hypot(*(xy - lattice_points(row, col, spacing)).T)
        nearer = distance < best_distance
        best[nearer] = np.column_stack([row, col])[nearer]
        best_distance[nearer] = distance[nearer]
    return best, best_distance


def lattice_points(row: Ints, col: Ints, spacing: float) -> Floats:
    """Centres of the hexagonal lattice: columns are counted by half steps, as Visium's are."""
    return np.column_stack([col * (spacing / 2), row * (spacing * np.sqrt(0.75))])


def _add_up(counts: Counts, spot: Ints, n_spots: int, n_vars: int) -> sparse.csr_matrix:
    """Sums of the rows of each spot, -1 being none; read in blocks."""
    sums = [sparse.csr_matrix((n_spots, n_vars), dtype=np.float32)]
    step = max(1, BLOCK_VALUES // max(1, n_vars))
    for start in progress(range(0, len(spot), step), "Adding up bins"):
        rows = slice(start, min(start + step, len(spot)))
        block = counts.raw_rows(rows)
        members = np.flatnonzero(spot[rows] >= 0)
        ones = np.ones(len(members), dtype=np.float32)
        which = sparse.csr_matrix((ones, (spot[rows][members], members)), (n_spots, block.shape[0]))
        sums.append(which @ block.astype(np.float32, copy=False))
        sums[-1].sort_indices()  # scipy adds sorted matrices faster
        # Only sums of like size are merged, so that no value is added more often than the logarithm of the blocks.
        while len(sums) > 1 and sums[-2].nnz < 2 * sums[-1].nnz:
            sums.append(sums.pop() + sums.pop())
    total = reduce(add, reversed(sums))
    total.sum_duplicates()
    total.eliminate_zeros()
    return total


def _check_lengths(spacing: object, diameter: object, min_bins: object) -> tuple[float, float | None, int | None]:
    """Refuse lengths that make no pseudo-spots."""
    pitch = check_positive("spacing", spacing)
    width = None if diameter is None else check_positive("diameter", diameter)
    if width is not None and width > pitch:
        raise ValueError(
            f"diameter={diameter} µm is more than spacing={spacing} µm: the discs would overlap, but a bin belongs to "
            "one pseudo-spot only. Set a larger spacing, or diameter=None for whole hexagons."
        )
    return pitch, width, None if min_bins is None else check_whole("min_bins", min_bins, 1)


def _with_diameter(bins: AnnData, labels: list[str | None], diameters: Floats) -> dict[str, Any]:
    """``uns["spatial"]`` of the bins, with another diameter of the spots."""
    images = bins.uns.get(_keys.SPATIAL)
    if not isinstance(images, Mapping):
        return {}
    diameter_of = dict(zip(labels, diameters.tolist(), strict=True))
    return {
        name: {**entry, _keys.SCALEFACTORS: {**entry[_keys.SCALEFACTORS], _keys.SPOT_DIAMETER: diameter}}
        for name, entry in images.items()
        if isinstance(entry, Mapping) and _keys.SCALEFACTORS in entry
        if (diameter := diameter_of.get(None, diameter_of.get(name)))
    }


def _bin_size(xy: Floats, width: float, name: str) -> float:
    """Median distance to the nearest bin, in µm; refused where nothing is left to add up."""
    from scipy.spatial import cKDTree

    if len(xy) < 2:
        raise ValueError(f"{name} has {len(xy)} bins: there is nothing to add up.")
    sample = xy[np.linspace(0, len(xy) - 1, min(len(xy), N_SAMPLED)).astype(int)]
    size = float(np.median(cKDTree(xy, balanced_tree=False).query(sample, k=2)[0][:, 1]))
    if size == 0:
        raise ValueError(
            f"most bins of {name} coincide with another one. If the object holds several slides, pass "
            "library_key='...', the column of obs that tells them apart."
        )
    if size >= width:
        raise ValueError(
            f"the bins of {name} are {size:.3g} µm apart and pseudo-spots {width:g} µm wide, so there is nothing to "
            "add up. Use the bins as they are if that is right, else correct microns_per_unit."
        )
    return size


def _element_names(key: str) -> tuple[str, str, str, str]:
    """Of a SpatialData: the table, its circles, and the columns that link them."""
    names = (_keys.PSEUDOSPOT_TABLE, _keys.PSEUDOSPOT_CIRCLES, _keys.PSEUDOSPOT_REGION, _keys.PSEUDOSPOT_ID)
    return tuple(name.format(key) for name in names)  # type: ignore[return-value]


def get_record(adata: AnnData, key: str) -> dict[str, Any]:
    """What these functions keep in ``uns``."""
    found = adata.uns.get(key)
    return dict(found) if isinstance(found, Mapping) else {}
