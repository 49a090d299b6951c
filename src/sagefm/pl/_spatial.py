"""Spots on the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm._slides import recorded_library_key, split_libraries
from sagefm._types import Floats, Ints
from sagefm.pl._axes import legend_entry, open_grid, palette, write_instead
from sagefm.pl._tables import choose
from sagefm.pp._graph import check_coordinates, find_coordinates

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection


def get_coordinates(adata: AnnData, spatial_key: str) -> Floats:
    """X and y of every spot."""
    found, _ = find_coordinates(adata, spatial_key, None)
    coordinates = check_coordinates(adata, found, spatial_key, np.arange(adata.n_obs), "the slide")[:, :2]
    if len(coordinates) < 2:
        raise ValueError("a map needs two spots or more; adata has one.")
    return coordinates


@dataclass(frozen=True)
class Slide:
    """Spots that one panel draws.

    Attributes
    ----------
    name
        Name of the slide; empty where the object holds one slide only.
    rows
        Row numbers of its spots.
    coordinates
        X and y of each of them.
    """

    name: str
    rows: Ints
    coordinates: Floats

    def title(self, text: str) -> str:
        """Title of a panel, which names the slide."""
        return f"{self.name}\n{text}" if self.name else text


def get_slides(
    adata: AnnData, spatial_key: str, library_key: str | None, library_id: str | Sequence[str] | None
) -> list[Slide]:
    """Slides to draw, in the order asked for, else that of their names. Coordinates overlap, so each has a panel."""
    coordinates = get_coordinates(adata, spatial_key)
    libraries = split_libraries(adata, library_key or recorded_library_key(adata))
    found = {name: rows for name, rows in libraries.rows() if len(rows)}
    if library_id is not None and libraries.key is None:
        raise ValueError("library_id names slides, but nothing tells them apart. Pass library_key, a column of obs.")
    names = choose(library_id, found, "library_id", f"obs[{libraries.key!r}]")
    several = len(found) > 1
    return [Slide(name if several else "", found[name], coordinates[found[name]]) for name in names]


def open_panels(n: int, panel: tuple[float, float]) -> list[Axes]:
    """Axes for n maps, up to four in a row."""
    n_columns = min(n, 4)
    axes = [ax for row in open_grid(-(-n // n_columns), n_columns, panel) for ax in row]
    for ax in axes[n:]:
        ax.remove()
    return axes[:n]


def draw_values(
    ax: Axes,
    coordinates: Floats,
    values: Floats,
    *,
    title: str,
    limits: tuple[float, float],
    label: str = "",
    cmap: str = "viridis",
) -> None:
    """Draw a number at every spot, with a colour bar; white where it is missing."""
    spots = _draw_spots(ax, coordinates, title)
    spots.set_array(np.ma.masked_invalid(values))
    spots.set_cmap(cmap)
    spots.set_clim(*limits)
    ax.figure.colorbar(spots, ax=ax, shrink=0.7, label=label)


def draw_groups(
    ax: Axes,
    coordinates: Floats,
    groups: pd.Series,
    *,
    title: str,
    colors: list[str] | None = None,
    legend: bool = True,
    missing: str = "missing",
) -> None:
    """Draw the group of every spot; grey where it is missing. The legend names all categories."""
    found = groups.astype("category").cat
    names = found.categories
    colors = colors or palette(len(names))
    of_name = [colors[number % len(colors)] for number in range(len(names))]
    spots = _draw_spots(ax, coordinates, title)
    spots.set_facecolor([of_name[code] if code >= 0 else "lightgrey" for code in found.codes])
    if not legend:
        return
    handles = [legend_entry(name, "o", color) for name, color in zip(names, of_name, strict=True)]
    if (found.codes < 0).any():
        handles.append(legend_entry(missing, "o", "lightgrey"))
    ax.legend(handles=handles, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_gene(
    axes: list[Axes],
    coordinates: Floats,
    gene: str,
    measured: Floats | None,
    predicted: Floats,
    *,
    limits: tuple[float, float],
    cmap: str,
    note: str = "",
    slide: str = "",
) -> None:
    """Draw a gene as measured and as predicted, side by side in the same colours."""
    for ax, values, title in zip(
        axes, (measured, predicted), (f"{gene}, measured", f"{gene}, predicted{note}"), strict=True
    ):
        if values is None:
            write_instead(ax, f"{gene} was not measured")
        else:
            title = f"{slide}\n{title}" if slide else title
            draw_values(ax, coordinates, values, title=title, limits=limits, label="log1p counts", cmap=cmap)


def _draw_spots(ax: Axes, coordinates: Floats, title: str) -> Collection:
    """Draw spots that nearly touch, at whatever size the figure has, y downwards as in images."""
    from matplotlib.collections import EllipseCollection
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=2).fit(coordinates).kneighbors(coordinates)[0][:, 1]
    diameter = 0.95 * np.median(nearest)
    place: dict[str, Any] = {"offsets": coordinates, "offset_transform": ax.transData}
    spots = EllipseCollection([diameter], [diameter], [0], units="xy", linewidths=0, **place)
    ax.add_collection(spots)
    low, high = coordinates.min(axis=0) - diameter, coordinates.max(axis=0) + diameter
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), xticks=[], yticks=[], aspect="equal", title=title)
    ax.spines[:].set_visible(False)
    return spots
