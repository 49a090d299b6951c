"""Counts at a common depth, for the baselines and the tests of genes; the model takes them as they are."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from sagefm._settings import ROWS_AT_A_TIME
from sagefm.pp._counts import Counts

if TYPE_CHECKING:
    from anndata import AnnData


def read_counts(adata: AnnData, layer: str | None) -> AnnData:
    """Raw counts of every gene, checked, as an object that may be changed."""
    from anndata import AnnData

    columns = np.arange(adata.n_vars)
    slide = AnnData(Counts(adata, columns, layer).log1p(columns, ROWS_AT_A_TIME).expm1())
    slide.var_names = adata.var_names
    return slide


def normalize_total(slide: AnnData, target: float | None = None) -> float:
    """Scale every spot to a total, by default to the median of those that have counts; returns it.

    scanpy's own default counts the others in, and scales everything to zero where they are the half.
    """
    import scanpy as sc

    totals = np.asarray(slide.X.sum(axis=1), dtype=float).ravel()
    if target is None:
        target = float(np.median(totals[totals > 0])) if (totals > 0).any() else 1.0
    if (totals > 0).any():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Some cells have zero counts")
            sc.pp.normalize_total(slide, target_sum=target)
    return target


def check_variety(slide: AnnData, n: int, name: str) -> None:
    """Refuse slides whose spots differ in too few ways for so many dimensions."""
    # Spots alike have one sum, whatever the weights.
    sums = np.asarray(slide.X @ np.random.default_rng(0).random(slide.n_vars), dtype=float)
    n_kinds = len(np.unique(sums.round(6)))
    if n_kinds <= n:
        raise ValueError(f"the slide has {n_kinds} kinds of spots by their counts, too few for {name}={n}.")
