"""Effects of genes on their targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._types import Floats
from sagefm._utils import check_choice
from sagefm.pl._axes import ORANGE, finish, legend_below, legend_beside, name_columns, open_axes, palette_of, tidy
from sagefm.pl._perturb.recorded import overlap_in, run_pairs, table_in

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

TICKS = np.linspace(-1, 1, 5)


@fill_docstring
def target_effects(
    adata: AnnData | SpatialData,
    *,
    key: str = _keys.PERTURB_TARGETS,
    table_key: str = "table",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show the effect of each gene on its targets, and their mean.

    Parameters
    ----------
    adata
        Spots after :func:`sagefm.tl.perturb_targets`.
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
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. A point is a target, a
    bar their mean. After :func:`sagefm.tl.perturbation_overlap` with this key, each gene's mean effect in one group
    of slides is shown against that in the other, its targets in grey.

    Raises
    ------
    KeyError
        If there are no results.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 5e.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_targets(adata, {{"TGFB1": ["COL1A1", "FN1"]}}, "sagefm-mini", n_controls=5)
    >>> ax = sg.pl.target_effects(adata, show=False)
    """
    adata = get_anndata(adata, table_key)
    results = table_in(adata, key, ["gene", "status", "effect"], default=_keys.PERTURB_TARGETS)
    if "overlap" in adata.uns[key]:
        overlap = overlap_in(adata, key, ["effect_1", "effect_2"], ["gene_effect_r"])
        ax, show = open_axes(ax, figsize or (7.0, 4.4), show)
        _draw_groups(ax, overlap)
        return finish(ax, title, show, save, return_fig)
    results = run_pairs(results)
    genes = list(dict.fromkeys(results["gene"]))
    ax, show = open_axes(ax, figsize or (max(3.2, 1.6 + 0.6 * len(genes)), 4.0), show)
    for x, gene in enumerate(genes):
        effects = results.loc[results["gene"] == gene, "effect"].to_numpy(dtype=float)
        points = ax.scatter(x + _spread(len(effects)), effects, s=22, color="0.45", zorder=3)
        bar = ax.hlines(effects.mean(), x - 0.32, x + 0.32, color=ORANGE, linewidth=3, zorder=2)
    _finish_genes(ax, genes, "effect E on the targets", 1.08)
    for drawn, label in ((points, "a target"), (bar, "mean of the targets")):
        drawn.set_label(label)
    legend_below(ax)
    return finish(ax, title, show, save, return_fig)


@fill_docstring
def target_controls(
    adata: AnnData | SpatialData,
    *,
    key: str = _keys.PERTURB_TARGETS,
    table_key: str = "table",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show the mean effect on each gene's targets beside that on control genes, and the p-value.

    Parameters
    ----------
    adata
        Spots after :func:`sagefm.tl.perturb_targets` with controls.
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
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. A diamond is the mean of
    the targets, circles are the replicates of controls.

    Raises
    ------
    KeyError
        If there are no results or no controls.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 5f.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_targets(adata, {{"TGFB1": ["COL1A1", "FN1"]}}, "sagefm-mini", n_controls=5)
    >>> ax = sg.pl.target_controls(adata, show=False)
    """
    adata = get_anndata(adata, table_key)
    run_pairs(table_in(adata, key, ["status"], default=_keys.PERTURB_TARGETS))
    default = _keys.PERTURB_TARGETS
    tests = table_in(adata, key, ["gene", "mean_target", "pval"], "tests", default=default).set_index("gene")
    controls = table_in(adata, key, ["gene", "replicate", "effect"], "controls", default=default)
    replicates = pd.concat([controls, controls.assign(gene="all")]).groupby(["gene", "replicate"])["effect"].mean()
    genes = list(tests.index)
    ax, show = open_axes(ax, figsize or (2.0 + 0.65 * len(genes), 4.0), show)
    for x, gene in enumerate(genes):
        means = replicates[gene].to_numpy(dtype=float)
        circles = ax.scatter(x + _spread(len(means)), means, s=26, facecolor="none", edgecolor="0.4", zorder=2)
        mean, p = tests.loc[gene, ["mean_target", "pval"]]
        diamond = ax.scatter(x, mean, marker="D", s=60, color=ORANGE, edgecolor="k", zorder=3)
        text = "" if np.isnan(p) else f"p = {p:.2g}"
        ax.text(x, 1.1, text, ha="center", va="bottom", fontsize="x-small")
    _finish_genes(ax, genes, "mean effect E", 1.25)
    for drawn, label in ((circles, "control genes (a replicate)"), (diamond, "targets")):
        drawn.set_label(label)
    legend_below(ax)
    return finish(ax, title, show, save, return_fig)


@fill_docstring
def target_replicates(
    adata: AnnData | SpatialData,
    *,
    unit: Literal["gene", "target"] = "gene",
    key: str = _keys.PERTURB_TARGETS,
    table_key: str = "table",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show the mean effect on all targets beside that on each replicate of control genes, by slide.

    Parameters
    ----------
    adata
        Spots after :func:`sagefm.tl.perturb_targets` with controls.
    unit
        Whether each gene's mean is one value (``"gene"``), or each target (``"target"``).
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
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. A line with a band is the
    mean of the targets and its standard error, dots are the replicates of controls; filled ones differ (p < 0.05).
    Each slide, or other group of ``library_key``, has its color.

    Raises
    ------
    KeyError
        If there are no results or no controls.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 5f, both panels in one.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> targets = {{"TGFB1": ["COL1A1", "FN1"]}}
    >>> sg.tl.perturb_targets(adata, targets, "sagefm-mini", controls="random", n_controls=10)
    >>> ax = sg.pl.target_replicates(adata, unit="target", show=False)
    """
    check_choice("unit", unit, ("gene", "target"))
    columns = ["unit", "library", "replicate", "mean_target", "sem_target", "mean_control", "pval"]
    default = _keys.PERTURB_TARGETS
    table = table_in(get_anndata(adata, table_key), key, columns, "replicates", default=default)
    table = table[table["unit"] == unit]
    libraries = list(dict.fromkeys(table["library"]))[1:] or ["all"]
    ax, show = open_axes(ax, figsize or (6.4, 3.8), show)
    for library, color in zip(libraries, palette_of(len(libraries)), strict=True):
        part = table[table["library"] == library]
        whole, part = part.iloc[0], part[part["replicate"] != "all"]
        x, name = np.arange(1, len(part) + 1), "" if library == "all" else f"{library}: "
        mean, error = whole["mean_target"], np.nan_to_num(whole["sem_target"])
        ax.axhspan(mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
        ax.axhline(mean, color=color, linewidth=2, label=f"{name}targets ± standard error")
        differs = (part["pval"] < 0.05).to_numpy()
        label = f"{name}controls; {differs.sum()} of {len(part)} differ (p < 0.05)"
        ax.plot(x, part["mean_control"], color=color, linewidth=0.8, linestyle=":")
        faces = np.where(differs, color, "white")
        ax.scatter(x, part["mean_control"], s=28, facecolor=faces, edgecolor=color, label=label, zorder=3)
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlabel="replicate of the control genes", ylabel="mean effect E", xticks=x)
    legend_below(ax)
    tidy(ax, grid="y")
    return finish(ax, title, show, save, return_fig)


def _finish_genes(ax: Axes, genes: list[str], label: str, top: float) -> None:
    """Give effects by gene their axes."""
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    name_columns(ax, genes)
    ax.set(ylim=(-1.08, top), ylabel=label, xlim=(-0.6, len(genes) - 0.4), yticks=TICKS)
    tidy(ax, grid="y")


def _draw_groups(ax: Axes, overlap: Mapping[str, Any]) -> None:
    """Draw the effects in one group of slides against those in the other."""
    pairs, genes, (one, two) = overlap["pairs"], overlap["genes"], list(overlap["params"]["groups"])
    ax.plot([-1, 1], [-1, 1], color="0.7", linewidth=0.8, zorder=0)
    ax.scatter(pairs["effect_1"], pairs["effect_2"], s=14, color="0.7", label=f"a target ({len(pairs)})")
    label = f"mean of a gene's targets ({len(genes)})"
    ax.scatter(genes["effect_1"], genes["effect_2"], s=34, color=ORANGE, edgecolor="k", linewidth=0.4, label=label)
    r = overlap["counts"]["gene_effect_r"]
    ax.set_title("" if np.isnan(r) else f"Pearson r = {r:.2f}, {len(genes)} genes", fontsize="medium")
    legend_beside(ax)
    ax.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), aspect="equal", xticks=TICKS, yticks=TICKS)
    ax.set(xlabel=f"effect E, {one}", ylabel=f"effect E, {two}")
    tidy(ax)


def _spread(n: int) -> Floats:
    """Small offsets that keep points apart."""
    return np.linspace(-0.22, 0.22, n) if n > 1 else np.zeros(n)
