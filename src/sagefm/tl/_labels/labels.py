"""Labels of spots: merged, and compared with what was predicted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm._types import Array
from sagefm._utils import check_key, shorten

if TYPE_CHECKING:
    from anndata import AnnData

METRICS = ("accuracy", "f1_macro", "f1_micro", "recall_macro", "precision_macro")


def get_labels(
    adata: AnnData, label_key: str, merge: Mapping[str, str | None] | None = None, *, strict: bool = True
) -> pd.Series:
    """Label of every spot as text, missing where there is none or it was merged into None.

    ``strict`` refuses a ``merge`` that names none of the labels.
    """
    check_key("label_key", label_key)
    if label_key not in adata.obs:
        raise KeyError(f"label_key={label_key!r} not in adata.obs; it has {shorten(adata.obs.columns)}.")
    labels = adata.obs[label_key].astype(object)
    labels = labels.where(labels.notna(), None).map(lambda label: None if label is None else str(label))
    if merge is None:
        return labels
    if not isinstance(merge, Mapping):
        raise TypeError(f"merge has to map labels to classes, got {type(merge).__name__}.")
    if wrong := [name for name in merge.values() if name is not None and not isinstance(name, str)]:
        raise TypeError(f"merge has to map labels to classes (text) or None, got {wrong[0]!r}.")
    known = {str(label): name for label, name in merge.items()}
    if strict and known and labels.notna().any() and not labels.isin(list(known)).any():
        raise ValueError(f"merge names none of the labels in obs[{label_key!r}]: {shorten(labels.dropna().unique())}.")
    return labels.map(lambda label: known.get(label, label) if label is not None else None).astype(object)


def check_classes(classes: Iterable[str], mend: str) -> None:
    """Refuse names that can't be columns of a file."""
    if wrong := [name for name in classes if not name or "/" in name or name == "_index"]:
        raise ValueError(f"a class named {wrong[0]!r} can't be saved as a column. Rename it {mend}.")


def score_labels(truth: Array, predicted: Array) -> dict[str, float]:
    """Agreement of classes; macro averages run over the classes that occur in either."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    truth, predicted = np.asarray(truth, dtype=str), np.asarray(predicted, dtype=str)
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    micro = precision_recall_fscore_support(truth, predicted, average="micro", zero_division=0)[2]
    values = (accuracy_score(truth, predicted), f1, micro, recall, precision)
    return dict(zip(METRICS, (float(value) for value in values), strict=True))
