"""Statistics that several rooms need: correlation, p-values, ranks, and draws of spatial blocks. Knows arrays only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagefm._types import Floats

# Rounding leaves the variance of a constant a little above zero; log1p counts that vary have far more than this.
MIN_VARIANCE = 1e-10


def pearson_from_moments(
    x: Floats, y: Floats, xx: Floats, yy: Floats, xy: Floats, *, constant_x: float = 0.0
) -> Floats:
    """Pearson correlation from means: of x, y, their squares and their product.

    The means add up over blocks of spots, so no array of all spots is needed. ``y`` is what was measured: where it is
    constant there is no correlation, NaN. Where ``x``, the prediction, is constant, the result is ``constant_x``.
    """
    var_x, var_y = xx - x * x, yy - y * y
    scale = np.sqrt(np.maximum(var_x, MIN_VARIANCE) * np.maximum(var_y, MIN_VARIANCE))
    r = np.where(var_x > MIN_VARIANCE, ((xy - x * y) / scale).clip(-1, 1), constant_x)
    return np.where(var_y > MIN_VARIANCE, r, np.nan)


def pearson(x: NDArray[Any], y: NDArray[Any], axis: int = 0) -> Floats:
    """Pearson correlation along an axis; NaN where ``y`` is constant, else 0 where ``x`` is."""
    # Centered first: of large values with little variance the moments' difference would be rounding.
    x, y = (part - part.mean(axis=axis, dtype=np.float64, keepdims=True) for part in (x, y))
    zero = np.zeros(())
    return pearson_from_moments(zero, zero, *((a * b).mean(axis=axis) for a, b in ((x, x), (y, y), (x, y))))


def pearson_pvalue(r: Floats, n: float | Floats) -> Floats:
    """Two-sided p-value of a Pearson correlation of n pairs, by Student's t."""
    from scipy.stats import t

    freedom = np.maximum(np.asarray(n) - 2, 1)
    return np.asarray(2 * t.sf(np.abs(r) * np.sqrt(freedom / np.maximum(1 - r * r, 1e-12)), freedom))


def adjust_pvalues(pval: Floats) -> Floats:
    """Adjust p-values by Benjamini and Hochberg; NaN stays NaN and does not count as a test."""
    from scipy.stats import false_discovery_control

    adjusted = np.full(len(pval), np.nan)
    known = np.isfinite(pval)
    if known.any():
        adjusted[known] = false_discovery_control(pval[known])
    return adjusted


def draw_blocks(n_blocks: int, n_draws: int, seed: int) -> Floats:
    """How often each block is drawn in each bootstrap draw, shape (draws, blocks).

    Neighboring spots are alike, so single spots are no independent draws; whole blocks of tissue nearly are.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), n_draws).astype(float)
