"""Expression of spots predicted by regression, and scored where groups of spots are held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm._settings import ROWS_AT_A_TIME, logger
from sagefm._stats import pearson
from sagefm._types import Array, Floats32, Ints, Strings
from sagefm._utils import progress
from sagefm.histology.expression import Expression, ExpressionRegressor, Predictor, read_expression
from sagefm.tl._labels import classifiers
from sagefm.tl._points import get_column

if TYPE_CHECKING:
    from anndata import AnnData


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
            for part in np.split(test, range(ROWS_AT_A_TIME, len(test), ROWS_AT_A_TIME)):  # of pixels, some hundred MB
                found[part] = predict(self.inputs[part])
        return None if np.isnan(found).any() else found

    def score_held_out(self, predicted: Floats32) -> pd.DataFrame:
        """Scores of what :meth:`predict_held_out` returned."""
        known, values = self.expression.known, self.expression.values
        mean = np.zeros_like(values)
        for train, test in classifiers.folds(self.groups):
            mean[test] = values[train[known[train]]].mean(axis=0)
        return score_genes(values[known], predicted[known], self.groups[known], self.expression.genes, mean[known])


@dataclass(frozen=True)
class Prediction:
    """Expression of every spot, how its features were scaled, and scores on groups held out of one of the objects."""

    values: Floats32
    scale: str
    scores: pd.DataFrame | None
    scored_on: str

    @property
    def quality(self) -> str:
        """What the log says of the scores."""
        if self.scores is None:
            return ""
        better = f"{(self.scores['r2'] > 0).sum()} of {len(self.scores)} better than their mean"
        return f" (median r {self.scores['r'].median():.2f}, {better}, where groups of {self.scored_on} are held out)"


def predict_each_other(regressions: dict[str, Regression]) -> Prediction:
    """Predict the spots that are learned from, each by a fit that hasn't seen its group."""
    scale, held_out = _choose_scale(regressions)
    if held_out is None:
        raise ValueError(
            "all spots are of one group, and a section is never predicted by a fit that has seen it. Set library_key "
            "or group_key to a column with two groups or more (sections, best donors), or pass a reference."
        )
    return Prediction(held_out, scale, regressions[scale].score_held_out(held_out), "adata")


def predict_from_reference(
    regressions: dict[str, Regression], query: AnnData, inputs: dict[str, Array], layer: str | None, key: str | None
) -> Prediction:
    """Predict other spots. A fit for each group of the reference is costly, so it waits until something needs it."""
    scale, held_out = _choose_scale(regressions) if len(regressions) > 1 else (next(iter(regressions)), None)
    regression = regressions[scale]
    predicted = regression.fit()(inputs[scale])
    scores = _score_query(query, regression, predicted, layer, key)
    if scores is not None:
        return Prediction(predicted, scale, scores, "adata")
    held_out = regression.predict_held_out() if held_out is None else held_out
    scores = None if held_out is None else regression.score_held_out(held_out)
    return Prediction(predicted, scale, scores, "reference")


def _choose_scale(regressions: dict[str, Regression]) -> tuple[str, Floats32 | None]:
    """Scaling that predicts held-out groups best, and what is predicted there; None if all spots are of one group."""
    tried = {name: regression.predict_held_out() for name, regression in regressions.items()}
    found = {name: predicted for name, predicted in tried.items() if predicted is not None}
    if not found:
        return list(regressions)[-1], None
    best = min(found, key=lambda name: regressions[name].expression.error(found[name]))
    return best, found[best]


def _score_query(
    adata: AnnData, regression: Regression, predicted: Floats32, layer: str | None, key: str | None
) -> pd.DataFrame | None:
    """Scores on the slides that were predicted, if they have counts of these genes and groups of their own."""
    expression = regression.expression
    if (adata.X is None and layer is None) or not set(expression.genes) <= set(adata.var_names):
        return None
    own = read_expression(adata, expression.genes, layer, expression.depth)
    groups = get_column(adata, "group_key", key if key is not None and key in adata.obs else None)
    seen = np.isin(groups, regression.groups) & (key is not None)
    if seen.any():
        logger.warning(
            "%d spots are of groups that the reference has too (%s): the fit has seen these, so they aren't scored.",
            seen.sum(),
            ", ".join(np.unique(groups[seen])[:5]),
        )
    rows = own.known & ~seen
    if not rows.any():
        return None
    mean = np.broadcast_to(expression.values[expression.known].mean(axis=0), predicted.shape)
    return score_genes(own.values[rows], predicted[rows], groups[rows], expression.genes, mean[rows])


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
