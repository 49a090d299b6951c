"""Responses of receptors to their ligands: shares of spots, and doses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._types import Bools
from sagefm._utils import shorten
from sagefm.pl._axes import BLUE, MARKERS, ORANGE, finish, legend_below, legend_beside, legend_entry, open_axes, tidy
from sagefm.pl._perturb.recorded import arrow, choose_pairs, run_pairs, sign_of, table_in
from sagefm.pl._tables import choose

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from spatialdata import SpatialData

SHARES = ["frac_up", "frac_down"]
RESPONDS, NOT_TESTABLE = "responds", "not testable"  # verdicts of sg.tl.perturb_lr
GREY = "0.7"


@fill_docstring
def perturbation_lollipop(
    adata: AnnData | SpatialData,
    pairs: Sequence[str] | None = None,
    *,
    n_pairs: int = 30,
    library_id: str | Sequence[str] | None = None,
    key: str = _keys.PERTURB_LR,
    table_key: str = "table",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show the share of spots where each receptor goes up or down.

    A line to the right is the share that goes up, one to the left the share that goes down; what is missing to 1
    stays as it is. Pairs that respond more than their control genes have colors and a star, all others are grey.
    Names of pairs have the sign of the measured correlation. Each slide has a marker of its own where results are by
    library; the verdict is that of all slides together.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.perturb_lr`.
    pairs
        Pairs to show, ``LIGAND|RECEPTOR``. By default those with the largest effect, significant ones first.
    {n_pairs}
    library_id
        Slides to draw beside each other, one name or several, which take circle, triangle, square, diamond and so on
        in this order. By default all if there are six or fewer, else the results of all spots together.
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
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``.

    Raises
    ------
    KeyError
        If there are no results, or no such pair.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 5c. ``library_id=["validation", "test"]`` gives the paper's markers. Its green
    and red stand for the sign of the measured correlation, which is printed beside the names here.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4"), ("CSF1", "CSF1R")], "sagefm-mini", n_controls=0)
    >>> ax = sg.pl.perturbation_lollipop(adata, show=False)
    """
    adata = get_anndata(adata, table_key)
    results = run_pairs(table_in(adata, key, [*SHARES, "status", "effect", "reference_r"]))
    results = choose_pairs(results, pairs, n_pairs, key)
    parts = _by_library(adata, key, results, library_id)
    ax, show = open_axes(ax, figsize or (5.6, 1.2 + 0.28 * len(results) * max(1, len(parts) / 2)), show)
    verdicts = results.get("verdict", pd.Series(NOT_TESTABLE, results.index))
    tested = verdicts.ne(NOT_TESTABLE).any()
    colored = verdicts.eq(RESPONDS) | (not tested)  # grey is a verdict, so nothing is grey without one
    _draw_shares(ax, parts, colored.to_numpy())
    _name_pairs(ax, results, verdicts if tested else None)
    legend_below(ax, _legend(parts, colored.to_numpy(), verdicts if tested else None, results["reference_r"]))
    tidy(ax, grid="x")
    return finish(ax, title, show, save, return_fig)


@fill_docstring
def dose_response(
    adata: AnnData | SpatialData,
    pairs: Sequence[str] | None = None,
    *,
    n_pairs: int = 6,
    key: str = _keys.PERTURB_LR,
    table_key: str = "table",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show the mean predicted receptor at every level of the ligand.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.perturb_lr` with ``n_levels`` above 2.
    pairs
        Pairs to show, ``LIGAND|RECEPTOR``. By default those with the largest mean change.
    {n_pairs}
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
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. Changes are from the
    lowest level, so that receptors of any abundance share the axis.

    Raises
    ------
    KeyError
        If there are no levels, or no such pair.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], "sagefm-mini", n_controls=0, n_levels=5)
    >>> ax = sg.pl.dose_response(adata, show=False)
    """
    import matplotlib as mpl

    adata = get_anndata(adata, table_key)
    results = run_pairs(table_in(adata, key, ["status", "mean_delta"]))
    doses = table_in(adata, key, ["pair", "level", "dose", "mean"], "doses")
    shown = choose_pairs(results, pairs, n_pairs, key, by="mean_delta").index
    if lacking := [name for name in shown if not (doses["pair"] == name).any()]:
        raise KeyError(f"there are no doses of {shorten(lacking)}. Run sg.tl.perturb_lr again.")
    ax, show = open_axes(ax, figsize or (5.4, 3.8), show)
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    colors = mpl.colormaps["viridis"](np.linspace(0.0, 0.75, max(len(shown), 2)))
    for number, name in enumerate(shown):
        part = doses[doses["pair"] == name].sort_values("level")
        change = part["mean"].to_numpy() - part["mean"].iloc[0]
        marker = MARKERS[number % len(MARKERS)]
        ax.plot(part["dose"], change, marker=marker, color=colors[number], label=arrow(name))
    ax.set(xlabel="ligand in the neighbors, log1p counts", ylabel="change of the receptor, log1p counts")
    legend_beside(ax, title="ligand → receptor")
    tidy(ax, grid="y")
    return finish(ax, title, show, save, return_fig)


def _by_library(
    adata: AnnData, key: str, results: pd.DataFrame, library_id: str | Sequence[str] | None
) -> dict[str, pd.DataFrame]:
    """Rows of the pairs in each library, or in all spots."""
    if "libraries" not in adata.uns[key] and library_id is None:
        return {"": results}
    libraries = table_in(adata, key, [*SHARES, "library", "pair"], "libraries").drop_duplicates(["library", "pair"])
    names = choose(library_id, libraries["library"].astype(str), "library_id", f"adata.uns[{key!r}]['libraries']")
    if library_id is None and len(names) > len(MARKERS):
        return {"": results}
    parts = libraries.set_index("pair").groupby(libraries["library"].astype(str).to_numpy())
    return {name: parts.get_group(name).reindex(results.index) for name in names}


def _draw_shares(ax: Axes, parts: dict[str, pd.DataFrame], colored: Bools) -> None:
    """Draw a row of each pair, the libraries below each other; filled markers are up, open ones down."""
    at = np.arange(len(colored))[::-1]
    offsets = np.linspace(0.25, -0.25, len(parts)) if len(parts) > 1 else [0.0]
    for number, (part, offset) in enumerate(zip(parts.values(), offsets, strict=True)):
        marker = MARKERS[number % len(MARKERS)]
        for column, sign, color in (("frac_up", 1, ORANGE), ("frac_down", -1, BLUE)):
            share = sign * part[column].to_numpy(dtype=float)
            edges = np.where(colored, color, GREY)
            ax.hlines(at + offset, 0, share, color=edges, linewidth=2.2, zorder=1)
            fill = edges if sign > 0 else "white"
            ax.scatter(share, at + offset, marker=marker, s=34, color=fill, edgecolor=edges, linewidth=1.4, zorder=2)
    ax.axvline(0, color="0.4", linewidth=0.8, zorder=0)
    ax.set(xlim=(-1.08, 1.08), ylim=(-0.8, len(at) - 0.2), yticks=at)
    ticks = np.linspace(-1, 1, 5)
    ax.set_xticks(ticks, [f"{abs(tick):g}" for tick in ticks])
    ax.set_xlabel("share of spots\n← receptor goes down      receptor goes up →")


def _name_pairs(ax: Axes, results: pd.DataFrame, verdicts: pd.Series | None) -> None:
    """Name the rows, with the sign of the measured correlation and a mark of the verdict."""
    marks = {RESPONDS: " *", NOT_TESTABLE: " †"}
    names = [f"{arrow(name)} ({sign_of(r)})" for name, r in results["reference_r"].items()]
    if verdicts is not None:
        names = [f"{name}{marks.get(verdict, '')}" for name, verdict in zip(names, verdicts, strict=True)]
    ax.set_yticklabels(names)


def _legend(
    parts: dict[str, pd.DataFrame], colored: Bools, verdicts: pd.Series | None, reference: pd.Series
) -> list[Line2D]:
    """Entries for each library, color, mark and sign that is drawn."""
    handles = [legend_entry(name, MARKERS[i % len(MARKERS)]) for i, name in enumerate(parts) if name]
    if colored.any():
        down = legend_entry("receptor goes down", "o", BLUE)
        down.set_markerfacecolor("white")
        handles += [legend_entry("receptor goes up", "o", ORANGE), down]
    if verdicts is None:
        handles.append(legend_entry("no controls, so no verdict"))
    else:
        if verdicts.eq(RESPONDS).any():
            handles.append(legend_entry("*  responds more than control genes"))
        if not colored.all():
            handles.append(legend_entry("no more than control genes", "o", GREY))
        if verdicts.eq(NOT_TESTABLE).any():
            handles.append(legend_entry("†  could not be tested"))
    unknown = ", (?) unknown" if reference.isna().any() else ""
    return [*handles, legend_entry(f"(+) (−)  measured correlation{unknown}")]
