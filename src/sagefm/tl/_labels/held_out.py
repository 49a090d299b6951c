"""What annotation and composition share: spots to learn from and to predict, and scores of groups held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm._anndata import recorded_params
from sagefm._settings import logger
from sagefm._slides import find_libraries, find_library_key
from sagefm._types import Array, Bools, Floats, Strings
from sagefm._utils import progress, shorten
from sagefm.tl._labels import classifiers
from sagefm.tl._points import get_column, get_points

if TYPE_CHECKING:
    from anndata import AnnData

Predict = Callable[[Array], Floats]
Fit = Callable[[Array, Array], Predict]
"""Learns from points and what is known of them, and returns a function that predicts it of other points."""

OVERALL = "overall"


@dataclass(frozen=True)
class HeldOut:
    """What is known and predicted of spots whose group the fit hasn't seen; ``of`` names the object they are from."""

    truth: Array
    predicted: Floats
    groups: Strings
    of: str

    def score(self, metrics: Callable[[Array, Floats], Mapping[str, float]]) -> pd.DataFrame:
        """Metrics over all spots, then by group."""
        parts = [(OVERALL, np.ones(len(self.truth), dtype=bool))]
        parts += [(str(name), self.groups == name) for name in np.unique(self.groups)]
        rows = [metrics(self.truth[part], self.predicted[part]) for _, part in parts]
        return pd.DataFrame(rows, index=pd.Index([name for name, _ in parts], name="group"))


class Task:
    """Spots to learn from and spots to predict.

    Parameters
    ----------
    adata, source
        Object to predict, and the one to learn from: the reference, or ``adata`` itself.
    truth
        What is known of the source, missing where nothing is.
    use_rep, scale, library_key, group_key
        As the user passed them.

    Attributes
    ----------
    known
        Spots of the source that are learned from.
    truth, groups, views
        What is known of these, their groups, and their representation by scaling.
    """

    def __init__(
        self,
        adata: AnnData,
        source: AnnData,
        truth: pd.Series | pd.DataFrame,
        *,
        use_rep: str,
        scale: str,
        library_key: str | None,
        group_key: str | None,
    ) -> None:
        def read(part: AnnData) -> dict[str, Array]:
            return classifiers.views(get_points(part, use_rep), find_libraries(part, library_key).codes, scale)

        self.adata, self.source, self.group_key = adata, source, group_key or find_library_key(source, library_key)
        self.known = is_known(truth)
        self.truth: Array = truth[self.known].to_numpy()
        views = self._query = read(source)
        if source is not adata:
            check_same_model(source, adata, use_rep)
            self._query = read(adata)
        self.groups = get_column(source, "group_key", self.group_key, self.known)
        self.views = {name: view[self.known] for name, view in views.items()}

    def predict(
        self, fit: Fit, scale: str, held_out: Floats | None, own: pd.Series | pd.DataFrame | None
    ) -> tuple[Floats, HeldOut | None]:
        """Predict every spot, and return what can be scored.

        Parameters
        ----------
        fit, scale
            What learns, and the scaling that it reads.
        held_out
            Predictions of the known spots by fits without their group, if there are several groups.
        own
            What is known of ``adata`` where the source is another object; it is scored before the source is.
        """
        predicted = fit(self.views[scale], self.truth)(self._query[scale])
        if self.source is not self.adata:
            scored = None if own is None else self._in_query(own, predicted)
            if scored is not None:
                return predicted, scored
        elif held_out is not None:
            predicted[self.known] = held_out
        of = "adata" if self.source is self.adata else "reference"
        return predicted, None if held_out is None else HeldOut(self.truth, held_out, self.groups, of)

    def _in_query(self, own: pd.Series | pd.DataFrame, predicted: Floats) -> HeldOut | None:
        """Known spots of ``adata``; those of groups that the reference has don't count."""
        known, key = is_known(own), self.group_key
        if not known.any():
            return None
        groups = get_column(self.adata, "group_key", key if key in self.adata.obs else None, known)
        unseen = np.full(len(groups), key is None) | ~np.isin(groups, self.groups)
        if not unseen.all():
            logger.warning(
                "%d labelled spots of adata are of groups that the reference has (%s), so they count in no score.",
                *((~unseen).sum(), shorten(np.unique(groups[~unseen]))),
            )
        if not unseen.any():
            return None
        return HeldOut(own.to_numpy()[known][unseen], predicted[known][unseen], groups[unseen], "adata")


def is_known(truth: pd.Series | pd.DataFrame) -> Bools:
    """Spots whose label, or all of whose likelihoods, aren't missing."""
    known: Bools = truth.notna().to_numpy().reshape(len(truth), -1).all(axis=1)
    return known


def predict_held_out(
    views: Mapping[str, Array], truth: Array, groups: Strings, fit: Fit, n_folds: int = classifiers.MAX_FOLDS
) -> dict[str, Floats]:
    """Predictions of every spot by a fit that hasn't seen its group, by scaling; none of a single group."""
    splits = classifiers.folds(groups, n_folds)
    found: dict[str, Floats] = {}
    tasks = [(name, *split) for name in views for split in splits]
    for name, train, test in progress(tasks, "Held out", unit="fit"):
        predicted = fit(views[name][train], truth[train])(views[name][test])
        found.setdefault(name, np.zeros((len(truth), predicted.shape[1])))[test] = predicted
    return found


def record_scores(
    scored: HeldOut | None, metrics: Callable[[Array, Floats], Mapping[str, float]], column: str, name: str
) -> tuple[dict[str, pd.DataFrame], str]:
    """Scores to record, and one of them in words; a warning where nothing is held out."""
    if scored is None:
        logger.warning(
            "Nothing is held out: all labelled spots come from one group, so no score can be given, and no setting "
            "chosen by one. Set group_key to a column with two groups or more, such as donors."
        )
        return {}, ""
    scores = scored.score(metrics)
    return {"scores": scores}, f" ({name} {scores[column].iloc[0]:.3f} where groups of {scored.of} are held out)"


def check_same_model(reference: AnnData, adata: AnnData, use_rep: str) -> None:
    """Two embeddings only fit together if one model made both."""
    widths, made_by = [], []
    for part in (reference, adata):
        widths.append(get_points(part, use_rep).shape[1])
        made_by.append(recorded_params(part, use_rep).get("model"))
    if widths[0] != widths[1] or (None not in made_by and made_by[0] != made_by[1]):
        raise ValueError(
            f"obsm[{use_rep!r}] of the reference ({widths[0]} dimensions, model {made_by[0]}) and of adata "
            f"({widths[1]}, {made_by[1]}) don't fit together. Embed both with the same model."
        )
