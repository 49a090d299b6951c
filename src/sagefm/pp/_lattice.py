"""Spots on a hexagonal lattice: their positions, checked, and their nearest spots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._types import Floats, Ints

if TYPE_CHECKING:
    from anndata import AnnData


def array_positions(adata: AnnData, spots: Ints) -> Ints:
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


def refuse_doubled(positions: Ints, name: str) -> None:
    n_doubled = len(positions) - len(np.unique(positions, axis=0))
    if n_doubled:
        raise ValueError(
            f"{n_doubled} spots of {name} share their array_row and array_col with another one. If the object holds "
            "several slides, pass library_key='...', the column of obs that tells them apart; else use method='knn'."
        )


def refuse_exchanged(positions: Ints, coordinates: Floats, spatial_key: str, name: str) -> None:
    """Refuse lattice positions whose rows and columns are exchanged, told by the coordinates.

    A step of one row is √3 times as long as a step of one column on the hexagonal lattice, and as long where
    the coordinates are the lattice positions themselves; exchanged, it is 1/√3 times as long.
    """
    steps = np.linalg.lstsq(np.column_stack([positions, np.ones(len(positions))]), coordinates, rcond=None)[0]
    row, col = np.linalg.norm(steps[:2], axis=1)
    if row < 0.75 * col:
        raise ValueError(
            f"array_row and array_col of {name} look exchanged: by obsm[{spatial_key!r}] a step of one row is "
            f"{row / max(col, 1e-12):.2f} times as long as a step of one column, where it should be 1.73 times. "
            "Exchange the columns, or use method='knn'."
        )


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
    """Every offset (Δrow, Δcol, d²) up to ``reach`` rows away, in the order of the neighborhood."""
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
