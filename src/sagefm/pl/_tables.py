"""Tables as the plots read them: found, checked, and parted into what is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from sagefm import _keys
from sagefm._utils import shorten

if TYPE_CHECKING:
    from anndata import AnnData


def get_spot_table(adata: AnnData, key: str, run: str) -> pd.DataFrame:
    """Return the table that ``run`` left in ``obsm``."""
    table = adata.obsm.get(key)
    if not isinstance(table, pd.DataFrame):
        raise KeyError(f"no table in adata.obsm[{key!r}]. Run {_keys.advise(run, key)} first.")
    return table


def check_columns(data: pd.DataFrame, columns: Iterable[str], run: str) -> None:
    """Refuse a table that isn't what ``run`` returns."""
    if missing := [column for column in columns if column not in data]:
        raise KeyError(
            f"the table has no column {missing[0]!r}; it has {shorten(data.columns)}. Pass what {run} returned."
        )


def choose(wanted: str | Sequence[str] | None, known: Iterable[str], what: str, where: str) -> list[str]:
    """Return the names that were asked for, checked, or all there are."""
    known = list(dict.fromkeys(known))
    if wanted is None:
        return known
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if not names:
        raise ValueError(f"{what}s is empty: name at least one.")
    if unknown := [name for name in names if name not in known]:
        raise KeyError(f"no {what} {shorten(unknown)} in {where}; it has {shorten(known)}.")
    return names
