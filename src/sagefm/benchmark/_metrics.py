"""Metrics of masked-gene prediction from arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix

from sagefm._depth import DepthSpline, attainable, attainable_by_fold
from sagefm.models._scores import RunningScores, Summary
from sagefm.tl._impute.request import N_FOLDS, gene_folds


def imputation_metrics(
    prediction: ArrayLike,
    truth: ArrayLike,
    mask: ArrayLike,
    *,
    section: ArrayLike | None = None,
    depth: ArrayLike | None = None,
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
    depth
        Counts of each spot, shape (spots,), without those of the genes that are masked there; by default what ``truth``
        holds where nothing is masked.

    Returns
    -------
    ``rmse``
        Root mean squared error over all masked values.
    ``r_beyond_depth``
        Partial Pearson r of each gene within a section, given the depth of the spots: both are regressed on a cubic
        spline of log depth with six knots, and the residuals are correlated. Spots with fewer than 10 counts are left
        out. Averaged over the genes seen in more than 30 % of the section's spots, then over the sections. A
        function of the spot's counts alone has about 0.
    ``attainable_r``
        The same of a perfect predictor: what counting noise leaves (of ``truth``, all its values).
    ``share_attained``
        ``r_beyond_depth / attainable_r``.
    ``r_within``, ``attainable_r_within``
        Pearson r of each gene within a section, averaged over the genes, then over the sections. It mostly measures
        depth. What is attainable is averaged over the genes seen in more than 30 % of the spots.
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
    visible = (np.expm1(t) * ~m).sum(axis=1, dtype=float) if depth is None else np.asarray(depth, dtype=float)
    if visible.shape != (len(p),):
        raise ValueError(f"depth has shape {visible.shape}, prediction has {len(p)} spots.")
    fold_of = gene_folds(p.shape[1], N_FOLDS)
    summary = Summary(p.shape[1])
    for code in np.unique(codes):
        here, scores = codes == code, RunningScores(p.shape[1])
        basis = DepthSpline(visible[here])(visible[here])
        scores.add(*(torch.from_numpy(array) for array in (p[here], t[here], m[here], basis)))
        counts = csr_matrix(t[here])
        summary.add(scores, attainable_by_fold(counts, fold_of) if depth is None else attainable(counts, basis))
    return pd.Series(summary.metrics())
