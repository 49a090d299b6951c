"""Regions of a SpatialData that a table annotates: where its rows lie, and circles for rows that are new."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm._slides import Libraries
from sagefm._types import Floats
from sagefm._utils import shorten

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

LINK = "spatialdata.models.TableModel.parse(table, region=..., region_key=..., instance_key=...)"


def region_key(table: AnnData) -> str | None:
    """Column of ``obs`` that names the region of each row; ``None`` where the table annotates none."""
    from spatialdata.models import TableModel, get_table_keys

    return get_table_keys(table)[1] if table.uns.get(TableModel.ATTRS_KEY) else None


def region_library(table: AnnData) -> str | None:
    """The same, where the rows lie in several regions: coordinates of two regions can't be compared."""
    key = region_key(table)
    return key if key is not None and table.obs[key].nunique() > 1 else None


def find_regions(table: AnnData, libraries: Libraries) -> list[str | None]:
    """Region that each library lies in; ``None`` where the table annotates none."""
    key = region_key(table)
    if key is None:
        return [None] * len(libraries)
    regions = table.obs[key].to_numpy()
    sources: list[str | None] = []
    for name, rows in libraries.rows():
        found = np.unique(regions[rows].astype(str))
        if len(found) > 1:
            raise ValueError(
                f"{libraries.title(name)} lies in regions {shorten(found)}, whose coordinates can't be compared. "
                f"Leave library_key out (now {libraries.key!r}), or pass the table alone if you know that they can."
            )
        sources.append(str(found[0]))
    return sources


def region_coordinates(sdata: SpatialData, table: AnnData) -> Floats:
    """Centroids of the regions' instances that the rows of a table annotate, in the regions' own coordinates.

    Not in a shared coordinate system: so they are what readers of spatialdata-io put into ``obsm["spatial"]``,
    and a slide keeps its unit whatever it is aligned with.

    Raises
    ------
    KeyError
        If the table annotates no regions, or a region or an instance is missing.
    ValueError
        If the instances of a region are not unique, or regions have two and three dimensions.
    """
    from spatialdata.models import get_table_keys

    key = region_key(table)
    if key is None:
        raise KeyError(f"the table annotates no regions (uns has no 'spatialdata_attrs'). Link them: {LINK}.")
    regions, instances = table.obs[key], table.obs[get_table_keys(table)[2]]
    parts, rows = [], []
    for name in regions.unique():
        if name not in sdata:
            raise KeyError(f"region {name!r} that the table annotates is not in the SpatialData.")
        centroids = _centroids(sdata[name])
        if not centroids.index.is_unique:
            raise ValueError(f"region {name!r} has several instances of one name, so rows can't be told apart.")
        rows.append(np.flatnonzero((regions == name).to_numpy()))
        found = centroids.index.get_indexer(instances.iloc[rows[-1]])
        if (found < 0).any():
            missing = instances.iloc[rows[-1][found < 0]]
            raise KeyError(
                f"{len(missing)} rows of the table annotate instances that region {name!r} lacks: "
                f"{shorten(missing)}. Remove them, or link the table again: {LINK}."
            )
        parts.append(centroids[[axis for axis in "xyz" if axis in centroids]].to_numpy(np.float64)[found])
    if len({part.shape[1] for part in parts}) > 1:
        raise ValueError(f"regions {shorten(regions.unique())} have two and three dimensions.")
    coordinates = np.empty((table.n_obs, parts[0].shape[1]))
    coordinates[np.concatenate(rows)] = np.concatenate(parts)
    return coordinates


def _centroids(element: Any) -> pd.DataFrame:
    """Centroids of the instances of an element, in its own coordinates."""
    from spatialdata import get_centroids
    from spatialdata.transformations import Identity, set_transformation
    from xarray import DataTree

    if isinstance(element, DataTree):  # labels at several scales
        finest: Any = element["scale0"]
        element = next(iter(finest.values()))
    element = element.copy(deep=False)
    set_transformation(element, {"own": Identity()}, set_all=True)
    return get_centroids(element, "own").compute()


def refuse_taken(sdata: SpatialData, table: str, shapes: str, key: str, function: str) -> None:
    """Refuse to replace elements that an earlier call of the function didn't make; ``key`` is of its ``uns``."""
    ours = table in sdata.tables and sdata.tables[table].uns.get(key, {}).get("params", {}).get("function") == function
    taken = [element for element in (table, shapes) if element in sdata]
    if taken and not ours:
        raise ValueError(f"the SpatialData has an element {taken[0]!r} that isn't of this function. Set key_added.")


def add_spots(
    sdata: SpatialData,
    spots: AnnData,
    centers: Floats,
    radius: Floats,
    sources: list[str | None],
    table: str,
    shapes: str,
    region_key: str,
    instance_key: str,
) -> AnnData:
    """Add spots as circles in the coordinates of the regions that they come from, and as a table that annotates them.

    ``sources`` are the regions, one of each spot.
    """
    import pandas as pd

    regions, code = np.unique([source or "" for source in sources], return_inverse=True)
    names = [f"{shapes}_{region}" if len(regions) > 1 else shapes for region in regions]
    elements = {}
    for number, (name, region) in enumerate(zip(names, regions, strict=True)):
        of = code == number
        if of.any():
            elements[name] = _circles(sdata, str(region) or None, centers[of], radius[of], spots.obs_names[of])
    column = pd.Categorical.from_codes(code, names).remove_unused_categories()
    spots = _link(spots, column, region_key, instance_key)
    for name, element in elements.items():
        sdata.shapes[name] = element
    sdata.tables[table] = spots
    return spots


def _circles(
    sdata: SpatialData, source: str | None, coordinates: Floats, radius: Floats, names: pd.Index
) -> GeoDataFrame:
    """Circles in the coordinates of a region, with its transformations."""
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    found = {} if source is None else dict(get_transformation(sdata[source], get_all=True))
    return ShapesModel.parse(coordinates, geometry=0, radius=radius, index=names, transformations=found or None)


def _link(table: AnnData, regions: pd.Categorical, region_key: str, instance_key: str) -> AnnData:
    """Make the rows of a table annotate shapes: each the instance of its own name, in the region named for it."""
    from spatialdata.models import TableModel

    table.obs[region_key], table.obs[instance_key] = regions, table.obs_names.to_numpy()
    return TableModel.parse(table, region=list(regions.categories), region_key=region_key, instance_key=instance_key)
