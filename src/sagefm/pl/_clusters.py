"""Clusters: on the tissue, their genes, and the tissues they are found in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm._docs import fill_docstring
from sagefm._types import Array, Floats
from sagefm.pl._axes import BLUE, ORANGE, finish, legend_beside, open_axes, open_grid, palette, tidy
from sagefm.pl._spatial import draw_groups, get_slides, open_panels
from sagefm.pl._tables import choose

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData


@fill_docstring
def cluster(
    adata: AnnData | SpatialData,
    key: str = _keys.CLUSTER,
    *,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = "table",
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> list[Axes] | Figure | None:
    """Show clusters on the tissue, one panel for each slide.

    Parameters
    ----------
    adata
        Slide, or several, after :func:`sagefm.tl.cluster`.
    {key}
    {drawn_library_key}
    {drawn_library_id}
    {spatial_key}
    {table_key}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. The last panel is the
    silhouette of each number of clusters, where several were tried and there is one slide.

    Raises
    ------
    KeyError
        If there are no clusters, or the coordinates are missing.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> sg.tl.cluster(adata)
    >>> axes = sg.pl.cluster(adata, show=False)
    """
    adata = get_anndata(adata, table_key)
    run = "sg.tl.cluster(adata)"
    if key not in adata.obs:
        raise KeyError(f"{key!r} not in adata.obs. Run {run} first.")
    scores = get_result(adata, (key, "scores"), pd.DataFrame, ["silhouette"], run)
    params = get_result(adata, (key, "params"), Mapping, ["use_rep", "n_clusters"], run)
    slides = get_slides(adata, spatial_key, library_key, library_id)
    if len(slides) > 1 or len(scores) == 1:
        axes = open_panels(len(slides), (4.4, 4.2))
    else:
        (axes,) = open_grid(1, 2, (4.75, 4.2), width_ratios=[1.5, 1])
        _draw_choice(axes[1], scores["silhouette"], params["n_clusters"])
    colors = list(adata.uns.get(f"{key}_colors", ())) or None  # scanpy's, once it has drawn them
    groups = adata.obs[key].astype("category")
    for number, (ax, slide) in enumerate(zip(axes, slides, strict=False), start=1):
        title, last = slide.title(f"clusters of {params['use_rep']}"), number == len(slides)
        draw_groups(ax, slide.coordinates, groups.iloc[slide.rows], title=title, colors=colors, legend=last)
    return finish(axes, show, save, return_fig)


@fill_docstring
def cluster_markers(
    adata: AnnData | SpatialData,
    cluster: str | None = None,
    *,
    n_labels: int = 10,
    max_padj: float = 0.05,
    min_log2_fold_change: float = 1.0,
    key: str = _keys.CLUSTER_MARKERS,
    ax: Axes | None = None,
    table_key: str = "table",
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show the genes of a cluster as a volcano: fold change against p-value.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.cluster_markers`.
    cluster
        Which cluster; the first by default.
    n_labels
        How many of the best-scored genes to name.
    max_padj
        Adjusted p-value up to which a gene is coloured.
    min_log2_fold_change
        And the fold change from which it is, up or down.
    {key}
    {ax}
    {table_key}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. Fold changes are drawn
    up to 8, p-values down to 1e-300.

    Raises
    ------
    KeyError
        If there are no markers, or no such cluster.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 4d-f.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=500)
    >>> sg.tl.cluster_markers(adata, "domain")
    >>> ax = sg.pl.cluster_markers(adata, "immune", show=False)
    """
    columns = ["cluster", "gene", "score", "log2_fold_change", "padj"]
    run = "sg.tl.cluster_markers(adata, ...)"
    results = get_result(get_anndata(adata, table_key), (key, "results"), pd.DataFrame, columns, run)
    wanted = None if cluster is None else str(cluster)
    cluster = choose(wanted, results["cluster"], "cluster", f"adata.uns[{key!r}]")[0]
    part = results[results["cluster"] == cluster]
    x = part["log2_fold_change"].clip(-8, 8).to_numpy()
    y = -np.log10(part["padj"].clip(lower=1e-300).to_numpy())
    hit = (part["padj"].to_numpy() <= max_padj) & (np.abs(x) >= min_log2_fold_change)
    up, down = hit & (x > 0), hit & (x < 0)
    ax, show = open_axes(ax, (5.6, 4.4), show)
    for chosen, color, label in ((~hit, "0.8", None), (up, ORANGE, "up"), (down, BLUE, "down")):
        ax.scatter(x[chosen], y[chosen], s=7, color=color, linewidths=0, label=label)
    best = np.argsort(-np.where(up, part["score"].to_numpy(), -np.inf))[: min(n_labels, up.sum())]
    _name_on_the_right(ax, x[best], y[best], part["gene"].to_numpy()[best])
    title = f"cluster {cluster}: {up.sum()} genes up, {down.sum()} down"
    ax.set(xlabel="log2 fold change", ylabel="−log10 adjusted p", title=title)
    ax.legend(frameon=False, fontsize="small", loc="upper left", markerscale=2)
    tidy(ax)
    return finish(ax, show, save, return_fig)


@fill_docstring
def cluster_proportions(
    adata: AnnData | SpatialData,
    *,
    key: str = _keys.CLUSTER_PROPORTIONS,
    ax: Axes | None = None,
    table_key: str = "table",
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show which tissues (slides, labels) each cluster's spots come from.

    Parameters
    ----------
    adata
        Slides after :func:`sagefm.tl.cluster_proportions`.
    {key}
    {ax}
    {table_key}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. There is a bar for each
    cluster, its parts are the groups; its name has the number of spots.

    Raises
    ------
    KeyError
        If the clusters haven't been counted.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure S5.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=500)
    >>> adata.obs["half"] = (adata.obs["array_row"] < 5).astype(str)
    >>> sg.tl.cluster_proportions(adata, "half", "domain")
    >>> ax = sg.pl.cluster_proportions(adata, show=False)
    """
    columns = ["cluster", "group", "n_spots", "share"]
    run = "sg.tl.cluster_proportions(adata, ...)"
    results = get_result(get_anndata(adata, table_key), (key, "results"), pd.DataFrame, columns, run)
    sizes = results.groupby("cluster", sort=False, observed=True)["n_spots"].sum()
    shares = results.pivot(index="cluster", columns="group", values="share").loc[sizes.index]
    ax, show = open_axes(ax, (6.4, 0.34 * len(sizes) + 1.2), show)
    shares.plot.barh(stacked=True, width=0.8, color=palette(shares.shape[1]), ax=ax)
    ax.set(xlabel="share of the cluster's spots", ylabel="", xlim=(0, 1), ylim=(len(sizes) - 0.5, -0.5))
    ax.set_yticks(range(len(sizes)), [f"{name} ({size})" for name, size in sizes.items()])
    legend_beside(ax)
    tidy(ax)
    return finish(ax, show, save, return_fig)


def _draw_choice(ax: Axes, silhouette: pd.Series, chosen: int) -> None:
    """Draw the silhouette of each number of clusters, and mark the one that was chosen."""
    k = silhouette.index.astype(int)
    ax.plot(k, silhouette, marker="o", color="0.3")
    ax.plot(chosen, silhouette.max(), marker="o", markersize=11, color="tab:red")
    ax.set(xlabel="number of clusters", ylabel="silhouette", title="choice of the number", xticks=k)
    ax.set_box_aspect(0.8)
    tidy(ax)


def _name_on_the_right(ax: Axes, x: Floats, y: Floats, names: Array) -> None:
    """Name points in a column on the right, each name a line below the one above it where they crowd."""
    if not len(x):
        return
    low, high = ax.get_ylim()
    step, last = 0.045 * (high - low), np.inf
    column = max(x) + 0.04 * np.ptp(ax.get_xlim())
    for i in np.argsort(-y):
        last = min(y[i], last - step)
        line = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.5, "relpos": (0, 0.5)}
        ax.annotate(names[i], (x[i], y[i]), (column, last), fontsize="small", va="center", arrowprops=line)
