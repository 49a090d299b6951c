"""How well genes were predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm._docs import fill_docstring
from sagefm._utils import check_choice
from sagefm.pl._axes import BLUE, ORANGE, finish, legend_below, name_points, open_axes, tidy
from sagefm.pl._tables import choose

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData


@fill_docstring
def reliability(
    adata: AnnData | SpatialData,
    kind: Literal["scatter", "distribution"] = "scatter",
    *,
    genes: str | Sequence[str] | None = None,
    n_labels: int = 5,
    key: str = _keys.IMPUTED,
    table_key: str = "table",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show how well held-out genes were predicted beyond depth, against what a perfect predictor could reach.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.impute`.
    kind
        Each gene's correlation beyond depth against the attainable one (``"scatter"``); or how the correlations of the
        model, of the neighbors and of depth alone are spread over the genes that have something to predict
        (``"distribution"``).
    genes
        Genes of a scatter to name.
    n_labels
        How many to name if ``genes`` is not given: all if there are no more, else the reliable ones predicted best.
    {key}
    {table_key}
    {ax}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. Filled points are genes
    that are reliable. On the diagonal all that counting noise leaves was predicted. Small points are genes of which
    chance could have made all there is to predict, or which too few places show for a test.

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
    columns = ["r_beyond_depth", "attainable_r", "share", "testable", "reliable"]
    run = "sg.tl.impute(adata, ...)"
    params = get_result(adata, (key, "params"), Mapping, ["mask", "model"], run)
    table = get_result(adata, (key, "reliability"), pd.DataFrame, columns, run, may_be_empty=True)
    table = table.dropna(subset=["r_beyond_depth", "attainable_r"])
    if not len(table):
        raise ValueError("no gene varies beyond depth on the slide, so none has a correlation.")
    named = None if genes is None else choose(genes, table.index, "gene", f"adata.uns[{key!r}]['reliability']")
    if kind == "distribution":
        ax, show = open_axes(ax, figsize or (5.0, 3.4), show)
        _draw_distribution(ax, table, str(params["model"]))
    else:
        ax, show = open_axes(ax, figsize or (4.8, 4.8), show)
        _draw_scatter(ax, table, named, n_labels)
    tidy(ax)
    return finish(ax, title, show, save, return_fig)


def _draw_distribution(ax: Axes, table: pd.DataFrame, model: str) -> None:
    """Draw how the correlations of all predictors are spread."""
    known = table[table["share"].notna()]
    known = known if len(known) else table
    drawn = {
        "depth_r_beyond_depth": ("depth alone", "0.6"),
        "neighbors_r_beyond_depth": ("neighbors, scaled by depth", BLUE),
        "r_beyond_depth": (model, ORANGE),
    }
    values = known[[column for column in drawn if column in known]]
    bins = np.linspace(min(-0.1, float(values.min(axis=None))), max(0.3, float(values.max(axis=None))), 45).tolist()
    for column in values:
        label, color = drawn[column]
        ax.hist(values[column], bins, histtype="step", color=color, linewidth=1.6, label=label)
    ax.set(xlabel="correlation with the measured gene, given depth", ylabel="genes")
    ax.legend(frameon=False, fontsize="small")


def _draw_scatter(ax: Axes, table: pd.DataFrame, named: list[str] | None, n_labels: int) -> None:
    """Draw what was reached against what is attainable, and name some genes."""
    x, y = table["attainable_r"].clip(lower=0), table["r_beyond_depth"]
    known = table["share"].notna() & table["testable"]
    reliable = table["reliable"].astype(bool)
    top = 1.05 * max(float(x.max()), float(y.max()), 0.2)
    ax.plot([0, top], [0, top], color="0.5", linewidth=0.8, zorder=0, label="all that is attainable")
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    for chosen, size, color, edge, label in (
        (~known, 3, "0.8", "none", "not tested"),
        (known & ~reliable, 12, "none", "0.5", "not reliable"),
        (reliable, 12, ORANGE, ORANGE, "reliable"),
    ):
        drawn = ax.scatter(x[chosen], y[chosen], s=size, facecolor=color, edgecolor=edge, linewidth=0.5)
        drawn.set(label=f"{label} ({int(chosen.sum()):,} genes)", rasterized=True)
    ax.set(xlim=(-0.02 * top, top), ylim=(min(-0.1, float(y.min())) - 0.02, top))
    ax.set(xlabel="attainable r beyond depth", ylabel="r beyond depth")
    legend_below(ax)
    if named is None:
        named = list(
            table.index if len(table) <= n_labels else table[reliable].nlargest(n_labels, "r_beyond_depth").index
        )
    points = np.column_stack([x, y])
    name_points(ax, points[table.index.get_indexer(named)], named, beside=points[reliable])
