"""Clusters: on the tissue, their genes, and the tissues they are found in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm._docs import fill_docstring
from sagefm.pl._axes import BLUE, ORANGE, finish, legend_below, legend_beside, name_points, open_axes, palette_of, tidy
from sagefm.pl._spatial import draw_map, finish_maps, get_slides, open_maps, stored_colors
from sagefm.pl._tables import choose

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData


MAX_FOLD_CHANGE, MIN_PADJ = 8.0, 1e-300  # ends of the volcano's axes


@fill_docstring
def cluster(
    adata: AnnData | SpatialData,
    key: str = _keys.CLUSTER,
    *,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    spatial_key: str = _keys.SPATIAL,
    palette: str | Sequence[str] | None = None,
    table_key: str = "table",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
    **kwargs: Any,
) -> Axes | list[Axes] | Figure | None:
    """Show clusters on the tissue, one panel for each slide.

    Parameters
    ----------
    adata
        Slide, or several, after :func:`sagefm.tl.cluster`.
    {key}
    {library_key}
    {library_id}
    {spatial_key}
    {palette}
    {table_key}
    {ax}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}
    {map_options}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``; a list of axes for several
    slides.

    Raises
    ------
    KeyError
        If there are no clusters, or the coordinates are missing.
    ValueError
        If several slides are to be drawn into ``ax``.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> sg.tl.cluster(adata)
    >>> ax = sg.pl.cluster(adata, show=False)
    """
    adata = get_anndata(adata, table_key)
    run = "sg.tl.cluster(adata)"
    if key not in adata.obs:
        raise KeyError(f"{key!r} not in adata.obs. Run {_keys.advise(run, key)} first.")
    params = get_result(adata, (key, "params"), Mapping, ["use_rep"], run)
    slides = get_slides(adata, spatial_key, library_key, library_id)
    axes, show = open_maps(ax, len(slides), figsize, show)
    colors = stored_colors(adata, key) if palette is None else palette
    groups = adata.obs[key].astype("category")
    for number, (axis, slide) in enumerate(zip(axes, slides, strict=True), start=1):
        legend = number == len(slides)  # one for all
        draw_map(axis, slide, groups, title=f"clusters of {params['use_rep']}", colors=colors, legend=legend, **kwargs)
    return finish_maps(axes, title, show, save, return_fig)


@fill_docstring
def cluster_markers(
    adata: AnnData | SpatialData,
    cluster: str | None = None,
    *,
    n_labels: int = 7,
    max_padj: float = 0.05,
    min_log2_fold_change: float = 1.0,
    key: str = _keys.CLUSTER_MARKERS,
    ax: Axes | None = None,
    table_key: str = "table",
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
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
        How many of the best-scored genes to name, up and down.
    max_padj
        Adjusted p-value up to which a gene is colored.
    min_log2_fold_change
        And the fold change from which it is, up or down.
    {key}
    {ax}
    {table_key}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. Dotted lines are the two
    thresholds. Triangles at the edges are genes with a fold change beyond 8 or an adjusted p-value below 1e-300.

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
    fold, p = part["log2_fold_change"].to_numpy(), part["padj"].to_numpy()
    hit = (p <= max_padj) & (np.abs(fold) >= min_log2_fold_change)
    up, down = hit & (fold > 0), hit & (fold < 0)
    beyond = (np.abs(fold) > MAX_FOLD_CHANGE) | (p < MIN_PADJ)
    x, y = fold.clip(-MAX_FOLD_CHANGE, MAX_FOLD_CHANGE), -np.log10(p.clip(MIN_PADJ))
    ax, show = open_axes(ax, figsize or (5.6, 4.6), show)
    for chosen, color, label in ((~hit, "0.8", "neither"), (up, ORANGE, "up"), (down, BLUE, "down")):
        for marker, edge, note in (("o", ~beyond, ""), ("^", beyond, ", beyond the axis")):
            drawn = chosen & edge
            if drawn.any() or not note:
                style: dict[str, Any] = {"s": 18 if note else 8, "color": color, "marker": marker, "linewidths": 0}
                ax.scatter(x[drawn], y[drawn], label=f"{label}{note} ({drawn.sum():,})", rasterized=True, **style)
    ax.axhline(-np.log10(max_padj), color="0.7", linewidth=0.8, linestyle=":", zorder=0)
    for limit in (-min_log2_fold_change, min_log2_fold_change):
        ax.axvline(limit, color="0.7", linewidth=0.8, linestyle=":", zorder=0)
    ax.set(xlabel="log2 fold change", ylabel="−log10 adjusted p", title=f"cluster {cluster}")
    ax.margins(0.12)
    legend_below(ax, n_columns=3)
    tidy(ax)
    size = np.abs(part["score"].to_numpy())
    best = np.concatenate([np.flatnonzero(way)[np.argsort(-size[way], kind="stable")][:n_labels] for way in (up, down)])
    points = np.column_stack([x, y])
    name_points(ax, points[best], part["gene"].to_numpy()[best], beside=points[hit])
    return finish(ax, title, show, save, return_fig)


@fill_docstring
def cluster_proportions(
    adata: AnnData | SpatialData,
    *,
    key: str = _keys.CLUSTER_PROPORTIONS,
    ax: Axes | None = None,
    table_key: str = "table",
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
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
    {figsize}
    {title}
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
    ax, show = open_axes(ax, figsize or (6.4, 0.34 * len(sizes) + 1.2), show)
    shares.plot.barh(stacked=True, width=0.8, color=palette_of(shares.shape[1]), ax=ax)
    ax.set(xlabel="share of the cluster's spots", ylabel="cluster (spots)", xlim=(0, 1), ylim=(len(sizes) - 0.5, -0.5))
    ax.set_yticks(range(len(sizes)), [f"{name} ({size})" for name, size in sizes.items()])
    legend_beside(ax)
    tidy(ax)
    return finish(ax, title, show, save, return_fig)
