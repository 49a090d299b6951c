"""Metrics of masked-gene prediction, added up block by block."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor

# Below this a variance is rounding.
MIN_VARIANCE = 1e-10


class Sums:
    """What the metrics of some spots are made of: sums per gene over the masked values, and R² per spot."""

    def __init__(self, n_genes: int) -> None:
        self.n = np.zeros(n_genes)
        self.moments = np.zeros((5, n_genes))  # of prediction p and truth t: p, t, p², t², p·t
        self.r2: list[NDArray[np.float64]] = []

    def add(self, prediction: Tensor, truth: Tensor, mask: Tensor) -> None:
        """Add spots; all three of shape (spots, genes)."""
        n = mask.sum(1)
        p, t = prediction * mask, truth * mask
        products = (p, t, p * p, t * t, p * t)
        self.n += mask.sum(0).cpu().numpy()
        self.moments += np.stack([product.sum(0, dtype=torch.float64).cpu().numpy() for product in products])
        # Of a spot over its genes, as the paper: 1 - var(residual) / var(target).
        residual = t - p
        per_spot = torch.stack(
            [values.sum(1, dtype=torch.float64) for values in (residual, residual * residual, t, products[3])]
        )
        self.r2.append(spot_r2(per_spot.cpu().numpy(), n.cpu().numpy()))

    def __iadd__(self, other: Sums) -> Sums:
        self.n = self.n + other.n
        self.moments = self.moments + other.moments
        self.r2 = self.r2 + other.r2
        return self

    def gene_r(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Pearson r of each gene, 0 where prediction or truth is constant; and which genes count.

        A gene counts if a masked value of it is not 0.
        """
        p, t, pp, tt, pt = self.moments / np.maximum(self.n, 1)
        var_p, var_t = pp - p * p, tt - t * t
        scale = np.sqrt(np.maximum(var_p, MIN_VARIANCE) * np.maximum(var_t, MIN_VARIANCE))
        varies = (var_p > MIN_VARIANCE) & (var_t > MIN_VARIANCE)
        return np.where(varies, (pt - p * t) / scale, 0.0).clip(-1, 1), self.moments[1] > 0

    def gene_r2(self) -> NDArray[np.float64]:
        """R² of each gene, ``1 - sum of squared errors / sum of squares around the mean``; NaN where constant."""
        _, t, pp, tt, pt = self.moments
        squares = tt - t * t / np.maximum(self.n, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(squares > MIN_VARIANCE * self.n, 1 - (pp - 2 * pt + tt) / squares, np.nan)


def spot_r2(sums: NDArray[np.float64], n: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """R² of each spot, NaN where its values don't vary.

    Parameters
    ----------
    sums
        Sums over n genes of the residual, its square, the truth and its square, shape (4, spots).
    n
        Number of genes of each spot.
    """
    first, second, first_t, second_t = sums / np.maximum(n, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = 1 - (second - first**2) / (second_t - first_t**2)
    return np.where(second_t - first_t**2 > MIN_VARIANCE, r2, np.nan)


def summarize(sections: Iterable[Sums]) -> dict[str, float]:
    """All metrics of :func:`imputation_metrics` from the sums of each section."""
    parts = list(sections)
    total = Sums(len(parts[0].n))
    for part in parts:
        total += part
    # As Series: their means skip what isn't defined, and are NaN without a warning where nothing is.
    all_r, counts = total.gene_r()
    r, n = pd.Series(all_r[counts]), total.n[counts]
    within = pd.Series([pd.Series(part_r[part_counts]).mean() for part_r, part_counts in (x.gene_r() for x in parts)])
    r2_spot, r2_gene = pd.Series(np.concatenate(total.r2)), pd.Series(total.gene_r2()[counts])
    # t-test of r; a constant prediction has r 0 and p 1.
    statistic = r.abs() * np.sqrt(np.maximum(n - 2, 1) / np.maximum(1 - r * r, 1e-12))
    pval = pd.Series(2 * stats.t.sf(statistic, np.maximum(n - 2, 1)))
    adjusted = pd.Series(stats.false_discovery_control(pval)) if len(pval) else pval
    _, _, pp, tt, pt = total.moments.sum(1)
    return {
        "rmse": float(np.sqrt((pp - 2 * pt + tt) / total.n.sum())),
        "r_within": float(within.mean()),
        "r_pooled": float(r.mean()),
        "r_pooled_median": float(r.median()),
        "r2_spot": float(r2_spot.mean()),
        "r2_spot_median": float(r2_spot.median()),
        "r2_gene": float(r2_gene.mean()),
        "r2_gene_median": float(r2_gene.median()),
        "share_p05": float((pval < 0.05).mean()),
        "share_padj05": float((adjusted < 0.05).mean()),
        "share_r01": float((r > 0.1).mean()),
        "share_r03": float((r > 0.3).mean()),
        "n_spots": len(r2_spot),
        "n_genes": int(counts.sum()),
    }


def imputation_metrics(
    prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike, *, section: ArrayLike | None = None
) -> pd.Series:
    """Compare predicted with measured log1p counts where they were masked.

    Parameters
    ----------
    prediction, truth
        log1p counts, shape (spots, genes).
    mask
        Which values were masked, boolean, shape (spots, genes). Only these count.
    section
        Section of each spot, shape (spots,); one section by default.

    Returns
    -------
    ``rmse``
        Root mean squared error over all masked values.
    ``r_within``
        Pearson r of each gene within a section, averaged over the genes, then over the sections.
    ``r_pooled``, ``r_pooled_median``
        Pearson r of each gene over all spots, averaged over the genes. Over many tissues it mostly measures
        differences between them.
    ``r2_spot``, ``r2_spot_median``
        R² of each spot over its masked genes, ``1 - var(residual) / var(target)``, as in the paper. (The
        published script takes every 15th of the central spots only; here all count.)
    ``r2_gene``, ``r2_gene_median``
        R² of each gene over all spots, ``1 - squared error / squares around the mean``.
    ``share_p05``, ``share_padj05``
        Share of genes with p < 0.05 (two-sided t-test of ``r_pooled``), plain as in the paper and adjusted
        by Benjamini and Hochberg. With 100,000 spots nearly every r is significant, so look at the next two.
    ``share_r01``, ``share_r03``
        Share of genes with ``r_pooled`` above 0.1 and 0.3.
    ``n_spots``, ``n_genes``
        How many spots and genes entered. A gene enters if one of its masked values is not 0; its r is 0 where
        the prediction or the truth is constant.

    Sections where no gene enters don't count in ``r_within``, nor spots and genes whose values don't vary in the R²;
    where nothing is left a metric is NaN.

    Raises
    ------
    ValueError
        If the shapes don't agree or nothing is masked.

    Examples
    --------
    >>> import numpy as np
    >>> import sagefm as sg
    >>> truth = np.log1p(np.random.default_rng(0).poisson(2, (50, 20)))
    >>> mask = np.ones_like(truth, dtype=bool)
    >>> float(sg.benchmark.imputation_metrics(truth, truth, mask)["rmse"])
    0.0
    """
    p, t = np.asarray(prediction, dtype=np.float32), np.asarray(truth, dtype=np.float32)
    m = np.asarray(mask, dtype=bool)
    if p.ndim != 2 or not p.shape == t.shape == m.shape:
        raise ValueError(f"prediction, truth and mask have shapes {p.shape}, {t.shape} and {m.shape}: give one to all.")
    if not m.any():
        raise ValueError("mask is False everywhere, so there is nothing to compare.")
    codes = np.zeros(len(p), dtype=int) if section is None else pd.factorize(np.asarray(section))[0]
    if len(codes) != len(p):
        raise ValueError(f"section names {len(codes)} spots, prediction has {len(p)}.")
    parts = []
    for code in np.unique(codes):
        rows = codes == code
        sums = Sums(p.shape[1])
        sums.add(*(torch.from_numpy(array[rows]) for array in (p, t, m)))
        parts.append(sums)
    return pd.Series(summarize(parts))
