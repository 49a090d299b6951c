"""Regression of expression on the histology: what is predicted, from what, and by which fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sagefm._utils import progress, shorten
from sagefm.pp._counts import Counts
from sagefm.pp._genes import hint_at_names
from sagefm.tl._labels import classifiers

if TYPE_CHECKING:
    from anndata import AnnData

Floats = NDArray[np.float32]
# From inputs (features or pixels of spots) to log1p expression.
Fitted = Callable[[NDArray[Any]], Floats]

BATCH_SIZE = 2048
PENALTIES = np.logspace(-1, 6, 8)
MIN_VARIANCE = 1e-10  # below this a variance is rounding


class Learner(Protocol):
    """Something that fits expression."""

    def fit(self, inputs: NDArray[Any], target: Floats, groups: NDArray[np.str_], rows: NDArray[np.int64]) -> Fitted:
        """Fit to some rows; ``groups`` tells what is held out together where parameters are chosen."""


@dataclass(frozen=True)
class Target:
    """log1p counts at a common depth, shape (spots, genes); ``known`` are the spots that have counts."""

    values: Floats
    genes: list[str]
    depth: float
    known: NDArray[np.bool_]


def read_target(adata: AnnData, genes: int | Iterable[str], layer: str | None, depth: float | None = None) -> Target:
    """Scale counts to a common depth, by default the median of the spots', and take log1p of some genes.

    ``genes`` are names, or how many of the most expressed.
    """
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
        columns = adata.var_names.get_indexer(list(genes))
    values = counts[:, columns].toarray() * factors[:, None]
    return Target(np.log1p(values).astype(np.float32), adata.var_names[columns].tolist(), depth, known)


def check_genes(adata: AnnData, genes: int | Iterable[str]) -> int | list[str]:
    """How many genes or which, all there and none twice."""
    from sagefm._utils import check_whole

    if isinstance(genes, int | np.integer) or isinstance(genes, bool | float):
        return check_whole("genes", genes, 1)
    if isinstance(genes, str):
        raise TypeError(f"genes={genes!r} has to be a number or a list of names: genes=[{genes!r}].")
    names = [str(gene) for gene in genes]
    if not names or len(set(names)) < len(names):
        raise ValueError("genes has to name at least one gene, each once.")
    if missing := [gene for gene in names if gene not in adata.var_names]:
        raise KeyError(f"genes {shorten(missing)} not in var_names of what is learned from. {hint_at_names(adata)}")
    return names


class Ridge:
    """Ridge regression of standardised features; the penalty is chosen where groups are held out."""

    def fit(self, inputs: NDArray[Any], target: Floats, groups: NDArray[np.str_], rows: NDArray[np.int64]) -> Fitted:
        """Fit; of a single group, the penalty is chosen where single spots are held out."""
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        splits = classifiers.folds(groups[rows])
        penalty = RidgeCV(PENALTIES, cv=splits or None, scoring="neg_mean_squared_error")
        model = make_pipeline(StandardScaler(), penalty)
        model.fit(inputs[rows].astype(np.float64), target[rows].astype(np.float64))

        def predict(features: NDArray[Any]) -> Floats:
            found = model.predict(features.astype(np.float64)).reshape(len(features), -1)
            return np.maximum(found, 0).astype(np.float32)

        return predict


def fit_folds(
    inputs: NDArray[Any], target: Target, groups: NDArray[np.str_], learner: Learner
) -> Iterator[tuple[NDArray[np.int64], Fitted]]:
    """Spots that a fit hasn't seen, as none of their groups, and the fit; nothing where all are of one group.

    Spots without counts are predicted too, but not learned from.
    """
    for train, test in progress(classifiers.folds(groups), "Held out", unit="fit"):
        train = train[target.known[train]]
        if len(train) < 2:
            raise ValueError("one group alone has counts, so there is nothing to predict it from. Pass a reference.")
        yield test, learner.fit(inputs, target.values, groups, train)


def score_genes(
    truth: Floats, predicted: Floats, groups: NDArray[np.str_], genes: list[str], mean: Floats
) -> pd.DataFrame:
    """How well each gene is predicted in groups that the fit hasn't seen.

    ``mean`` is what each gene's mean in the spots that were learned from would have predicted, shape as ``truth``.
    """
    names = np.unique(groups)
    # No file takes a column named with a slash.
    by_group = {
        f"r_{name.replace('/', '|')}": gene_r(truth[groups == name], predicted[groups == name]) for name in names
    }
    table = pd.DataFrame(by_group, index=pd.Index(genes, name="gene"))
    # Within groups: the mean predicts none of that, and counts 0.
    table.insert(0, "r", table.mean(axis=1))
    errors, of_mean = ((truth - values).astype(np.float64) ** 2 for values in (predicted, mean))
    spread = of_mean.sum(axis=0)
    table.insert(1, "r2", 1 - np.divide(errors.sum(axis=0), spread, out=np.full(len(genes), np.nan), where=spread > 0))
    return table


def gene_r(truth: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
    """Pearson r of each gene over spots, 0 where one of both is constant."""
    a, b = (values.astype(np.float64) - values.mean(axis=0, dtype=np.float64) for values in (truth, predicted))
    variances = (a * a).mean(axis=0), (b * b).mean(axis=0)
    varies = (variances[0] > MIN_VARIANCE) & (variances[1] > MIN_VARIANCE)
    scale = np.sqrt(np.maximum(variances[0], MIN_VARIANCE) * np.maximum(variances[1], MIN_VARIANCE))
    return np.where(varies, (a * b).mean(axis=0) / scale, 0.0)
