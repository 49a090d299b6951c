"""Figures of what was found in an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm.pl._spatial import draw_spots, finish, get_coordinates

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure
    from spatialdata import SpatialData


def cluster(
    adata: AnnData | SpatialData,
    key: str = _keys.CLUSTER,
    *,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = "table",
    show: bool = True,
    save: str | Path | None = None,
) -> Figure | None:
    """Show clusters on the tissue, and the silhouette by which their number was chosen.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.cluster`.
    key
        Where :func:`sagefm.tl.cluster` wrote, its ``key_added``.
    spatial_key
        Coordinates in ``obsm``.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    show
        Show the figure; else return it.
    save
        File to write the figure to.

    Returns
    -------
    ``None``, or the figure. The silhouette has a panel where several numbers of clusters were tried.

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
    >>> figure = sg.pl.cluster(adata, show=False)
    """
    import matplotlib.pyplot as plt

    adata = get_anndata(adata, table_key)
    run = "sg.tl.cluster(adata)"
    if key not in adata.obs:
        raise KeyError(f"{key!r} not in adata.obs. Run {run} first.")
    scores = get_result(adata, (key, "scores"), pd.DataFrame, ["silhouette"], run)
    params = get_result(adata, (key, "params"), Mapping, ["use_rep", "n_clusters"], run)
    coordinates = get_coordinates(adata, spatial_key)
    several = len(scores) > 1
    figure, axes = plt.subplots(
        1,
        2 if several else 1,
        figsize=(9.5 if several else 5.5, 4.2),
        squeeze=False,
        width_ratios=[1.5, 1] if several else None,
        layout="constrained",
    )
    title = f"clusters of {params['use_rep']}"
    palette = list(adata.uns.get(f"{key}_colors", ())) or None  # scanpy's, once it has drawn them
    draw_spots(axes[0, 0], coordinates, adata.obs[key], title=title, palette=palette)
    if several:
        ax = axes[0, 1]
        k = scores.index.astype(int)
        ax.plot(k, scores["silhouette"], marker="o", color="0.3")
        ax.plot(params["n_clusters"], scores["silhouette"].max(), marker="o", markersize=11, color="tab:red")
        ax.set(xlabel="number of clusters", ylabel="silhouette", title="choice of the number", xticks=k)
        ax.set_box_aspect(0.8)
        ax.spines[["top", "right"]].set_visible(False)
    return finish(figure, show, save)
