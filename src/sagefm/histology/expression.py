"""Regression of expression on histology: what is predicted, by which fit, and how well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from sagefm._stats import pearson
from sagefm._types import Array, Bools, Floats32, Ints, Strings
from sagefm._utils import check_whole, progress, shorten
from sagefm.pp._counts import Counts
from sagefm.pp._genes import hint_at_names
from sagefm.tl._labels import classifiers

if TYPE_CHECKING:
    from anndata import AnnData

# From inputs (features or pixels of spots) to log1p expression.
Predictor = Callable[[Array], Floats32]

BATCH_SIZE = 2048
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
    counts = Counts(adata, every, layer).log1p(every, BATCH_SIZE).expm1()
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


@dataclass(frozen=True)
class Regression:
    """Spots to learn from: their inputs (features or pixels), expression and groups, and what fits them."""

    inputs: Array
    expression: Expression
    groups: Strings
    regressor: ExpressionRegressor

    def fit(self, rows: Ints | None = None) -> Predictor:
        """Fit to those of the rows that have counts, by default to all."""
        known = self.expression.known
        rows = np.flatnonzero(known) if rows is None else rows[known[rows]]
        return self.regressor.fit(self.inputs, self.expression.values, self.groups, rows)

    def folds(self) -> Iterator[tuple[Ints, Ints, Predictor]]:
        """Spots of some groups, the other spots, and a fit to the first; nothing if all spots are of one group.

        Spots without counts are predicted too, but not learned from.
        """
        for train, test in progress(classifiers.folds(self.groups), "Held out", unit="fit"):
            if self.expression.known[train].sum() < 2:
                raise ValueError(
                    "one group alone has counts, so there is nothing to predict it from. Pass a reference."
                )
            yield train, test, self.fit(train)

    def predict_held_out(self) -> Floats32 | None:
        """Every spot from a fit that hasn't seen its group; None if all spots are of one group."""
        found = np.full((len(self.inputs), len(self.expression.genes)), np.nan, dtype=np.float32)
        for _, test, predict in self.folds():
            for part in np.split(test, range(BATCH_SIZE, len(test), BATCH_SIZE)):  # of pixels, some hundred MB
                found[part] = predict(self.inputs[part])
        return None if np.isnan(found).any() else found

    def score_held_out(self, predicted: Floats32) -> pd.DataFrame:
        """Scores of what :meth:`predict_held_out` returned."""
        known, values = self.expression.known, self.expression.values
        mean = np.zeros_like(values)
        for train, test in classifiers.folds(self.groups):
            mean[test] = values[train[known[train]]].mean(axis=0)
        return score_genes(values[known], predicted[known], self.groups[known], self.expression.genes, mean[known])


def score_genes(
    truth: Floats32, predicted: Floats32, groups: Strings, genes: list[str], mean: Floats32
) -> pd.DataFrame:
    """How well each gene is predicted in groups that the fit hasn't seen.

    ``mean`` is what each gene's mean in the spots that were learned from would have predicted, shape as ``truth``.
    """
    # No file takes a column named with a slash. Where a gene is constant, r counts 0.
    by_group = {
        f"r_{name.replace('/', '|')}": np.nan_to_num(pearson(predicted[groups == name], truth[groups == name]))
        for name in np.unique(groups)
    }
    table = pd.DataFrame(by_group, index=pd.Index(genes, name="gene"))
    table.insert(0, "r", table.mean(axis=1))
    errors, of_mean = (((truth - values).astype(np.float64) ** 2).sum(axis=0) for values in (predicted, mean))
    table.insert(1, "r2", 1 - np.divide(errors, of_mean, out=np.full(len(genes), np.nan), where=of_mean > 0))
    return table
