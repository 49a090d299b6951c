"""Results of perturbations as the figures read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm import _keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

# Dark to light, so that they differ in greyscale too; orange and blue differ for most colour-blind readers.
UP, DOWN = "#b35806", "#92c5de"
RUN = {
    _keys.PERTURB_LR: "sg.tl.perturb_lr(adata, ...)",
    _keys.PERTURB_TARGETS: "sg.tl.perturb_targets(adata, ...)",
    _keys.SENSITIVITY: "sg.tl.gene_sensitivity(adata, ...)",
}


def recorded_in(adata: AnnData, key: str) -> Mapping[str, Any]:
    """What a perturbation left in ``uns``."""
    recorded = adata.uns.get(key)
    if not isinstance(recorded, Mapping) or "results" not in recorded:
        raise KeyError(f"no results in adata.uns[{key!r}]. Run {RUN.get(key, RUN[_keys.PERTURB_LR])} first.")
    return recorded


def run_pairs(results: pd.DataFrame) -> pd.DataFrame:
    """Rows that could be run, once each."""
    rows = results[results["status"] == "ok"]
    if not len(rows):
        raise ValueError("none of the pairs could be run; see the column status of the results.")
    return rows[~rows.index.duplicated()]


def sign_of(value: float) -> str:
    """Sign to print."""
    return "?" if np.isnan(value) else "+" if value > 0 else "−" if value < 0 else "0"
