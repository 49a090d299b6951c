"""Nearest spots on a lattice and in space, with ties that don't depend on chance. Knows arrays only."""

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


def is_hexagonal(positions: Ints) -> bool:
    """Whether row and column have one parity sum, and spots touch along rows and across them."""
    if len(np.unique(positions.sum(axis=1) % 2)) > 1:
        return False
    lookup = _Lookup(positions)
    along = (lookup(positions + np.array([0, 2])) >= 0).mean()
    across = ((lookup(positions + np.array([1, 1])) >= 0) | (lookup(positions + np.array([1, -1])) >= 0)).mean()
    return bool(along > 0.02 and across > 0.02)


class _Lookup:
    """Number of the spot at a lattice position, -1 where there is none."""

    def __init__(self, positions: Ints) -> None:
        self.low = positions.min(axis=0)
        self.span = positions.max(axis=0) - self.low + 1
        code = self._encode(positions)
        self.order = np.argsort(code)
        self.codes = code[self.order]

    def _encode(self, positions: Ints) -> Ints:
        shifted = positions - self.low
        return shifted[..., 0] * self.span[1] + shifted[..., 1]

    def __call__(self, positions: Ints) -> Ints:
        inside = ((positions >= self.low) & (positions < self.low + self.span)).all(axis=-1)
        code = self._encode(positions)
        at = np.minimum(np.searchsorted(self.codes, code), len(self.codes) - 1)
        return np.where(inside & (self.codes[at] == code), self.order[at], -1)


def _lattice_offsets(reach: int) -> Ints:
    """Every offset (Δrow, Δcol, d²) up to ``reach`` rows away, in the order of the neighbourhood."""
    rows, cols = np.arange(-reach, reach + 1), np.arange(-2 * reach, 2 * reach + 1)
    row, col = np.repeat(rows, len(cols)), np.tile(cols, len(rows))
    square = col**2 + 3 * row**2
    # Up to this radius the window is complete: what lies outside is further away.
    keep = ((row + col) % 2 == 0) & (square > 0) & (square <= 3 * reach**2)
    row, col = row[keep], col[keep]
    order = _lattice_order(row, col)
    return np.column_stack([row, col, square[keep]])[order]


def _lattice_order(row: Ints, col: Ints) -> Ints:
    """Order of lattice offsets: by d² = Δcol² + 3Δrow², ties by |Δrow|, then Δcol, then Δrow."""
    return np.lexsort((row, col, abs(row), col**2 + 3 * row**2))


def lattice_neighbors(positions: Ints, k: int) -> tuple[Ints, Floats, float]:
    """Nearest k spots on the hexagonal lattice, their distances in spacings, and the spacing (1)."""
    if len(np.unique(positions.sum(axis=1) % 2)) > 1:
        raise ValueError(
            "array_row + array_col is both even and odd: the spots are on no hexagonal lattice. Use method='knn'."
        )
    n = len(positions)
    lookup = _Lookup(positions)
    neighbors = np.empty((n, k), dtype=np.int64)
    squares = np.empty((n, k), dtype=np.int64)
    filled = np.zeros(n, dtype=np.int64)
    todo = np.arange(n)
    for row, col, square in _lattice_offsets(reach=32):
        found = lookup(positions[todo] + (row, col))
        spots, found = todo[found >= 0], found[found >= 0]
        neighbors[spots, filled[spots]], squares[spots, filled[spots]] = found, square
        filled[spots] += 1
        todo = todo[filled[todo] < k]
        if not len(todo):
            break
    for spot in todo:  # far islands: rank the whole slide
        row, col = (positions - positions[spot]).T
        nearest = _lattice_order(row, col)[1 : k + 1]  # the first is the spot itself
        neighbors[spot], squares[spot] = nearest, (col**2 + 3 * row**2)[nearest]
    return neighbors, np.sqrt(squares) / 2, 1.0


def nearest_neighbors(coordinates: Floats, k: int) -> tuple[Ints, Floats, float]:
    """Nearest k points by Euclidean distance, ties by y, x and number; distances; median spacing."""
    from scipy.spatial import KDTree

    n = len(coordinates)
    tree = KDTree(coordinates)
    nearest = tree.query(coordinates, k=[2], workers=-1)[0][:, 0]
    if not nearest.any():
        raise ValueError(
            "every spot coincides with another one, so the coordinates tell no neighbourhood. If the object holds "
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
