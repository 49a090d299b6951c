"""Results of perturbations as the plots read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_result
from sagefm.pl._tables import choose

if TYPE_CHECKING:
    from anndata import AnnData

RUN = {
    _keys.PERTURB_LR: "sg.tl.perturb_lr(adata, ...)",
    _keys.PERTURB_TARGETS: "sg.tl.perturb_targets(adata, ...)",
    _keys.SENSITIVITY: "sg.tl.gene_sensitivity(adata, ...)",
}
# Tables that are not always there.
OPTIONS = {
    "libraries": " with library_key",
    "doses": " with n_levels above 2",
    "tests": " with n_controls above 0",
    "controls": " with n_controls above 0",
}


def table_in(
    adata: AnnData, key: str, columns: Iterable[str], name: str = "results", *, default: str = _keys.PERTURB_LR
) -> pd.DataFrame:
    """Table that a perturbation left in ``uns``, by ``default`` that under this key where the user chose another."""
    run = RUN.get(key, RUN[default]) + OPTIONS.get(name, "")
    table: pd.DataFrame = get_result(adata, (key, name), pd.DataFrame, columns, run)
    return table


def overlap_in(adata: AnnData, key: str, columns: Iterable[str], counts: Iterable[str]) -> Mapping[str, Any]:
    """Comparison of two groups of slides: its ``pairs`` with these columns, these ``counts``, and the rest."""
    run, path = f"sg.tl.perturbation_overlap(adata, key={key!r})", (key, "overlap")
    overlap: Mapping[str, Any] = get_result(adata, path, Mapping, ("pairs", "counts", "signs", "genes", "params"), run)
    get_result(adata, (*path, "pairs"), pd.DataFrame, columns, run, may_be_empty=True)  # where none could be run
    get_result(adata, (*path, "counts"), Mapping, counts, run)
    get_result(adata, (*path, "params"), Mapping, ("groups",), run)
    return overlap


def run_pairs(results: pd.DataFrame) -> pd.DataFrame:
    """Rows that could be run, once each."""
    rows = results[results["status"] == "ok"]
    if not len(rows):
        raise ValueError("none of the pairs could be run; see the column status of the results.")
    return rows[~rows.index.duplicated()]


def choose_pairs(
    results: pd.DataFrame, pairs: str | Sequence[str] | None, n_pairs: int, key: str, by: str = "effect"
) -> pd.DataFrame:
    """Rows of the pairs that were asked for, or of those with the largest ``by``, significant ones first."""
    if pairs is not None:
        return results.loc[choose(pairs, results.index, "pair", f"adata.uns[{key!r}]")]
    is_chance = results["padj"].fillna(1.0).ge(0.05) if "padj" in results else False
    order = pd.DataFrame({"is_chance": is_chance, "size": -results[by].abs()}, index=results.index)
    top = order.sort_values(["is_chance", "size"], kind="stable").index[:n_pairs]
    return results.loc[top].sort_values(by, ascending=False, kind="stable")


def sign_of(value: float) -> str:
    """Sign to print."""
    return "?" if np.isnan(value) else "+" if value > 0 else "−" if value < 0 else "0"


def arrow(pair: str) -> str:
    """``LIGAND|RECEPTOR`` as it is printed."""
    return pair.replace("|", " → ")
