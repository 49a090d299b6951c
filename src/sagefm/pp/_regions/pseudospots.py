"""Bins and cells of high resolution, added up to spots like those that the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from sagefm import _keys
from sagefm._anndata import open_run
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._slides import split_libraries
from sagefm._types import Bools, Floats, Ints
from sagefm._utils import check_positive, check_whole, progress
from sagefm.pp._counts import Counts
from sagefm.pp._graph import find_coordinates
from sagefm.pp._regions.hexagons import find_hexagons
from sagefm.pp._regions.regions import add_spots, find_regions, refuse_taken, region_library
from sagefm.pp._regions.units import find_scales

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

FUNCTION = "pp.pseudospots"
# Values of a block of rows if it were dense: 256 MB in float32.
BLOCK_VALUES = 2**26


@fill_docstring
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
    x and y of the slide. A bin belongs to the hexagon of the nearest center, and is counted where it lies
    within half the ``diameter`` of it.

    Parameters
    ----------
    adata
        Slide of bins or cells with raw counts, or several slides told apart by ``library_key``.
    diameter
        Diameter of a pseudo-spot in µm, at most ``spacing``. ``None`` counts every bin of the hexagon.
    spacing
        Distance of neighboring centers in µm. The defaults are Visium's, and leave out about 73 % of the area.
    microns_per_unit
        µm per unit of the coordinates. By default ``microns_per_pixel`` in the scale factors of
        ``uns["spatial"]``, as scanpy and squidpy read Visium HD; it is never guessed.
    min_bins
        Pseudo-spots with fewer counted bins are dropped. By default a quarter of the median of those with any.
    {layer}
    library_key
        Categorical in ``obs`` naming the slide of each bin, each with a lattice of its own. Where the table of a
        ``SpatialData`` annotates several regions, these by default.
    spatial_key
        Coordinates in ``obsm``, shape (bins, 2), x before y. Where they are absent from the table of a
        ``SpatialData``, the centroids of the regions that it annotates.
    key_added
        Column of ``obs`` to write the pseudo-spot of each bin to.
    {table_key}

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
    >>> bins = anndata.AnnData(counts, obsm={{"spatial": 8.0 * np.argwhere(np.ones((100, 100)))}})
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

    hexagons = find_hexagons(bins, libraries, found, spatial_key, scales, spacing, diameter)
    n_bins = np.bincount(hexagons.of_bin[hexagons.inside], minlength=len(hexagons.library))
    kept, min_bins = _keep(n_bins, min_bins, bins.n_obs)
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


def _keep(n_bins: Ints, min_bins: int | None, n_in_all: int) -> tuple[Bools, int]:
    """Pseudo-spots with enough bins, and how many that is."""
    if min_bins is None:
        min_bins = max(1, int(np.ceil(np.median(n_bins[n_bins > 0]) / 4))) if n_bins.any() else 1
    kept = n_bins >= min_bins
    if not kept.any():
        raise ValueError(
            f"no pseudo-spot has min_bins={min_bins} bins: the fullest has {n_bins.max()} of {n_in_all} in all. "
            "Set a smaller min_bins or a larger diameter, or check microns_per_unit."
        )
    return kept, min_bins


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


def _element_names(key: str) -> tuple[str, str, str, str]:
    """Of a SpatialData: the table, its circles, and the columns that link them."""
    names = (_keys.PSEUDOSPOT_TABLE, _keys.PSEUDOSPOT_CIRCLES, _keys.PSEUDOSPOT_REGION, _keys.PSEUDOSPOT_ID)
    return tuple(name.format(key) for name in names)  # type: ignore[return-value]


def get_record(adata: AnnData, key: str) -> dict[str, Any]:
    """What these functions keep in ``uns``."""
    found = adata.uns.get(key)
    return dict(found) if isinstance(found, Mapping) else {}
