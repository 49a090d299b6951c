"""Scores of masked-gene prediction, added up block by block: for training and for evaluation."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sagefm._stats import MIN_VARIANCE, adjust_pvalues, pearson_from_moments, pearson_pvalue
from sagefm._types import Bools, Floats, Ints


class RunningScores:
    """Scores of some spots as sums, which add up over blocks: per gene over the masked values, and R² per spot."""

    def __init__(self, n_genes: int) -> None:
        self.n = np.zeros(n_genes)
        self.moments = np.zeros((5, n_genes))  # of prediction p and truth t: p, t, p², t², p·t
        self.r2: list[Floats] = []

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

    def __iadd__(self, other: RunningScores) -> RunningScores:
        self.n = self.n + other.n
        self.moments = self.moments + other.moments
        self.r2 = self.r2 + other.r2
        return self

    def gene_r(self) -> tuple[Floats, Bools]:
        """Pearson r of each gene, 0 where prediction or truth is constant; and which genes count.

        A gene counts if a masked value of it is not 0.
        """
        return np.nan_to_num(pearson_from_moments(*self.moments / np.maximum(self.n, 1))), self.moments[1] > 0

    def gene_r2(self) -> Floats:
        """R² of each gene, ``1 - sum of squared errors / sum of squares around the mean``; NaN where constant."""
        _, t, pp, tt, pt = self.moments
        squares = tt - t * t / np.maximum(self.n, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(squares > MIN_VARIANCE * self.n, 1 - (pp - 2 * pt + tt) / squares, np.nan)


def spot_r2(sums: Floats, n: Ints | int) -> Floats:
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


def summarize(sections: Iterable[RunningScores]) -> dict[str, float]:
    """All metrics of :func:`sagefm.benchmark.imputation_metrics` from the scores of each section."""
    parts = list(sections)
    total = RunningScores(len(parts[0].n))
    for part in parts:
        total += part
    # As Series: their means skip what isn't defined, and are NaN without a warning where nothing is.
    all_r, counts = total.gene_r()
    r = pd.Series(all_r[counts])
    within = pd.Series([pd.Series(part_r[part_counts]).mean() for part_r, part_counts in (x.gene_r() for x in parts)])
    r2_spot, r2_gene = pd.Series(np.concatenate(total.r2)), pd.Series(total.gene_r2()[counts])
    pval = pearson_pvalue(all_r[counts], total.n[counts])  # 1 where the prediction is constant, so that r is 0
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
        "share_p05": float(pd.Series(pval < 0.05).mean()),
        "share_padj05": float(pd.Series(adjust_pvalues(pval) < 0.05).mean()),
        "share_r01": float((r > 0.1).mean()),
        "share_r03": float((r > 0.3).mean()),
        "n_spots": len(r2_spot),
        "n_genes": int(counts.sum()),
    }
