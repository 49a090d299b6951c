"""What clusters are: marker genes, and the tissues they are found in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm.pl._axes import finish, get_axes, tidy

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


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
    save: str | Path | None = None,
) -> Axes:
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
    key
        Where :func:`sagefm.tl.cluster_markers` wrote, its ``key_added``.
    ax
        Axes to draw into; new ones by default.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    save
        File to write the figure to.

    Returns
    -------
    The axes. Fold changes are drawn up to 8, p-values down to 1e-300.

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
    >>> ax = sg.pl.cluster_markers(adata, "immune")
    """
    columns = ["cluster", "gene", "score", "log2_fold_change", "padj"]
    run = "sg.tl.cluster_markers(adata, ...)"
    results = get_result(get_anndata(adata, table_key), (key, "results"), pd.DataFrame, columns, run)
    known = list(dict.fromkeys(results["cluster"]))
    cluster = known[0] if cluster is None else str(cluster)
    if cluster not in known:
        raise KeyError(f"no cluster {cluster!r} in uns[{key!r}]; there are {known}.")
    part = results[results["cluster"] == cluster]
    x = part["log2_fold_change"].clip(-8, 8).to_numpy()
    y = -np.log10(part["padj"].clip(lower=1e-300).to_numpy())
    hit = (part["padj"].to_numpy() <= max_padj) & (np.abs(x) >= min_log2_fold_change)
    ax = get_axes(ax, (5.6, 4.4))
    for chosen, color in ((~hit, "0.8"), (hit & (x > 0), "#b35806"), (hit & (x < 0), "#2166ac")):
        ax.scatter(x[chosen], y[chosen], s=7, color=color, linewidths=0)
    best = np.argsort(-np.where(hit & (x > 0), part["score"].to_numpy(), -np.inf))[:n_labels]
    named = [i for i in best if hit[i] and x[i] > 0]
    _label(ax, x[named], y[named], part["gene"].to_numpy()[named])
    ax.set(
        xlabel="log2 fold change",
        ylabel="−log10 adjusted p",
        title=f"cluster {cluster}: {int((hit & (x > 0)).sum())} genes up, {int((hit & (x < 0)).sum())} down",
    )
    tidy(ax)
    return finish(ax, save)


def cluster_proportions(
    adata: AnnData | SpatialData,
    *,
    key: str = _keys.CLUSTER_PROPORTIONS,
    ax: Axes | None = None,
    table_key: str = "table",
    save: str | Path | None = None,
) -> Axes:
    """Show which tissues (slides, labels) each cluster's spots come from.

    Parameters
    ----------
    adata
        Slides after :func:`sagefm.tl.cluster_proportions`.
    key
        Where :func:`sagefm.tl.cluster_proportions` wrote, its ``key_added``.
    ax
        Axes to draw into; new ones by default.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    save
        File to write the figure to.

    Returns
    -------
    The axes: one bar a cluster, its parts the groups, its name with the number of spots.

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
    >>> ax = sg.pl.cluster_proportions(adata)
    """
    import matplotlib as mpl

    columns = ["cluster", "group", "n_spots", "share"]
    run = "sg.tl.cluster_proportions(adata, ...)"
    results = get_result(get_anndata(adata, table_key), (key, "results"), pd.DataFrame, columns, run)
    shares = results.pivot(index="cluster", columns="group", values="share")
    order = list(dict.fromkeys(results["cluster"]))
    shares, sizes = shares.loc[order], results.groupby("cluster")["n_spots"].sum()
    ax = get_axes(ax, (6.4, 0.34 * len(order) + 1.2))
    colors = mpl.colormaps["tab20" if shares.shape[1] > 10 else "tab10"]
    left = np.zeros(len(order))
    for number, group in enumerate(shares.columns):
        width = shares[group].to_numpy()
        ax.barh(range(len(order)), width, left=left, color=colors(number % colors.N), label=str(group))
        left = left + width
    ax.set(xlabel="share of the cluster's spots", xlim=(0, 1), ylim=(len(order) - 0.5, -0.5))
    ax.set_yticks(range(len(order)), [f"{name} ({sizes[name]})" for name in order])
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    tidy(ax)
    return finish(ax, save)


def _label(ax: Axes, x: np.ndarray, y: np.ndarray, names: np.ndarray) -> None:
    """Name points on their right, each a line below the one above it where they crowd."""
    if not len(x):
        return
    low, high = ax.get_ylim()
    step, last = 0.045 * (high - low), np.inf
    for i in np.argsort(-y):
        at = min(y[i], last - step)
        last = at
        ax.annotate(
            names[i],
            (x[i], y[i]),
            xytext=(max(x) + 0.04 * np.ptp(ax.get_xlim()), at),
            fontsize="small",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5},
        )
