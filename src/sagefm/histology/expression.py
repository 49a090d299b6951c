"""Expression to learn from, and what learns it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sagefm._settings import ROWS_AT_A_TIME
from sagefm._types import Array, Bools, Floats32, Ints, Strings
from sagefm._utils import check_whole, shorten
from sagefm.pp._counts import Counts
from sagefm.pp._genes import hint_at_names
from sagefm.tl._labels import classifiers

if TYPE_CHECKING:
    from anndata import AnnData

# From inputs (features or pixels of spots) to log1p expression.
Predictor = Callable[[Array], Floats32]

PENALTIES = np.logspace(-1, 6, 8)


@dataclass(frozen=True)
class Expression:
    """log1p counts at a common depth, shape (spots, genes); ``known`` are the spots that have counts."""

    values: Floats32
    genes: list[str]
    depth: float
    known: Bools

    def error(self, predicted: Floats32) -> float:
        """Mean squared error at the spots that have counts."""
        return float(((self.values - predicted)[self.known].astype(np.float64) ** 2).mean())


def read_expression(
    adata: AnnData, genes: int | Iterable[str], layer: str | None, depth: float | None = None
) -> Expression:
    """Scale counts to a common depth, by default the median of the spots', and take log1p of some genes.

    ``genes`` are names, or how many of the most expressed.
    """
    genes = _check_genes(adata, genes)
    if not adata.var_names.is_unique:
        raise ValueError("adata.var_names are not unique. Run adata.var_names_make_unique() first.")
    every = np.arange(adata.n_vars)
    counts = Counts(adata, every, layer).log1p(every, ROWS_AT_A_TIME).expm1()
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    known = totals > 0
    if depth is None:
        if not known.any():
            raise ValueError("the slide holds no counts to learn from. Pass a reference that does.")
        depth = float(np.median(totals[known]))
    factors = np.divide(depth, totals, out=np.zeros_like(totals), where=known)
    if isinstance(genes, int):
        sums = np.asarray(counts.T @ factors).ravel()
        if genes > (found := int((sums > 0).sum())):
            raise ValueError(f"genes={genes}, but the slide has counts of {found} genes only.")
        columns = np.sort(np.argsort(-sums, kind="stable")[:genes])
    else:
        columns = adata.var_names.get_indexer(genes)
    values = counts[:, columns].toarray() * factors[:, None]
    return Expression(np.log1p(values).astype(np.float32), adata.var_names[columns].tolist(), depth, known)


def _check_genes(adata: AnnData, genes: int | Iterable[str]) -> int | list[str]:
    """How many genes or which, all there and none twice."""
    if isinstance(genes, int | float | np.integer):
        return check_whole("genes", genes, 1)
    if isinstance(genes, str):
        raise TypeError(f"genes={genes!r} has to be a number or a list of names: genes=[{genes!r}].")
    names = [str(gene) for gene in genes]
    if not names or len(set(names)) < len(names):
        raise ValueError("genes has to name at least one gene, each once.")
    if missing := [gene for gene in names if gene not in adata.var_names]:
        raise KeyError(f"genes {shorten(missing)} not in var_names of what is learned from. {hint_at_names(adata)}")
    return names


class ExpressionRegressor(Protocol):
    """Something that fits expression."""

    def fit(self, inputs: Array, target: Floats32, groups: Strings, rows: Ints) -> Predictor:
        """Fit to some rows; ``groups`` tells what is held out together where parameters are chosen."""


class RidgeRegressor:
    """Ridge regression of standardized features; the penalty is chosen where groups are held out."""

    def fit(self, inputs: Array, target: Floats32, groups: Strings, rows: Ints) -> Predictor:
        """Fit; of a single group, the penalty is chosen where single spots are held out."""
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        splits = classifiers.folds(groups[rows])
        penalty = RidgeCV(PENALTIES, cv=splits or None, scoring="neg_mean_squared_error")
        model = make_pipeline(StandardScaler(), penalty)
        model.fit(inputs[rows].astype(np.float64), target[rows].astype(np.float64))

        def predict(features: Array) -> Floats32:
            found = model.predict(features.astype(np.float64)).reshape(len(features), -1)
            return np.maximum(found, 0).astype(np.float32)

        return predict
