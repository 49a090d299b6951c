"""Scores of masked-gene prediction, added up block by block: for training and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sagefm._depth import N_COLUMNS, Attainable, mean_over_detected, partial_pearson, whiten
from sagefm._stats import MIN_VARIANCE, adjust_pvalues, pearson_from_moments, pearson_pvalue
from sagefm._types import Bools, Floats, Ints

# Edges of the classes of genes by the share of the spots that show them.
DETECTION_EDGES = (0, 0.05, 0.1, 0.3, 0.6, 1)
# What is known of each gene in each section. The attainable r without "within" is beyond depth.
GENE_METRICS = ("detection", "r_within", "attainable_r_within", "r_beyond_depth", "attainable_r")


class MaskSums:
    """What the masked values of a section share, whoever predicts them.

    Attributes
    ----------
    n, seen
        Masked values of each gene, and those that are not 0.
    gram
        The masked spots differ between genes, and so does what their regression on depth needs: ``basis.T @ basis`` of
        each gene's spots, shape (genes, columns, columns).
    """

    def __init__(self, n_genes: int) -> None:
        self.n, self.seen = np.zeros((2, n_genes))
        self.gram = np.zeros((n_genes, N_COLUMNS, N_COLUMNS))

    def add(self, truth: Tensor, mask: Tensor, basis: Tensor | None = None) -> None:
        """Add spots, see :meth:`RunningScores.add`."""
        self.n += mask.sum(0).cpu().numpy()
        self.seen += ((truth > 0) & mask).sum(0).cpu().numpy()
        if basis is not None:
            pairs = (basis[:, :, None] * basis[:, None, :]).flatten(1)
            self.gram += (mask.double().T @ pairs).cpu().numpy().reshape(self.gram.shape)

    def add_genes(self, genes: Ints, truth: Floats, basis: Floats) -> None:
        """Add all spots of some genes, masked everywhere."""
        self.n[genes] += len(truth)
        self.seen[genes] += (truth > 0).sum(axis=0)
        self.gram[genes] += basis.T @ basis

    @cached_property
    def white(self) -> Floats:
        """What makes each gene's basis orthonormal, once all spots are in."""
        return whiten(self.gram)


class RunningScores:
    """Scores of one predictor on a section as sums, which add up over blocks of spots.

    Per gene over the masked values, with and without what depth explains; and R² per spot.

    Parameters
    ----------
    n_genes
        Number of genes.
    masked
        Sums that several predictors share, which the caller adds up; its own by default.
    """

    def __init__(self, n_genes: int, masked: MaskSums | None = None) -> None:
        self._is_shared = masked is not None
        self.masked = masked or MaskSums(n_genes)
        self.moments = np.zeros((5, n_genes))  # of prediction p and truth t: p, t, p², t², p·t
        self.r2: list[Floats] = []
        self.fits = np.zeros((2, N_COLUMNS, n_genes))  # products of the basis with p and t
        self.squares = np.zeros((3, n_genes))  # p², t², p·t of the spots that have a depth

    def add(self, prediction: Tensor, truth: Tensor, mask: Tensor, basis: Tensor | None = None) -> None:
        """Add spots.

        Parameters
        ----------
        prediction, truth, mask
            Shape (spots, genes).
        basis
            What :class:`sagefm._depth.DepthSpline` says of the spots, shape (spots, columns), float64. Without it
            nothing is known beyond depth.
        """
        if not self._is_shared:
            self.masked.add(truth, mask, basis)
        if basis is None:
            basis = torch.zeros((len(mask), N_COLUMNS), dtype=torch.float64, device=mask.device)
        p, t = prediction.double() * mask, truth.double() * mask
        pp, tt, pt = p * p, t * t, p * t
        # Products with these columns are the sums over all spots, over those with a depth, and the regression's.
        kept = basis.sum(1, keepdim=True)
        columns = torch.cat([torch.ones_like(kept), kept, basis], 1).T
        linear = torch.stack([columns @ part for part in (p, t)]).cpu().numpy()
        squares = torch.stack([columns[:2] @ part for part in (pp, tt, pt)]).cpu().numpy()
        self.moments += np.concatenate([linear[:, 0], squares[:, 0]])
        self.fits += linear[:, 2:]
        self.squares += squares[:, 1]
        # Of a spot over its genes, as the paper: 1 - var(residual) / var(target).
        per_spot = torch.stack([(t - p).sum(1), (tt - 2 * pt + pp).sum(1), t.sum(1), tt.sum(1)])
        self.r2.append(spot_r2(per_spot.cpu().numpy(), mask.sum(1).cpu().numpy()))

    def add_genes(self, genes: Ints, prediction: Floats, truth: Floats, basis: Floats) -> None:
        """Add all spots of some genes, masked everywhere; what is shared, and R² of the spots, is up to the caller."""
        p, t = prediction.astype(float), truth.astype(float)
        products = (p, t, p * p, t * t, p * t)
        self.moments[:, genes] += np.stack([part.sum(axis=0) for part in products])
        self.fits[:, :, genes] += np.stack([basis.T @ part for part in (p, t)])
        self.squares[:, genes] += np.stack([basis.sum(axis=1) @ part for part in products[2:]])

    def gene_r(self) -> tuple[Floats, Bools]:
        """Pearson r of each gene, 0 where prediction or truth is constant; and which genes count.

        A gene counts if a masked value of it is not 0.
        """
        return np.nan_to_num(pearson_from_moments(*self.moments / np.maximum(self.masked.n, 1))), self.moments[1] > 0

    def gene_r_beyond_depth(self) -> Floats:
        """Partial r of each gene given depth; NaN where the truth doesn't vary beyond depth, or depth is unknown."""
        bp, bt = self.fits.transpose(0, 2, 1)[..., None]
        return partial_pearson(self.masked.white, bp, bt, *self.squares[..., None])[:, 0]

    def gene_r2(self) -> Floats:
        """R² of each gene, ``1 - sum of squared errors / sum of squares around the mean``; NaN where constant."""
        _, t, pp, tt, pt = self.moments
        squares = tt - t * t / np.maximum(self.masked.n, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(squares > MIN_VARIANCE * self.masked.n, 1 - (pp - 2 * pt + tt) / squares, np.nan)


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


class Summary:
    """Scores of one predictor over sections, of which one is in memory at a time.

    Parameters
    ----------
    n_genes
        Number of genes.
    """

    def __init__(self, n_genes: int) -> None:
        self._total = RunningScores(n_genes)
        self._sections: list[dict[str, float]] = []
        self._sums = np.zeros((len(GENE_METRICS), n_genes))
        self._n = np.zeros((len(GENE_METRICS), n_genes))

    def add(self, scores: RunningScores, best: Attainable | None = None) -> None:
        """Add a section, and what a perfect predictor could reach there."""
        self._total.masked.n += scores.masked.n
        self._total.moments += scores.moments
        self._total.r2 += scores.r2
        r, counts = scores.gene_r()
        beyond, unknown = scores.gene_r_beyond_depth(), np.full(len(r), np.nan)
        seen = scores.masked.seen / np.maximum(scores.masked.n, 1)
        detection, plain, attainable = (seen, unknown, unknown) if best is None else best[:3]
        rows = (detection, np.where(counts, r, np.nan), plain, beyond, attainable)
        averaged = {name: mean_over_detected(row, detection) for name, row in zip(GENE_METRICS, rows, strict=True)}
        self._sections.append({**averaged, "r_within": float(pd.Series(r[counts]).mean())})
        self._sums += np.nan_to_num(rows)
        self._n += np.isfinite(rows)

    def metrics(self) -> dict[str, float]:
        """All metrics of :func:`sagefm.benchmark.imputation_metrics`."""
        total = self._total
        # As Series: their means skip what isn't defined, and are NaN without a warning where nothing is.
        all_r, counts = total.gene_r()
        r, within = pd.Series(all_r[counts]), pd.DataFrame(self._sections).mean()
        r2_spot, r2_gene = pd.Series(np.concatenate(total.r2)), pd.Series(total.gene_r2()[counts])
        pval = pearson_pvalue(
            all_r[counts], total.masked.n[counts]
        )  # 1 where the prediction is constant, so that r is 0
        _, _, pp, tt, pt = total.moments.sum(1)
        return {
            "rmse": float(np.sqrt((pp - 2 * pt + tt) / total.masked.n.sum())),
            "r_beyond_depth": float(within["r_beyond_depth"]),
            "attainable_r": float(within["attainable_r"]),
            "share_attained": float(within["r_beyond_depth"] / within["attainable_r"]),
            "r_within": float(within["r_within"]),
            "attainable_r_within": float(within["attainable_r_within"]),
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

    def genes(self, names: Sequence[str]) -> pd.DataFrame:
        """Scores of each gene, mean over the sections where it has one."""
        with np.errstate(invalid="ignore"):
            table = pd.DataFrame(dict(zip(GENE_METRICS, self._sums / self._n, strict=True)), index=pd.Index(names))
        return table.assign(share_attained=table["r_beyond_depth"] / table["attainable_r"])

    def classes(self) -> pd.DataFrame:
        """Scores of genes by the share of the spots that show them."""
        table = self.genes([""] * len(self._total.masked.n)).reset_index(drop=True)
        table = table[table["detection"] > 0]
        labels = [f"{low:.0%}-{high:.0%}" for low, high in pairwise(DETECTION_EDGES)]
        grouped = table.groupby(pd.cut(table["detection"], DETECTION_EDGES, labels=labels), observed=True)
        means = grouped[list(GENE_METRICS)[1:]].mean()
        means["share_attained"] = means["r_beyond_depth"] / means["attainable_r"]
        return means.assign(n_genes=grouped.size()).rename(index=str)
