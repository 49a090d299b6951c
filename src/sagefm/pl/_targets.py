"""Figures of genes and their targets, and of slopes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm._utils import shorten
from sagefm.pl._axes import finish, get_axes, tidy
from sagefm.pl._recorded import RUN, UP, overlap_in, run_pairs, sign_of, table_in

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def target_effects(
    adata: AnnData | SpatialData,
    *,
    key: str = _keys.PERTURB_TARGETS,
    table_key: str = "table",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show the effect of each gene on its targets, and their mean.

    Parameters
    ----------
    adata
        Spots after :func:`sagefm.tl.perturb_targets`.
    key
        Where the results are.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    ax
        Axes to draw into; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    The axes: one point a target, a bar at their mean. After :func:`sagefm.tl.perturbation_overlap` with this key
    the effects in one group of slides are shown against those in the other.

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
    >>> sg.tl.perturb_targets(adata, {"TGFB1": ["COL1A1", "FN1"]}, "sagefm-mini", n_controls=2)
    >>> ax = sg.pl.target_effects(adata)
    """
    adata = get_anndata(adata, table_key)
    results = table_in(adata, key, ["gene", "status", "effect"], default=_keys.PERTURB_TARGETS)
    if "overlap" in adata.uns[key]:
        overlap = overlap_in(adata, key, ["effect_1", "effect_2"], ["effect_r"])
        return finish(_effects_by_group(overlap, ax), save)
    results = run_pairs(results)
    genes = list(dict.fromkeys(results["gene"]))
    ax = get_axes(ax, (1.6 + 0.6 * len(genes), 4.0))
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    for x, gene in enumerate(genes):
        effects = results.loc[results["gene"] == gene, "effect"].to_numpy(dtype=float)
        ax.scatter(x + _spread(len(effects)), effects, s=22, color="0.45", zorder=2)
        ax.hlines(effects.mean(), x - 0.32, x + 0.32, color=UP, linewidth=3, zorder=3)
    ax.set_xticks(range(len(genes)), genes, rotation=45, ha="right", rotation_mode="anchor")
    ax.set(ylim=(-1.08, 1.08), ylabel="effect E on the targets", xlim=(-0.6, len(genes) - 0.4))
    ax.set_title("points: targets; bars: their mean", fontsize="medium")
    tidy(ax, grid="y")
    return finish(ax, save)


def target_controls(
    adata: AnnData | SpatialData,
    *,
    key: str = _keys.PERTURB_TARGETS,
    table_key: str = "table",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show the mean effect on each gene's targets beside that on random genes, and the pooled t-test.

    Parameters
    ----------
    adata
        Spots after :func:`sagefm.tl.perturb_targets` with controls.
    key
        Where the results are.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    ax
        Axes to draw into; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    The axes: a diamond for the targets, circles for the replicates of controls.

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
    >>> sg.tl.perturb_targets(adata, {"TGFB1": ["COL1A1", "FN1"]}, "sagefm-mini", n_controls=3)
    >>> ax = sg.pl.target_controls(adata)
    """
    adata = get_anndata(adata, table_key)
    run_pairs(table_in(adata, key, ["status"], default=_keys.PERTURB_TARGETS))
    columns = ["gene", "replicate", "mean_target", "mean_control", "pval"]
    tests = table_in(adata, key, columns, "tests", default=_keys.PERTURB_TARGETS)
    genes = list(dict.fromkeys(tests["gene"]))
    if lacking := [gene for gene in genes if not ((tests["gene"] == gene) & (tests["replicate"] == "pooled")).any()]:
        raise KeyError(f"the tests have no pooled row of {shorten(lacking)}. Run sg.tl.perturb_targets again.")
    ax = get_axes(ax, (2.0 + 0.65 * len(genes), 4.0))
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    for x, gene in enumerate(genes):
        part = tests[tests["gene"] == gene]
        pooled, replicates = part[part["replicate"] == "pooled"].iloc[0], part[part["replicate"] != "pooled"]
        controls = replicates["mean_control"].to_numpy(dtype=float)
        last = x == len(genes) - 1
        label = "random genes, by replicate" if last else None
        ax.scatter(x + _spread(len(controls)), controls, s=26, facecolor="none", edgecolor="0.4", zorder=2, label=label)
        label = "targets" if last else None
        ax.scatter(x, pooled["mean_target"], marker="D", s=60, color=UP, edgecolor="k", zorder=3, label=label)
        p = pooled["pval"]
        text = "" if np.isnan(p) else f"p {p:.2f}" if p >= 0.01 else f"p {p:.0e}"
        ax.text(x, 1.1, text, ha="center", va="bottom", fontsize="x-small")
    ax.set_xticks(range(len(genes)), genes, rotation=45, ha="right", rotation_mode="anchor")
    ax.set(ylim=(-1.08, 1.25), ylabel="mean effect E", xlim=(-0.6, len(genes) - 0.4), yticks=np.linspace(-1, 1, 5))
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.22), ncols=2)
    tidy(ax, grid="y")
    return finish(ax, save)


def sensitivity_heatmap(
    adata: AnnData | SpatialData,
    *,
    key: str = _keys.SENSITIVITY,
    table_key: str = "table",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show the mean derivatives of predicted genes by genes in the neighbours.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.gene_sensitivity`.
    key
        Where the results are.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    ax
        Axes to draw into; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    The axes. The sign is printed in the cells where there are at most 400.

    Raises
    ------
    KeyError
        If there are no results.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.gene_sensitivity(adata, ["COL1A1", "CD74"], ["COL3A1"], model="sagefm-mini")
    >>> ax = sg.pl.sensitivity_heatmap(adata)
    """
    adata = get_anndata(adata, table_key)
    table = table_in(adata, key, [], default=_keys.SENSITIVITY)
    params = get_result(adata, (key, "params"), Mapping, ["wrt"], RUN[_keys.SENSITIVITY])
    longest = max(map(len, map(str, table.index)))
    ax = get_axes(ax, (2.6 + 0.09 * longest + 0.42 * table.shape[1], 1.6 + 0.34 * table.shape[0]))
    values = table.to_numpy(dtype=float)
    largest = float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto")
    if values.size <= 400:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if abs(value) > 0.6 * largest else "black"
            ax.text(column, row, sign_of(value), ha="center", va="center", color=color, fontsize="small")
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(table.shape[0]), table.index)
    where = "in the neighbours" if params["wrt"] == "neighbors" else "in the spot"
    ax.set(xlabel="predicted gene", ylabel=f"gene {where}")
    ax.figure.colorbar(image, ax=ax, shrink=0.8, label="mean derivative")
    return finish(ax, save)


def _effects_by_group(overlap: Mapping[str, Any], ax: Axes | None) -> Axes:
    pairs, (one, two) = overlap["pairs"], list(overlap["params"]["groups"])
    ax = get_axes(ax, (4.6, 4.4))
    ax.plot([-1, 1], [-1, 1], color="0.7", linewidth=0.8, zorder=0)
    ax.scatter(pairs["effect_1"], pairs["effect_2"], s=26, color=UP, edgecolor="k", linewidth=0.4)
    r = overlap["counts"]["effect_r"]
    ax.set_title("" if np.isnan(r) else f"Pearson r = {r:.2f}, {len(pairs)} targets", fontsize="medium")
    ax.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), xlabel=f"effect E, {one}", ylabel=f"effect E, {two}", aspect="equal")
    tidy(ax)
    return ax


def _spread(n: int) -> np.ndarray:
    """Small offsets that keep points apart."""
    return np.linspace(-0.22, 0.22, n) if n > 1 else np.zeros(n)
