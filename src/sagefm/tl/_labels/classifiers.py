"""Classifiers of spots, and the choice of their parameters by groups that never lie on both sides."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sagefm._types import Array, Bools, Floats, Ints, Strings
from sagefm._utils import progress
from sagefm.tl._labels.labels import score_labels
from sagefm.tl._points import standardize

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

Kind = Literal["forest", "mlp"]
Scale = Literal["auto", "slide", "none"]
KINDS, SCALES = ("forest", "mlp"), ("auto", "slide", "none")
Grid = Mapping[str, Sequence[Any]]
"""Settings of scikit-learn's estimator to try, as ``ParameterGrid`` takes them."""
GRIDS: dict[str, Grid] = {"forest": {"min_samples_leaf": [1, 5]}, "mlp": {"alpha": [1e-3, 1.0]}}
# The paper says what it tuned (trees and depth; units and epochs), and not which values.
PAPER_GRIDS: dict[str, Grid] = {
    "forest": {"n_estimators": [100, 300], "max_depth": [10, 20, None]},
    "mlp": {"hidden_layer_sizes": [[64, 64], [128, 128], [256, 256]], "max_iter": [20, 50]},
}
MAX_FOLDS = 5
N_TREES = 100


@dataclass(frozen=True)
class ChosenSettings:
    """What the classifier reads and how it is set, with the scores of all that was tried."""

    scale: str
    params: dict[str, Any]
    tried: pd.DataFrame


def make(kind: str, params: dict[str, Any], seed: int, n_trees: int | None = None) -> BaseEstimator:
    """Random forest, or a network of three layers on standardised input."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "forest":
        return RandomForestClassifier(**{"n_estimators": n_trees or N_TREES} | params, random_state=seed, n_jobs=-1)
    settings = {"hidden_layer_sizes": (128, 64), "max_iter": 30} | params
    return make_pipeline(StandardScaler(), MLPClassifier(**settings, random_state=seed))


def list_settings(kind: str, grid: Grid | None = None) -> list[dict[str, Any]]:
    """All combinations of a grid, or of our own one; checked."""
    from sklearn.model_selection import ParameterGrid

    try:
        found = list(ParameterGrid(dict(GRIDS[kind] if grid is None else grid)))
        for params in found:
            make(kind, params, 0)
    except (TypeError, ValueError) as error:  # scikit-learn's own words name the setting
        raise ValueError(f"param_grid of {kind!r}: {error}") from error
    return found


def fit(estimator: BaseEstimator, points: Array, labels: Strings) -> BaseEstimator:
    """Fit; the network stops after its passes whether or not it has converged, which is no warning to users.

    Of spots that are all of one class, that class is what is learned.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.exceptions import ConvergenceWarning

    if len(np.unique(labels)) < 2:
        return DummyClassifier().fit(points, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(points, labels)
    if hasattr(estimator, "n_jobs"):  # threads would add up the trees in any order, which decides ties by chance
        estimator.n_jobs = 1
    return estimator


def probabilities(estimator: BaseEstimator, points: Array, classes: list[str]) -> Floats:
    """Probability of each class, 0 for classes that training lacked; shape (spots, classes)."""
    found = np.zeros((len(points), len(classes)))
    if len(points):
        found[:, [classes.index(name) for name in estimator.classes_]] = estimator.predict_proba(points)
    return found


def fit_probabilities(
    points: Array, labels: Strings, *, kind: str, params: dict[str, Any], seed: int, classes: list[str]
) -> Callable[[Array], Floats]:
    """Fit a classifier, and return the function that gives probabilities of points."""
    return partial(probabilities, fit(make(kind, params, seed), points, labels), classes=classes)


def fit_confidence(probability: Floats, right: Bools) -> Callable[[Floats], Floats]:
    """Learn from held-out groups how often the most probable class is right, by its probability (Platt's scaling).

    Probabilities of a classifier say little on donors that it hasn't seen: how much is what their spots tell. Where
    more probable classes aren't more often right, all spots get the share that is.
    """
    from sklearn.linear_model import LogisticRegression

    if right.all() or not right.any():
        return lambda found: np.full(len(found), float(right.mean()))
    fitted = LogisticRegression().fit(_odds(probability), right)
    if fitted.coef_[0, 0] <= 0:
        return lambda found: np.full(len(found), float(right.mean()))
    return lambda found: np.asarray(fitted.predict_proba(_odds(found))[:, 1], dtype=float)


def _odds(probability: Floats) -> Floats:
    """Log odds of the most probable class, shape (spots, 1)."""
    top = probability.max(axis=1, keepdims=True).clip(1e-3, 1 - 1e-3)
    return np.log(top / (1 - top))


def views(points: Array, slides: Array, scale: str) -> dict[str, Array]:
    """The representation as it is, standardised within slides, or both to choose from."""
    found = {} if scale == "slide" else {"none": points}
    return found if scale == "none" else {**found, "slide": standardize(points, slides)}


def folds(groups: Strings, n_folds: int = MAX_FOLDS) -> list[tuple[Ints, Ints]]:
    """Training and held-out spots, at most so many times, by whole groups."""
    from sklearn.model_selection import GroupKFold

    n_groups = len(np.unique(groups))
    if n_groups < 2:
        return []
    return list(GroupKFold(min(n_groups, n_folds)).split(groups, groups=groups))


def choose(
    points: dict[str, Array],
    labels: Strings,
    groups: Strings,
    kind: str,
    seed: int,
    *,
    grid: Grid | None = None,
    n_folds: int = MAX_FOLDS,
    show: bool = True,
) -> ChosenSettings:
    """Take what has the best macro-F1 on held-out groups; without two groups the first of the grid.

    ``points`` holds the representation under the name of each scaling to try.
    """
    settings = list_settings(kind, grid)
    splits = folds(groups, n_folds)
    if not splits:
        scale = "slide" if "slide" in points else "none"
        return ChosenSettings(scale, settings[0], pd.DataFrame(columns=["scale", "params", "f1_macro", "accuracy"]))
    candidates = [(scale, params) for scale in points for params in settings]
    rows = []
    for scale, params in progress(candidates, "Choosing", unit="setting") if show else candidates:
        scores = []
        for train, held_out in splits:
            # Half the trees rank settings as well.
            estimator = fit(make(kind, params, seed, N_TREES // 2), points[scale][train], labels[train])
            scores.append(score_labels(labels[held_out], estimator.predict(points[scale][held_out])))
        described = {"scale": scale, "params": ", ".join(f"{name}={value}" for name, value in params.items())}
        rows.append(described | pd.DataFrame(scores)[["f1_macro", "accuracy"]].mean().to_dict())
    tried = pd.DataFrame(rows, index=pd.RangeIndex(len(rows)).astype(str))  # as h5ad and zarr keep it
    scale, params = candidates[int(tried["f1_macro"].to_numpy().argmax())]
    return ChosenSettings(scale, params, tried)
