"""Which section is trained on, validated on, kept for tests; and that nothing leaks between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sagefm._settings import logger
from sagefm._utils import shorten

TRAIN, VALIDATE, TEST = "train", "validate", "test"
SPLITS = (TRAIN, VALIDATE, TEST)
PAPER_SEED = 9001


def check_fractions(fractions: Sequence[float]) -> None:
    if len(fractions) != 3 or min(fractions) < 0 or fractions[0] <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions={tuple(fractions)} have to be three shares that add up to 1, the first above 0.")


def assign(
    table: pd.DataFrame,
    split: str | Mapping[str, str] | pd.DataFrame | Path,
    by: str,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> pd.DataFrame:
    """Table of sections with its column ``split``, checked for leakage."""
    if isinstance(split, str) and split == "paper":
        # Samples shuffled and cut at 80 % and 90 %. (The published order depends on the file system's listing, so
        # the same samples can't be had; here they are sorted first.)
        names = sorted(table.index)
        np.random.default_rng(PAPER_SEED).shuffle(names)
        assigned = dict(zip(names, _cut(len(names), (0.8, 0.1, 0.1)), strict=True))
        splits = table.index.map(assigned)
    else:
        groups = sorted(table[by].unique())
        if isinstance(split, str) and split == "random":
            np.random.default_rng(seed).shuffle(groups)
            chosen = dict(zip(groups, _cut(len(groups), fractions), strict=True))
        else:
            chosen = _named_splits(split)
            if unknown := sorted(set(chosen) - set(groups)):
                raise ValueError(
                    f"split names {shorten(unknown)}, which no section belongs to; there are {shorten(groups)}."
                )
            chosen = {group: chosen.get(group, TRAIN) for group in groups}
        splits = table[by].map(chosen)
    table = table.assign(split=pd.Categorical(splits, categories=SPLITS))
    if not (table["split"] == TRAIN).any():
        raise ValueError("the split leaves nothing to train on.")
    _check_leakage(table, may_split_donors=isinstance(split, str) and split == "paper")
    return table


def _cut(n: int, fractions: Sequence[float]) -> list[str]:
    """Names of the splits of n shuffled things."""
    first, second = int(fractions[0] * n), int((fractions[0] + fractions[1]) * n + 1e-9)
    first = max(first, 1)
    return [TRAIN] * first + [VALIDATE] * max(second - first, 0) + [TEST] * (n - max(second, first))


def _named_splits(split: str | Mapping[str, str] | pd.DataFrame | Path) -> dict[str, str]:
    """Group → split from a mapping or a table, each group once."""
    if isinstance(split, str | Path):
        split = pd.read_csv(split)
    if isinstance(split, pd.DataFrame):
        if missing := {"group", "split"} - set(split):
            raise KeyError(f"the table of splits lacks {sorted(missing)}; it has {list(split)}.")
        pairs = split[["group", "split"]].astype(str).drop_duplicates()
        if twice := sorted(pairs["group"][pairs["group"].duplicated()]):
            raise ValueError(f"the table puts {shorten(twice)} into two splits.")
        split = dict(zip(pairs["group"], pairs["split"], strict=True))
    if odd := sorted(set(split.values()) - set(SPLITS)):
        raise ValueError(f"{shorten(odd)} is none of the splits {SPLITS}.")
    return {str(group): value for group, value in split.items()}


def _check_leakage(table: pd.DataFrame, *, may_split_donors: bool) -> None:
    """Refuse what would let a validation spot be trained on."""

    def torn(column: str) -> list[str]:
        known = table[table[column] != ""]
        n_splits = known.groupby(column)["split"].nunique()
        return [str(value) for value in n_splits.index[n_splits > 1]]

    if same := torn("digest"):
        names = table.index[table["digest"] == same[0]]
        raise ValueError(f"{shorten(names)} hold the same counts but are in different splits. Leave one out.")
    donors = torn("donor")
    if donors and may_split_donors:
        logger.warning(
            "Sections of one donor are in different splits (%s), as in the published split by sample: figures on "
            "validation and test flatter a model for new donors.",
            shorten(donors),
        )
    elif donors:
        raise ValueError(
            f"donor {shorten(donors)} would be in several splits, so validation would see trained donors. "
            "Use split_by='donor'."
        )
