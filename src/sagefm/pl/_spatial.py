"""What every figure shares: spots on the tissue, and how a figure ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm.pl._axes import save_figure
from sagefm.pp._graph import check_coordinates, find_coordinates

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def get_coordinates(adata: AnnData, spatial_key: str) -> NDArray[np.float64]:
    """X and y of every spot."""
    found, _ = find_coordinates(adata, spatial_key, None)
    coordinates = check_coordinates(adata, found, spatial_key, np.arange(adata.n_obs), "the slide")[:, :2]
    if len(coordinates) < 2:
        raise ValueError("a map needs two spots or more; adata has one.")
    return coordinates


def draw_spots(
    ax: Axes,
    coordinates: NDArray[np.float64],
    values: NDArray[np.float64] | pd.Series,
    *,
    title: str,
    label: str = "",
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "viridis",
    palette: list[str] | None = None,
) -> None:
    """Draw spots in tissue coordinates, y downwards as in images; numbers get a colour bar, groups a legend."""
    import matplotlib as mpl
    from matplotlib.collections import EllipseCollection
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=2).fit(coordinates).kneighbors(coordinates)[0][:, 1]
    diameter = 0.95 * np.median(nearest)  # nearly touching, at whatever size the figure has
    spots = EllipseCollection(
        [diameter],
        [diameter],
        [0],
        units="xy",
        offsets=coordinates,
        offset_transform=ax.transData,
        linewidths=0,
    )
    if isinstance(values, pd.Series):
        groups = values.astype("category").cat
        default = mpl.colormaps["tab20" if len(groups.categories) > 10 else "tab10"]
        colors = palette or [mpl.colors.to_hex(default(i)) for i in range(default.N)]
        spots.set_facecolor([colors[code % len(colors)] if code >= 0 else "lightgrey" for code in groups.codes])
        handles = [
            mpl.lines.Line2D([], [], marker="o", linestyle="", color=colors[i % len(colors)], label=str(name))
            for i, name in enumerate(groups.categories)
        ]
        ax.legend(handles=handles, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title=label or None)
    else:
        spots.set_array(np.ma.masked_invalid(values))
        spots.set_cmap(cmap)
        spots.set_clim(vmin, vmax)
    ax.add_collection(spots)
    if not isinstance(values, pd.Series):
        ax.figure.colorbar(spots, ax=ax, shrink=0.7, label=label)
    low, high = coordinates.min(axis=0) - diameter, coordinates.max(axis=0) + diameter
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), xticks=[], yticks=[], aspect="equal")
    ax.set_title(title)
    ax.spines[:].set_visible(False)


def finish(figure: Figure, show: bool, save: str | Path | None) -> Figure | None:
    """Save and show a figure, or hand it over."""
    import matplotlib.pyplot as plt

    if save is not None:
        save_figure(figure, save, dpi=150)
    if show:
        plt.show()
        return None
    plt.close(figure)  # so that a notebook doesn't show it a second time
    return figure
