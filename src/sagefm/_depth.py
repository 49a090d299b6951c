"""The signal beyond depth: how well a gene is predicted once the depth of its spot is known, and how well it could be.

Raw counts follow the depth of the spot, which differs between spots for technical reasons as much as biological ones.
A predictor that knows only the depth reaches a high Pearson r. So we regress predicted and measured log1p counts on a
spline of log depth, and correlate what is left: the partial r given depth.

How high that can get is limited by counting noise. Counts of a spot vary as Poisson's do around what the spot holds,
so nothing can predict part of a gene's variance. We estimate that part from the counts themselves; the rest is
attainable. The assumption is that of count splitting (Neufeld et al. 2024, 10.1093/biostatistics/kxac047). But nothing
is drawn at random, and no formula has to lead from half a count to a whole one, which overstates r.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sagefm._types import Bools, Floats, Ints

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# A spot with fewer counts says nothing about its own depth.
MIN_COUNTS = 10
# A quadratic is not enough: on sections with near-empty spots it leaves depth alone with a correlation.
N_KNOTS, DEGREE = 6, 3
N_COLUMNS = N_KNOTS + DEGREE - 1
# Share of the mean square that has to be left for a residual to count as varying; float32 rounding leaves less.
MIN_RESIDUAL = 1e-9
# Genes seen in more than this share of the spots enter the averages.
MIN_DETECTION = 0.3
# Counts whose noise is tabulated; the noise of larger ones is close to its limit.
LARGE_COUNT = 400


class DepthSpline:
    """Cubic spline of log depth with knots at its quantiles, as a matrix to regress on.

    Parameters
    ----------
    depth
        Counts of every spot of a section.
    """

    def __init__(self, depth: Floats) -> None:
        from sklearn.preprocessing import SplineTransformer

        kept = np.log(depth[depth >= MIN_COUNTS])
        knots = np.unique(np.quantile(kept, np.linspace(0, 1, N_KNOTS)).round(6)) if len(kept) else kept
        self._spline = None
        if len(knots) > 1:  # else all spots have one depth, and a constant takes the spline's place
            spline = SplineTransformer(degree=DEGREE, knots=knots[:, None], extrapolation="constant")
            self._spline = spline.fit(kept[:, None])

    def __call__(self, depth: Floats) -> Floats:
        """Basis functions at some depths, shape (spots, :data:`N_COLUMNS`).

        They add up to 1 in each row, so they hold the constant. Rows of spots to leave out are 0, and so are columns
        that a section with few depths doesn't need.
        """
        kept = depth >= MIN_COUNTS
        basis = np.zeros((len(depth), N_COLUMNS))
        if self._spline is None:
            basis[kept, 0] = 1
        elif kept.any():
            found = self._spline.transform(np.log(depth[kept])[:, None])
            basis[kept, : found.shape[1]] = found
        return basis


def whiten(gram: Floats) -> Floats:
    """Matrix ``w`` with ``w @ w.T`` the inverse of ``gram``, ``basis.T @ basis`` of shape (..., columns, columns).

    The columns of ``basis @ w`` are orthonormal, so a regression on them is a projection. Basis functions that no spot
    reaches drop out.
    """
    values, vectors = np.linalg.eigh(gram)
    known = values > 1e-10 * values.max(axis=-1, keepdims=True)
    return np.asarray(vectors * np.where(known, np.where(known, values, 1) ** -0.5, 0)[..., None, :], dtype=float)


def project(white: Floats, bx: Floats) -> Floats:
    """Coefficients of x on the orthonormal columns, from ``basis.T @ x`` of shape (..., columns, genes)."""
    return np.asarray(np.swapaxes(white, -1, -2) @ bx)


def residual_sums(fit_x: Floats, fit_y: Floats, xx: Floats, yy: Floats, xy: Floats) -> tuple[Floats, Floats, Floats]:
    """Sums of squares and products of what regression on depth leaves of x and y, from sums over spots.

    Parameters
    ----------
    fit_x, fit_y
        What :func:`project` returns for x and y, shape (..., columns, genes).
    xx, yy, xy
        Sums of squares and products, shape (..., genes), over the spots that the basis doesn't leave out.

    Returns
    -------
    Squares of x, squares of y and products, shape (..., genes). They add up over slides, each with its own regression.
    """
    sums = ((xx, fit_x, fit_x), (yy, fit_y, fit_y), (xy, fit_x, fit_y))
    left_x, left_y, both = (total - np.einsum("...cg,...cg->...g", one, other) for total, one, other in sums)
    return left_x, left_y, both


def correlate_residuals(left_x: Floats, left_y: Floats, both: Floats, xx: Floats, yy: Floats) -> Floats:
    """Correlation from what :func:`residual_sums` returns, and the squares before the regression.

    ``y`` is what was measured: NaN where depth explains all of it. 0 where depth explains all of ``x``, the prediction.
    """
    r = both / np.sqrt(np.maximum(left_x, 1e-150)) / np.sqrt(np.maximum(left_y, 1e-150))
    r = np.where(left_x > MIN_RESIDUAL * xx, r.clip(-1, 1), 0.0)
    return np.where(left_y > MIN_RESIDUAL * yy, r, np.nan)


def partial_pearson(white: Floats, bx: Floats, by: Floats, xx: Floats, yy: Floats, xy: Floats) -> Floats:
    """Partial Pearson correlation given depth, shape (..., genes).

    ``white`` is what :func:`whiten` returns, ``bx`` and ``by`` are ``basis.T @ x`` and ``basis.T @ y``; the others are
    those of :func:`residual_sums`.
    """
    return correlate_residuals(*residual_sums(project(white, bx), project(white, by), xx, yy, xy), xx, yy)


def pearson_beyond_depth(prediction: Floats, truth: Floats, basis: Floats) -> Floats:
    """Partial Pearson correlation of each gene given depth, see :func:`partial_pearson`.

    Parameters
    ----------
    prediction, truth
        log1p counts, shape (spots, genes).
    basis
        What :class:`DepthSpline` returns for these spots.
    """
    kept = basis.sum(axis=1)
    squares = (kept @ (a * b) for a, b in ((prediction, prediction), (truth, truth), (prediction, truth)))
    return partial_pearson(whiten(basis.T @ basis), basis.T @ prediction, basis.T @ truth, *squares)


class Attainable(NamedTuple):
    """What a perfect predictor of each gene could reach in a section, each of shape (genes,).

    Attributes
    ----------
    detection
        Share of the spots where the gene was seen.
    r
        Attainable Pearson r with the measured log1p counts; NaN where the gene doesn't vary. Below 0 where the counts
        vary less than Poisson's: nothing is attainable.
    r_beyond_depth
        Attainable partial r given depth.
    significant
        Whether chance rarely makes the attainable r beyond depth as large: two halves of each count would correlate by
        more than ``2 / sqrt(spots)``.
    """

    detection: Floats
    r: Floats
    r_beyond_depth: Floats
    significant: Bools

    def spread(self, genes: Ints, n_genes: int) -> Attainable:
        """Return the same among more genes, of which nothing is known."""
        wide = [np.full(n_genes, np.nan) for _ in range(3)]
        for whole, part in zip(wide, self[:3], strict=True):
            whole[genes] = part
        return Attainable(wide[0], wide[1], wide[2], np.isin(np.arange(n_genes), genes[self.significant]))

    def share(self, r_beyond_depth: Floats) -> Floats:
        """Share of the attainable r beyond depth that each gene's prediction reached; NaN where none is attainable."""
        return np.where(self.significant, r_beyond_depth / np.where(self.significant, self.r_beyond_depth, 1), np.nan)


def attainable(log_counts: csr_matrix, basis: Floats, codes: Ints | None = None) -> Attainable:
    """What a perfect predictor could reach.

    An upper bound: variation that is technical but more than counting noise counts as signal.

    Parameters
    ----------
    log_counts
        log1p counts, shape (spots, genes).
    basis
        What :class:`DepthSpline` returns for these spots, the genes' own counts left out of the depth.
    codes
        Slide of each spot; r beyond depth is within slides. All spots are of one slide by default.
    """
    n_spots, n_kept = len(basis), max(int(basis.any(axis=1).sum()), 1)
    codes = np.zeros(n_spots, dtype=np.int64) if codes is None else codes
    signal = _signal_share([_variances(log_counts, np.ones((n_spots, 1)))])
    beyond = _signal_share([_variances(log_counts[codes == code], basis[codes == code]) for code in np.unique(codes)])
    # The correlation of two halves, if signal and noise are those of the whole.
    halves = beyond / (2 - beyond)
    return Attainable(
        detection=np.bincount(log_counts.indices, log_counts.data > 0, log_counts.shape[1]) / n_spots,
        r=np.sign(signal) * np.sqrt(np.abs(signal)),
        r_beyond_depth=np.sign(beyond) * np.sqrt(np.abs(beyond)),
        significant=np.nan_to_num(halves) > 2 / np.sqrt(n_kept),
    )


def attainable_by_fold(log_counts: csr_matrix, fold_of: Ints) -> Attainable:
    """As :func:`attainable`, with the depth of each fold's genes from the genes outside the fold."""
    counts = log_counts.expm1()
    detection, r, beyond = np.full((3, log_counts.shape[1]), np.nan)
    found = Attainable(detection, r, beyond, np.zeros(log_counts.shape[1], dtype=bool))
    total = np.asarray(counts.sum(axis=1), dtype=float).ravel()
    for fold in np.unique(fold_of):
        genes = np.flatnonzero(fold_of == fold)
        depth = total - np.asarray(counts[:, genes].sum(axis=1), dtype=float).ravel()
        for whole, part in zip(found, attainable(log_counts[:, genes], DepthSpline(depth)(depth)), strict=True):
            whole[genes] = part
    return found


def _variances(log_counts: csr_matrix, basis: Floats) -> Floats:
    """Residual variance of each gene, the counting noise in it, and its mean square, as sums; shape (3, genes)."""
    from scipy.sparse import csr_matrix

    noise = csr_matrix((noise_of(log_counts.data), log_counts.indices, log_counts.indptr), log_counts.shape)
    columns, kept = basis @ whiten(basis.T @ basis), basis.sum(axis=1)
    total = log_counts.multiply(log_counts).T @ kept
    variance = total - ((log_counts.T @ columns) ** 2).sum(axis=1)
    # The fit takes up a little of each spot's noise, as much as the spot's leverage.
    counting = noise.T @ (kept - (columns**2).sum(axis=1))
    return np.stack([variance, counting, total])


def _signal_share(variances: Sequence[Floats]) -> Floats:
    """Share of each gene's residual variance that is not counting noise; NaN where nothing varies."""
    variance, counting, total = np.sum(variances, axis=0)
    varies = variance > MIN_RESIDUAL * total
    return np.where(varies, 1 - counting / np.where(varies, variance, 1), np.nan).clip(-1, 1)


def noise_of(log_counts: Floats) -> Floats:
    """Estimate the noise variance of log1p counts, each from the count alone, without bias if it is Poisson's."""
    counts = np.rint(np.expm1(np.asarray(log_counts, dtype=float)))
    table = _noise_table()
    return np.where(counts < len(table), table[np.minimum(counts, len(table) - 1).astype(int)], _noise_limit(counts))


def _noise_limit(counts: Floats) -> Floats:
    """Noise variance of log1p of a Poisson count of large mean."""
    return counts / (1 + counts) ** 2


@cache
def _noise_table() -> Floats:
    """Noise estimate of each small count.

    The variance of log1p of a Poisson count depends on its mean, which nobody knows. We need a function of the count
    whose expectation is that variance, whatever the mean. Least squares over many means finds it, to 0.02 %; a little
    ridge keeps it smooth.
    """
    from scipy.stats import poisson

    n = np.arange(3.0 * LARGE_COUNT)
    means = np.geomspace(1e-3, 0.6 * LARGE_COUNT, 500)
    chance, log = poisson.pmf(n, means[:, None]), np.log1p(n)
    variance = chance @ log**2 - (chance @ log) ** 2
    start = np.interp(n, means, variance)  # as if the count were the mean
    start[0], start[LARGE_COUNT // 2 :] = 0, _noise_limit(n[LARGE_COUNT // 2 :])
    free = chance[:, 1:LARGE_COUNT] / variance[:, None]
    missing = 1 - chance @ start / variance
    ridge = 1e-4 * len(means) * np.eye(free.shape[1])
    start[1:LARGE_COUNT] += np.linalg.solve(free.T @ free + ridge, free.T @ missing)
    return start[:LARGE_COUNT]


def mean_over_detected(values: Floats, detection: Floats) -> float:
    """Mean over the genes seen in more than 30 % of the spots; NaN where there is none."""
    chosen = (detection > MIN_DETECTION) & np.isfinite(values)
    return float(values[chosen].mean()) if chosen.any() else float("nan")
