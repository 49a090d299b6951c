"""How well genes were predicted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm._docs import fill_docstring
from sagefm._utils import check_choice
from sagefm.pl._axes import ORANGE, finish, name_points, open_axes, tidy

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

MIN_R = 0.3  # of a gene that is worth naming


@fill_docstring
def reliability(
    adata: AnnData | SpatialData,
    kind: Literal["scatter", "distribution"] = "scatter",
    *,
    n_labels: int = 5,
    key: str = _keys.IMPUTED,
    table_key: str = "table",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show how well held-out genes were predicted, by the model and by the neighbours' mean.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.impute`.
    kind
        Each gene's correlation by the model against that by the baseline (``"scatter"``), or how both are spread
        (``"distribution"``).
    n_labels
        How many genes of a scatter to name: of the reliable ones with r above 0.3 those that the model adds most to.
    {key}
    {table_key}
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. Filled points are genes
    that are reliable: above the diagonal by more than chance.

    Raises
    ------
    KeyError
        If genes were not scored.
    ValueError
        If ``kind`` is neither of the two, or no gene varies.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=18, n_cols=18, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.impute(adata, adata.var_names[:50].tolist(), "sagefm-mini")
    >>> ax = sg.pl.reliability(adata, show=False)
    """
    check_choice("kind", kind, ("scatter", "distribution"))
    adata = get_anndata(adata, table_key)
    run, columns = "sg.tl.impute(adata, ...)", ["r", "baseline_r", "difference", "reliable"]
    params = get_result(adata, (key, "params"), Mapping, ["mask", "model"], run)
    table = get_result(adata, (key, "reliability"), pd.DataFrame, columns, run, may_be_empty=True)
    table = table.dropna(subset=["r", "baseline_r"])
    if not len(table):
        raise ValueError("no gene varies on the slide, so none has a correlation.")
    model = str(params["model"])
    baseline = "neighbours' mean, scaled by depth" if params["mask"] == "center" else "depth of the spot"
    if kind == "distribution":
        ax, show = open_axes(ax, (5.0, 3.4), show)
        _draw_distribution(ax, table, model, baseline)
    else:
        ax, show = open_axes(ax, (4.8, 4.6), show)
        _draw_scatter(ax, table, n_labels)
        ax.set(xlabel=f"r of the {baseline}", ylabel=f"r of {model}")
    tidy(ax)
    return finish(ax, show, save, return_fig)


def _draw_distribution(ax: Axes, table: pd.DataFrame, model: str, baseline: str) -> None:
    """Draw how the correlations of both are spread."""
    bins = np.linspace(_lowest(table), 1, 45).tolist()
    ax.hist(table["baseline_r"], bins, histtype="stepfilled", color="0.85", label=baseline)
    ax.hist(table["r"], bins, histtype="step", color=ORANGE, linewidth=1.6, label=model)
    ax.set(xlabel="correlation with the measured gene", ylabel="genes")
    ax.legend(frameon=False, fontsize="small")


def _draw_scatter(ax: Axes, table: pd.DataFrame, n_labels: int) -> None:
    """Draw the correlations of both against each other, and name the genes that the model adds most to."""
    limits = (_lowest(table) - 0.02, 1.0)
    ax.plot(limits, limits, color="0.5", linewidth=0.8, zorder=0)
    reliable = table["reliable"].to_numpy(dtype=bool)
    for part, color, edge, label in (
        (table[~reliable], "none", "0.6", "other genes"),
        (table[reliable], ORANGE, ORANGE, "reliable genes"),
    ):
        points = ax.scatter(part["baseline_r"], part["r"], s=12, facecolor=color, edgecolor=edge, linewidth=0.5)
        points.set(label=f"{len(part):,} {label}", rasterized=True)
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.legend(frameon=False, fontsize="small", loc="lower right")
    named = table[reliable & (table["r"] > MIN_R)].nlargest(n_labels, "difference")
    name_points(ax, named[["baseline_r", "r"]].to_numpy(dtype=float), named.index)


def _lowest(table: pd.DataFrame) -> float:
    """Lowest correlation that the axes show."""
    return min(-0.1, float(table[["r", "baseline_r"]].min(axis=None)))
