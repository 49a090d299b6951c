"""Distances between samples, and what representations make of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagefm._docs import fill_docstring
from sagefm.pl._axes import finish, legend_beside, open_axes, palette_of, tidy
from sagefm.pl._tables import check_columns, choose

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_ERROR = 1e-4  # below, it is the base representation itself but for rounding
COLUMNS = ("representation", "sample", "other", "kind", "distance", "scaled", "error")


@fill_docstring
def centroid_distances(
    data: pd.DataFrame,
    representation: str | None = None,
    *,
    scaled: bool = False,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show the distances between samples as a clustered heatmap.

    Parameters
    ----------
    {distances}
    representation
        Which representation to show; the first by default.
    scaled
        Show distances scaled to [0, 1], as they are compared between representations, instead of cosine distances.
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes of the heatmap, or the figure with ``return_fig=True``. The
    heatmap shows distances, rows and columns in the order of average-linkage clustering, and a color
    bar on the left for the kind (tissue) of each sample where there are several.

    Raises
    ------
    KeyError
        If there is no such representation, or the table is another one.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 2c.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> pairs = sg.benchmark.centroid_distances(adata, "X_sage", "domain")
    >>> ax = sg.pl.centroid_distances(pairs, show=False)
    """
    import seaborn as sns
    from matplotlib.patches import Patch
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    name = _names(data, representation)[0]
    part = data[data["representation"] == name]
    matrix = part.pivot(index="sample", columns="other", values="scaled" if scaled else "distance")
    values = matrix.to_numpy(copy=True)
    np.fill_diagonal(values, 0.0)
    matrix[:] = values
    tree = linkage(squareform((values + values.T) / 2, checks=False), method="average")
    kinds = part.drop_duplicates("sample").set_index("sample")["kind"].reindex(matrix.index)
    colors = dict(zip(sorted(kinds.unique()), palette_of(kinds.nunique()), strict=True))
    side = max(4.0, 0.22 * len(matrix) + 2.5)
    grid = sns.clustermap(
        matrix,
        row_linkage=tree,
        col_linkage=tree,
        row_colors=kinds.map(colors).rename("") if len(colors) > 1 else None,
        cmap="viridis",
        figsize=figsize or (side + 1.2, side),
        dendrogram_ratio=0.12,
        cbar_pos=(0.01, 0.86, 0.02, 0.12),
        xticklabels=True,
        yticklabels=True,
    )
    ax = grid.ax_heatmap
    ax.set(xlabel="", ylabel="")
    ax.tick_params(axis="y", rotation=0)
    what = "scaled cosine distance" if scaled else "cosine distance"
    grid.figure.suptitle(f"{name}: {what} of samples" if title is None else title, y=1.1)
    if len(colors) > 1:
        handles = [Patch(color=color, label=kind) for kind, color in colors.items()]
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4}
        grid.ax_col_dendrogram.legend(handles=handles, frameon=False, fontsize="small", **above)
    return finish(ax, None, show, save, return_fig)


@fill_docstring
def distance_error(
    data: pd.DataFrame,
    representations: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show how far scaled distances between samples are from those in expression, as densities.

    Parameters
    ----------
    {distances}
    representations
        Which to show; all by default.
    {ax}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. The vertical line of a
    representation is its mean error, which the legend gives.

    Raises
    ------
    KeyError
        If there is no such representation, or the table is another one.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 2b.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> pairs = sg.benchmark.centroid_distances(adata, "X_sage", "domain")
    >>> ax = sg.pl.distance_error(pairs, show=False)
    """
    import seaborn as sns

    names = _names(data, representations)
    ax, show = open_axes(ax, figsize or (6.6, 3.8), show)
    colors = palette_of(10)
    for number, name in enumerate(names):
        error = data.loc[data["representation"] == name, "error"]
        color, style = colors[number % 10], ("-", "--", ":")[number // 10 % 3]
        label = f"{name} ({error.mean():.3f})"
        if error.max() > MIN_ERROR:
            sns.kdeplot(x=error, ax=ax, color=color, linestyle=style, cut=0, label=label)
            ax.axvline(error.mean(), color=color, linestyle=style, linewidth=0.8, alpha=0.6)
        else:  # the base representation itself
            ax.axvline(0, color=color, linestyle=style, label=label)
    ax.set(xlabel="absolute error of the scaled distance", ylabel="density", xlim=(0, None), ylim=(0, None))
    legend_beside(ax, title="mean error")
    tidy(ax, grid="x")
    return finish(ax, title, show, save, return_fig)


def _names(data: pd.DataFrame, wanted: str | Sequence[str] | None) -> list[str]:
    """Representations to show, checked."""
    check_columns(data, COLUMNS, "sg.benchmark.centroid_distances")
    return choose(wanted, data["representation"], "representation", "the table")
