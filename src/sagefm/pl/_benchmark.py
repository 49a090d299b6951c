"""Scores of representations and predictors beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from sagefm._docs import fill_docstring
from sagefm.pl._axes import (
    MARKERS,
    finish,
    legend_beside,
    legend_entry,
    open_axes,
    palette_of,
    tidy,
)
from sagefm.pl._tables import check_columns, choose

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORES = {
    "accuracy": "accuracy",
    "f1_macro": "macro-F1",
    "f1_micro": "micro-F1",
    "recall_macro": "recall, macro",
    "precision_macro": "precision, macro",
    "ari": "adjusted Rand index",
    "nmi": "normalised mutual information",
    "bce": "binary cross-entropy",
}
ERRORS = {
    "rmse": "RMSE, log1p counts",
    "r2_spot": "R² of a spot, mean",
    "r2_spot_median": "R² of a spot, median",
    "r_within": "r of a gene within a section, mean",
    "r_pooled": "r of a gene, mean",
    "r_pooled_median": "r of a gene, median",
}


@fill_docstring
def benchmark_violin(
    data: pd.DataFrame,
    metric: str = "f1_macro",
    *,
    by: str = "classifier",
    representations: Sequence[str] | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show a metric of representations: its spread over fits, and each held-out group.

    Parameters
    ----------
    data
        What :func:`sagefm.benchmark.evaluate_annotation` returned, or any table with a column ``representation``.
    {metric}
    by
        Column that colors tell apart, where the table has it.
    representations
        Which to show, in this order; all by default.
    {ax}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. There is a violin over
    all fits (bootstraps of all groups), a dot for each group (fit on all training spots), and a bar at the dots'
    mean.

    Raises
    ------
    KeyError
        If there is no such column or representation.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 3.

    Examples
    --------
    >>> import pandas as pd
    >>> import sagefm as sg
    >>> scores = pd.DataFrame({{"representation": ["X_sage", "PCA"] * 3, "f1_macro": [0.4, 0.3, 0.5, 0.3, 0.4, 0.2]}})
    >>> ax = sg.pl.benchmark_violin(scores, show=False)
    """
    check_columns(data, ["representation", metric], "sg.benchmark.evaluate_annotation")
    names = choose(representations, data["representation"], "representation", "the table")
    shades = list(dict.fromkeys(data[by])) if by in data else [None]
    ax, show = open_axes(ax, figsize or (7.0, 0.42 * len(names) * max(1, 0.75 * len(shades)) + 1.1), show)
    colors, height = palette_of(len(shades)), 0.8 / len(shades)
    for number, name in enumerate(names):
        for shade_number, (shade, color) in enumerate(zip(shades, colors, strict=True)):
            part = data[data["representation"] == name]
            part = part if shade is None else part[part[by] == shade]
            y = number + (shade_number - (len(shades) - 1) / 2) * height
            _draw_violin(ax, part, metric, y, height, color)
    ax.set(xlabel=SCORES.get(metric, metric), ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), names)
    if shades != [None]:
        handles = [legend_entry(shade, "o", color) for shade, color in zip(shades, colors, strict=True)]
        legend_beside(ax, handles, title=by)
    tidy(ax, grid="x")
    return finish(ax, title, show, save, return_fig)


@fill_docstring
def missingness_curve(
    curve: pd.DataFrame,
    metric: Literal["rmse", "r2_spot", "r2_spot_median", "r_within", "r_pooled", "r_pooled_median"] = "r2_spot",
    *,
    predictors: Sequence[str] | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show a metric against the share of genes that are missing.

    Parameters
    ----------
    curve
        What :func:`sagefm.benchmark.missingness_curve` returns, of one model, or of several with
        :func:`pandas.concat`.
    {metric}
    predictors
        Which predictors to show; all by default.
    {ax}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. A dashed line is a model's
    metric in pretraining's task, where only the center's genes are hidden; for the mean R² of a spot an arrow shows
    the critical share, where the curve falls under 80 % of it, and a dotted line that level.

    Raises
    ------
    KeyError
        If there is no such column or predictor.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure S2, which compares models trained with 20 and 30 % of the genes masked.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> curve = sg.benchmark.missingness_curve(adata, "sagefm-mini", fractions=[0.1, 0.5, 0.9])
    >>> ax = sg.pl.missingness_curve(curve, predictors=["sagefm-mini", "neighbor mean"], show=False)
    """
    from sagefm.models._baselines import PREDICTORS  # brings torch

    choose(metric, [name for name in ERRORS if name in curve], "metric", "the table")
    names = choose(predictors, curve["predictor"], "predictor", "the table")
    curve = curve.drop_duplicates(["predictor", "task", "fraction"])  # several models come with the same baselines
    models = [name for name in names if name not in PREDICTORS] or names[:1]
    ax, show = open_axes(ax, figsize or (6.4, 3.8), show)
    colors = palette_of(len(names))
    for number, name in enumerate(names):
        part = curve[(curve["predictor"] == name) & (curve["task"] == "everywhere")].sort_values("fraction")
        marker = MARKERS[number % len(MARKERS)]
        ax.plot(100 * part["fraction"], part[metric], color=colors[number], marker=marker, markersize=5, label=name)
    for name in models:
        own, color = curve[curve["predictor"] == name], colors[names.index(name)]
        center = float(own.loc[own["task"] == "center", metric].iloc[0])
        ax.axhline(center, color=color, linestyle="--", linewidth=1, label=f"{name}, center alone hidden")
        if metric == "r2_spot" and center > 0:
            _mark_critical(ax, own, 0.8 * center, color, "80 % of that" if name == models[-1] else None)
    ax.set(xlabel="genes missing, %", ylabel=ERRORS[metric], xlim=(0, 100))
    legend_beside(ax)
    tidy(ax, grid="y")
    return finish(ax, title, show, save, return_fig)


def _draw_violin(ax: Axes, part: pd.DataFrame, metric: str, y: float, height: float, color: str) -> None:
    """Draw the spread over all fits, a dot for each fit on all training spots, and the dots' mean."""
    values = part[metric].dropna().to_numpy(dtype=float)
    if not len(values):
        return
    if len(values) > 2 and np.ptp(values) > 0:
        violin = ax.violinplot([values], [y], orientation="horizontal", widths=0.9 * height, showextrema=False)
        for body in violin["bodies"]:  # type: ignore[attr-defined]
            body.set(facecolor=color, alpha=0.25, edgecolor="none")
    whole = part[part["bootstrap"] == 0] if "bootstrap" in part else part
    dots = whole[metric].dropna().to_numpy(dtype=float)
    ax.plot(dots, np.full(len(dots), y), "o", color=color, markersize=3.5, alpha=0.8)
    ax.plot([dots.mean()] * 2, [y - 0.4 * height, y + 0.4 * height], color=color, linewidth=2.5)


def _mark_critical(ax: Axes, curve: pd.DataFrame, level: float, color: str, label: str | None) -> None:
    """Draw 80 % of the metric without missing genes, and the share of them from which it is below."""
    ax.axhline(level, color=color, linestyle=":", linewidth=1, label=label)
    critical = float(curve["critical_fraction"].iloc[0])
    if np.isfinite(critical):
        text = f"{'≤ ' if critical <= curve['fraction'].min() else ''}{critical:.0%}"
        arrow = {"arrowstyle": "->", "color": color}
        ax.annotate(text, (100 * critical, level), (0, 28), textcoords="offset points", ha="center", arrowprops=arrow)
