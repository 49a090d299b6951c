"""Hexagons around the centers of pseudo-spots, and the bins that lie in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._slides import Libraries
from sagefm._types import Array, Bools, Floats, Ints
from sagefm.pp._graph import check_coordinates

if TYPE_CHECKING:
    from anndata import AnnData

# Bins whose nearest one is looked for, to tell the size of a bin.
N_SAMPLED = 2000


@dataclass(frozen=True)
class Hexagons:
    """Hexagons that have bins, by library, row and column.

    Attributes
    ----------
    library, row, col, centers
        Number of each hexagon's library, its place on the lattice, and its center in µm.
    of_bin, inside
        Number of each bin's hexagon, and whether the bin is near enough to the center to count.
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


def find_hexagons(
    bins: AnnData,
    libraries: Libraries,
    found: Array,
    spatial_key: str,
    scales: Floats,
    spacing: float,
    diameter: float | None,
) -> Hexagons:
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
    return Hexagons(library, row, col, centers, of_bin, inside, sizes)


def nearest_centers(xy: Floats, spacing: float) -> tuple[Ints, Floats]:
    """Row and column of the nearest center of the hexagonal lattice through the origin, and the distance to it.

    A point is nearer to its hexagon's center than rows are apart, so the center is in one of the two rows that the
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
