"""What predictions are worth while genes are missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from sagefm.pl._axes import finish, get_axes, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MARKERS = "osD^vP"
COLORS = ("#b35806", "0.6", "#2166ac", "0.25", "#92c5de", "#7f3b08")
LABELS = {
    "rmse": "RMSE, log1p counts",
    "r2_spot": "R² of a spot, mean",
    "r2_spot_median": "R² of a spot, median",
    "r_within": "r of a gene within a section, mean",
    "r_pooled": "r of a gene, mean",
    "r_pooled_median": "r of a gene, median",
}


def missingness_curve(
    curve: pd.DataFrame,
    metric: Literal["rmse", "r2_spot", "r2_spot_median", "r_within", "r_pooled", "r_pooled_median"] = "r2_spot",
    *,
    predictors: Sequence[str] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show a metric against the share of genes that are missing.

    Parameters
    ----------
    curve
        What :func:`sagefm.benchmark.missingness_curve` returns.
    metric
        Column to show.
    predictors
        Which predictors to show; all by default.
    ax
        Axes to draw into; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    The axes. A dashed line is the metric in pretraining's task, where only the centre's genes are hidden, of the first
    predictor; for the mean R² of a spot a dotted line is at 80 % of it, and an arrow at the critical share.

    Raises
    ------
    KeyError
        If there is no such column or predictor.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure S2.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> curve = sg.benchmark.missingness_curve(adata, "sagefm-mini", fractions=[0.1, 0.5, 0.9])
    >>> ax = sg.pl.missingness_curve(curve, predictors=["sagefm-mini", "neighbour mean"])
    """
    known = list(dict.fromkeys(curve["predictor"]))
    if metric not in LABELS or metric not in curve:
        raise KeyError(f"no metric {metric!r}; there are {[name for name in LABELS if name in curve]}.")
    names = known if predictors is None else [predictors] if isinstance(predictors, str) else list(predictors)
    if unknown := [name for name in names if name not in known]:
        raise KeyError(f"no predictor {unknown[0]!r}; there are {known}.")
    ax = get_axes(ax, (6.4, 3.8))
    for number, name in enumerate(names):
        part = curve[(curve["predictor"] == name) & (curve["task"] == "everywhere")].sort_values("fraction")
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        ax.plot(100 * part["fraction"], part[metric], color=color, marker=marker, markersize=5, label=name)
    first = curve[curve["predictor"] == names[0]]
    center = float(first.loc[first["task"] == "center", metric].iloc[0])
    ax.axhline(center, color=COLORS[0], linestyle="--", linewidth=1, label=f"{names[0]}, centre alone hidden")
    critical = float(first["critical_fraction"].iloc[0])
    if metric == "r2_spot" and center > 0:
        ax.axhline(0.8 * center, color=COLORS[0], linestyle=":", linewidth=1, label="80 % of that")
        if np.isfinite(critical):
            ax.annotate(
                f"{'≤ ' if critical <= first['fraction'].min() else ''}{critical:.0%}",
                (100 * critical, 0.8 * center),
                xytext=(0, 28),
                textcoords="offset points",
                ha="center",
                arrowprops={"arrowstyle": "->", "color": "0.3"},
            )
    ax.set(xlabel="genes missing, %", ylabel=LABELS[metric], xlim=(0, 100))
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    tidy(ax, grid="y")
    return finish(ax, save)
