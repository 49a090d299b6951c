"""Distances between samples, and what representations make of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagefm.pl._axes import finish, get_axes, save_figure, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_ERROR = 1e-4  # below, it is the base representation itself but for rounding
COLUMNS = ("representation", "sample", "other", "kind", "scaled", "error")


def centroid_distances(
    data: pd.DataFrame,
    representation: str | None = None,
    *,
    show: bool = True,
    save: str | Path | None = None,
) -> Figure | None:
    """Show the distances between samples as a clustered heatmap.

    Parameters
    ----------
    data
        What :func:`sagefm.benchmark.centroid_distances` returned.
    representation
        Which representation to show; the first by default.
    show
        Show the figure; else return it.
    save
        File to write the figure to.

    Returns
    -------
    ``None``, or the figure: scaled cosine distances, rows and columns in the order of average-linkage clustering, a
    colour bar on the left for the kind (tissue) of each sample where there are several.

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
    >>> figure = sg.pl.centroid_distances(pairs, show=False)
    """
    import matplotlib as mpl
    import seaborn as sns
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    from sagefm.pl._spatial import finish as finish_figure

    name = _names(data, representation)[0]
    part = data[data["representation"] == name]
    matrix = part.pivot(index="sample", columns="other", values="scaled")
    values = matrix.to_numpy(copy=True)
    np.fill_diagonal(values, 0.0)
    matrix[:] = values
    tree = linkage(squareform((values + values.T) / 2, checks=False), method="average")
    kinds = part.drop_duplicates("sample").set_index("sample")["kind"].reindex(matrix.index)
    several = kinds.nunique() > 1
    default = mpl.colormaps["tab10"]
    colors = {kind: default(i % 10) for i, kind in enumerate(sorted(kinds.unique()))}
    side = max(4.0, 0.22 * len(matrix) + 2.5)
    grid = sns.clustermap(
        matrix,
        row_linkage=tree,
        col_linkage=tree,
        row_colors=kinds.map(colors).rename("") if several else None,
        cmap="viridis",
        figsize=(side + 1.2, side),
        dendrogram_ratio=0.12,
        cbar_pos=(0.01, 0.86, 0.02, 0.12),
        xticklabels=True,
        yticklabels=True,
    )
    grid.ax_heatmap.set(xlabel="", ylabel="")
    grid.ax_heatmap.tick_params(axis="y", rotation=0)
    grid.figure.suptitle(f"{name}: scaled cosine distance of samples", y=1.06)
    if several:
        handles = [mpl.patches.Patch(color=color, label=kind) for kind, color in colors.items()]
        grid.ax_col_dendrogram.legend(
            handles=handles, frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=4
        )
    if save is not None:
        save_figure(grid.figure, save, dpi=150, bbox_inches="tight")
    return finish_figure(grid.figure, show, None)


def distance_error(
    data: pd.DataFrame,
    representations: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show how far scaled distances between samples are from those in expression, as densities.

    Parameters
    ----------
    data
        What :func:`sagefm.benchmark.centroid_distances` returned.
    representations
        Which to show; all by default.
    ax
        Axes to draw into; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    The axes. The vertical line of a representation is its mean error, which the legend gives.

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
    >>> ax = sg.pl.distance_error(pairs)
    """
    import matplotlib as mpl
    import seaborn as sns

    names = _names(data, representations)
    ax = get_axes(ax, (6.6, 3.8))
    default = mpl.colormaps["tab10"]
    for number, name in enumerate(names):
        error = data.loc[data["representation"] == name, "error"]
        color, style = default(number % 10), ("-", "--", ":")[number // 10 % 3]
        label = f"{name} ({error.mean():.3f})"
        if error.max() > MIN_ERROR:
            sns.kdeplot(x=error, ax=ax, color=color, linestyle=style, cut=0, label=label)
            ax.axvline(error.mean(), color=color, linestyle=style, linewidth=0.8, alpha=0.6)
        else:  # the base representation itself
            ax.axvline(0, color=color, linestyle=style, label=label)
    ax.set(xlabel="absolute error of the scaled distance", ylabel="density", xlim=(0, None), ylim=(0, None))
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), title="mean error")
    tidy(ax, grid="x")
    return finish(ax, save)


def _names(data: pd.DataFrame, wanted: str | Sequence[str] | None) -> list[str]:
    """Representations to show, checked."""
    if missing := [column for column in COLUMNS if column not in data]:
        raise KeyError(f"the table has no column {missing[0]!r}. Pass what sg.benchmark.centroid_distances returned.")
    known = list(dict.fromkeys(data["representation"]))
    names = known if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    if unknown := [name for name in names if name not in known]:
        raise KeyError(f"no representation {unknown[0]!r}; there are {known}.")
    return names
