"""What is counted while spots are perturbed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sagefm._types import Floats

T = TypeVar("T", bound=np.generic)

CHANGED = 1e-8  # of a predicted log1p count, as in the paper


@dataclass(frozen=True)
class Libraries:
    """Group of every spot."""

    names: list[str]
    codes: NDArray[np.int64]


@dataclass
class Tally:
    """Responses counted by library, each array of shape (libraries, pairs) unless said otherwise."""

    n_spots: NDArray[np.int64]
    n_up: Floats
    n_down: Floats
    change: Floats
    doses: Floats  # (levels, pairs), sums over all spots
    spots: NDArray[np.float32] | None = None  # (spots, pairs)

    def total(self) -> Tally:
        """Over all libraries, kept as an axis of length 1."""

        def add(array: NDArray[T]) -> NDArray[T]:
            return array.sum(axis=0, keepdims=True)

        return Tally(add(self.n_spots), add(self.n_up), add(self.n_down), add(self.change), self.doses)

    @property
    def mean_delta(self) -> Floats:
        """Mean change over all spots, shape (pairs,)."""
        return self.change.sum(axis=0) / self.n_spots.sum()


@dataclass(frozen=True)
class Moments:
    """First and second moments of ligands in the neighbours (x) and receptors in the centre (y), by pair."""

    n: Floats
    x: Floats
    y: Floats
    xx: Floats
    yy: Floats
    xy: Floats

    def total(self) -> Moments:
        """Over all libraries, kept as an axis of length 1."""
        return Moments(*(getattr(self, name).sum(axis=0, keepdims=True) for name in self.__dataclass_fields__))

    def table(self) -> dict[str, Floats]:
        """Pearson r and its p-value, missing where either side doesn't vary."""
        mean_x, mean_y = self.x / self.n, self.y / self.n
        sd_x, sd_y = (
            np.sqrt(np.maximum(squares / self.n - mean**2, 0))
            for squares, mean in ((self.xx, mean_x), (self.yy, mean_y))
        )
        covariance = self.xy / self.n - mean_x * mean_y
        # What is left of a constant by rounding is no variance.
        varies = (sd_x > 1e-6) & (sd_y > 1e-6) & (self.n > 2)
        r = np.divide(covariance, sd_x * sd_y, out=np.full(covariance.shape, np.nan), where=varies).clip(-1, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = r * np.sqrt((self.n - 2) / (1 - r**2))
        return {
            "reference_r": r,
            "reference_pval": 2 * stats.t.sf(np.abs(t), np.maximum(self.n - 2, 1)),
        }
