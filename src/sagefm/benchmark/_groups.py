"""Groups held out, and what is read of the spots that are left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm._types import Array, Bools, Ints, Strings
from sagefm.benchmark._clustering import as_names
from sagefm.tl._labels import classifiers
from sagefm.tl._points import get_column, get_points

if TYPE_CHECKING:
    from anndata import AnnData

POOLED = "pooled"


def split_groups(
    adata: AnnData, group_key: str, known: Bools, test_groups: Sequence[str] | None, *, pooled: bool = False
) -> tuple[Strings, dict[str, tuple[Ints, Ints]]]:
    """Group of every spot that counts, and for each tested group, or all pooled, the spots to fit and to score on."""
    if pooled and test_groups is None:
        raise ValueError("pooled=True scores the spots of test_groups together: name these groups.")
    groups = get_column(adata, "group_key", group_key, known)
    names = [str(name) for name in np.unique(groups)]
    if len(names) < 2:
        raise ValueError(f"obs[{group_key!r}] has {len(names)} groups with labels; holding one out takes two.")
    if test_groups is None:
        return groups, {name: (np.flatnonzero(groups != name), np.flatnonzero(groups == name)) for name in names}
    wanted = as_names(test_groups)
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"test_groups names {unknown[0]!r}, which has no labelled spots; there are {names}.")
    train = np.flatnonzero(~np.isin(groups, wanted))
    if not len(train):
        raise ValueError("test_groups names all groups with labels, which leaves none to fit on.")
    if pooled:
        return groups, {POOLED: (train, np.flatnonzero(np.isin(groups, wanted)))}
    return groups, {name: (train, np.flatnonzero(groups == name)) for name in wanted}


def get_slides(adata: AnnData, group_key: str, library_key: str | None) -> Strings:
    """Slide of every spot; one of two groups would carry something of the held-out one into training."""
    if library_key is None:
        column = adata.obs[group_key].astype(object)
        return column.where(column.notna(), "").astype(str).to_numpy(dtype=str)
    slides = get_column(adata, "library_key", library_key)
    groups = pd.Series(adata.obs[group_key].astype(str).to_numpy()).groupby(slides).nunique()
    if (groups > 1).any():
        raise ValueError(
            f"obs[{library_key!r}] has {groups.idxmax()!r} in {groups.max()} values of obs[{group_key!r}]. "
            "Standardised together, held-out spots would reach into training. Set library_key to the spots' slides."
        )
    return slides


def get_views(adata: AnnData, rep: str, group: str, slides: Strings, known: Bools, scale: str) -> dict[str, Array]:
    """Representation of the spots that count; slides are standardised with all of their spots."""
    points = get_points(adata, rep.replace("{group}", group))
    return {name: view[known] for name, view in classifiers.views(points, slides, scale).items()}
