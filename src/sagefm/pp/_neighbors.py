"""Nearest spots in space, with ties that don't depend on chance. Knows arrays only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sagefm._types import Floats, Ints

if TYPE_CHECKING:
    from scipy.spatial import KDTree


# Distances are compared on a grid this fine, in units of the median spacing.
TIE_TOLERANCE = 1e-6
# Points looked up together, and the side of the squares (in spacings) that they are taken from in turn.
POINTS_AT_A_TIME, SIDE = 32_768, 64


def nearest_neighbors(coordinates: Floats, k: int) -> tuple[Ints, Floats, float]:
    """Nearest k points by Euclidean distance, ties by y, x and number; distances; median spacing."""
    from scipy.spatial import KDTree

    n = len(coordinates)
    tree = KDTree(coordinates)
    nearest = tree.query(coordinates, k=[2], workers=-1)[0][:, 0]
    if not nearest.any():
        raise ValueError(
            "every spot coincides with another one, so the coordinates tell no neighborhood. If the object holds "
            "several slides, pass library_key='...', the column of obs that tells them apart."
        )
    spacing = float(np.median(nearest[nearest > 0]))
    neighbors = np.empty((n, k), dtype=np.int64)
    distances = np.empty((n, k))
    # Points near each other are looked up together, which finds their part of the tree in the cache.
    place = np.floor((coordinates - coordinates.min(axis=0)) / (SIDE * spacing))
    order = np.lexsort(place.T)
    for start in range(0, n, POINTS_AT_A_TIME):
        points = order[start : start + POINTS_AT_A_TIME]
        neighbors[points], distances[points] = _rank(tree, coordinates, points, k, TIE_TOLERANCE * spacing)
    return neighbors, distances, spacing


def _rank(tree: KDTree, coordinates: Floats, todo: Ints, k: int, grid: float) -> tuple[Ints, Floats]:
    """Nearest k of some points, and their distances."""
    n = len(coordinates)
    neighbors, distances = np.empty((len(todo), k), dtype=np.int64), np.empty((len(todo), k))
    # More than k are fetched, until those tied with the k-th are all among them.
    left, n_queried = np.arange(len(todo)), min(n, 2 * k + 4)
    while len(left):
        incomplete = []
        size = max(1, POINTS_AT_A_TIME * (2 * k + 4) // n_queried)
        for start in range(0, len(left), size):
            part = left[start : start + size]
            points = todo[part]
            distance, found = tree.query(coordinates[points], k=n_queried, workers=-1)
            rounded = np.rint(distance / grid)
            offset = np.rint((coordinates[found] - coordinates[points][:, None]) / grid)
            rounded[found == points[:, None]] = -1  # the spot itself goes first, then out
            keys = (found, *(offset[..., axis] for axis in (2, 0, 1) if axis < offset.shape[2]), rounded)
            order = np.lexsort(keys, axis=1)
            ranked = np.take_along_axis(rounded, order, axis=1)
            complete = (ranked[:, 0] == -1) & (ranked[:, k] < ranked[:, -1])
            if n_queried == n:
                complete[:] = True
            done, chosen = part[complete], order[complete, 1 : k + 1]
            neighbors[done] = np.take_along_axis(found[complete], chosen, axis=1)
            distances[done] = np.take_along_axis(distance[complete], chosen, axis=1)
            incomplete.append(part[~complete])
        left, n_queried = np.concatenate(incomplete), min(n, 2 * n_queried)
    return neighbors, distances


def lattice_of(nearest: Floats) -> tuple[str, float]:
    """Whether spots lie on a ``"hexagonal"`` or ``"square"`` lattice or are ``"irregular"``, and their spacing.

    Told by how far the fourth and the sixth nearest are, in spacings: 1 and 1 on the hexagonal lattice, 1 and 1.41 on
    the square one. Lattices may be a little out of line.

    Parameters
    ----------
    nearest
        Distances of each spot to its nearest ones, ascending, shape (spots, at least 6).
    """
    spacing = float(np.median(nearest[:, 0]))
    if not spacing > 0:
        return "irregular", spacing
    fourth, sixth = np.median(nearest[:, [3, 5]], axis=0) / spacing
    if fourth > 1.3:
        return "irregular", spacing
    return ("hexagonal" if sixth < 1.25 else "square"), spacing
