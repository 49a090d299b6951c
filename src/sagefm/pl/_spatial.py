"""Spots on the tissue: which slides to draw, and a map of one of them by squidpy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._slides import find_libraries
from sagefm._types import Floats, Ints
from sagefm.pl._axes import finish, legend_beside, legend_entry, open_axes, open_grid, palette_of, write_instead
from sagefm.pl._tables import choose
from sagefm.pp._graph import check_coordinates, find_coordinates

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

VISIUM_PITCH = 100.0  # µm between the centers of neighboring spots
VISIUM_PITCHES = (1.4, 1.9)  # the same in spot diameters, which software takes to be 55 or 65 µm
GREY = "lightgrey"


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
    entry
        Image and scale factors, as scanpy and squidpy keep them; without an image, factors by which the spots nearly
        touch.
    scale
        µm per unit of the coordinates, where known.
    pitch
        Distance between neighboring spots, in that unit.
    """

    name: str
    rows: Ints
    coordinates: Floats
    entry: Mapping[str, Any]
    scale: float | None
    pitch: float

    def title(self, text: str) -> str:
        """Title of a panel, which names the slide."""
        return f"{self.name}\n{text}" if self.name else text


def get_slides(
    adata: AnnData, spatial_key: str, library_key: str | None, library_id: str | Sequence[str] | None
) -> list[Slide]:
    """Slides to draw, in the order asked for, else that of their names. Coordinates overlap, so each has a panel."""
    found, _ = find_coordinates(adata, spatial_key, None)
    coordinates = check_coordinates(adata, found, spatial_key, np.arange(adata.n_obs), "the slide")[:, :2]
    libraries = find_libraries(adata, library_key)
    rows = {name: at for name, at in libraries.rows() if len(at)}
    if library_id is not None and libraries.key is None:
        raise ValueError("library_id names slides, but nothing tells them apart. Pass library_key, a column of obs.")
    names = choose(library_id, rows, "library_id", f"obs[{libraries.key!r}]")
    images = adata.uns.get(spatial_key)
    images = images if isinstance(images, Mapping) else {}
    if len(rows) == len(images) == 1:  # the only image is that of the only slide
        images = dict.fromkeys(rows, next(iter(images.values())))
    several = len(rows) > 1
    return [
        _open_slide(name if several else "", rows[name], coordinates[rows[name]], images.get(name)) for name in names
    ]


def _open_slide(name: str, rows: Ints, coordinates: Floats, entry: Any) -> Slide:
    """Find what squidpy needs of a slide: its image, if all of it is there, and scale factors; and its scale."""
    from sklearn.neighbors import NearestNeighbors

    if len(coordinates) < 2:
        raise ValueError("a map needs two spots or more; a slide of adata has one.")
    pitch = float(np.median(NearestNeighbors(n_neighbors=2).fit(coordinates).kneighbors(coordinates)[0][:, 1]))
    entry = entry if isinstance(entry, Mapping) else {}
    factors, images = (entry.get(key) for key in (_keys.SCALEFACTORS, "images"))
    factors = dict(factors) if isinstance(factors, Mapping) else {}
    scale = factors.get(_keys.MICRONS_PER_PIXEL)
    diameter = factors.get(_keys.SPOT_DIAMETER)
    if scale is None and diameter and VISIUM_PITCHES[0] < pitch / diameter < VISIUM_PITCHES[1]:
        scale = VISIUM_PITCH / pitch
    if isinstance(images, Mapping) and diameter:
        known = {size: image for size, image in images.items() if f"tissue_{size}_scalef" in factors}
        if known:
            return Slide(name, rows, coordinates, {"images": known, _keys.SCALEFACTORS: factors}, scale, pitch)
    factors = {_keys.SPOT_DIAMETER: 0.95 * pitch, "tissue_hires_scalef": 1.0}
    return Slide(name, rows, coordinates, {"images": {}, _keys.SCALEFACTORS: factors}, scale, pitch)


def stored_colors(adata: AnnData, key: str) -> list[str] | None:
    """Colors of the groups in ``obs[key]`` that scanpy has stored."""
    return list(adata.uns.get(f"{key}_colors", ())) or None


def open_maps(ax: Axes | None, n: int, figsize: tuple[float, float] | None, show: bool | None) -> tuple[Any, Any]:
    """Axes of a map for each of n slides, up to four in a row: the caller's, if there is one slide."""
    if n == 1:
        first, show = open_axes(ax, figsize or (5.2, 4.4), show)
        return [first], show
    if ax is not None:
        raise ValueError(f"ax is one panel, and there are {n} slides. Set library_id to one of them.")
    n_columns = min(n, 4)
    axes = [ax for row in open_grid(-(-n // n_columns), n_columns, (4.4, 4.2), figsize) for ax in row]
    for unused in axes[n:]:
        unused.remove()
    return axes[:n], show


def finish_maps(
    axes: list[Axes], title: str | None, show: bool | None, save: str | Path | None, return_fig: bool | None
) -> Axes | list[Axes] | Figure | None:
    """End a plot with one panel for each slide: the axes of a single one are no list."""
    if len(axes) == 1:
        return finish(axes[0], title, show, save, return_fig)
    return finish(axes, title, show, save, return_fig)


def draw_map(
    ax: Axes,
    slide: Slide,
    values: pd.Series,
    *,
    title: str,
    colors: str | Sequence[str] | None = None,
    missing: str = "missing",
    legend: bool = True,
    limits: tuple[float, float] | None = None,
    label: str | None = "",
    **options: Any,
) -> Collection:
    """Draw the spots of a slide by :func:`squidpy.pl.spatial_scatter`, y downwards as in images.

    Parameters
    ----------
    ax
        Axes to draw into.
    slide
        Which spots, and where they lie.
    values
        Numbers or categories of all spots of the object.
    title
        Title without the name of the slide.
    colors
        Color of each category, or a color map.
    missing
        Text of the legend for spots without a category, which are grey.
    legend
        Whether to draw a legend of the categories.
    limits
        Ends of the color scale of numbers.
    label
        Label of the color bar; no color bar if None.
    options
        More of squidpy's options.
    """
    from anndata import AnnData
    from matplotlib.colors import Normalize

    with warnings.catch_warnings():  # of a library of its own, on import
        warnings.simplefilter("ignore", SyntaxWarning)
        import squidpy as sq

    is_groups, has_missing = isinstance(values.dtype, pd.CategoricalDtype), bool(values.isna().any())
    values = values.iloc[slide.rows]
    # A small object of its own: squidpy writes colors into what it draws, and the user's stays as it was.
    drawn = AnnData(obs=pd.DataFrame({"shown": values.array}, index=values.index.astype(str)))
    drawn.obsm[_keys.SPATIAL], drawn.uns[_keys.SPATIAL] = slide.coordinates, {"slide": slide.entry}
    resolution = next((name for name in ("hires", *slide.entry["images"]) if name in slide.entry["images"]), "hires")
    factor = slide.entry[_keys.SCALEFACTORS][f"tissue_{resolution}_scalef"]
    settings: dict[str, Any] = {
        "img": bool(slide.entry["images"]),
        "img_res_key": resolution,
        "img_alpha": 0.5,
        "na_color": GREY,
    }
    if slide.scale is not None:
        settings |= {
            "scalebar_dx": slide.scale / factor,
            "scalebar_kwargs": {"box_alpha": 0.7, "location": "lower right"},
        }
    if is_groups:
        drawn.uns["shown_colors"] = palette_of(len(values.cat.categories), colors)
    elif limits is not None:
        settings["norm"] = Normalize(*limits)
    settings |= {"title": slide.title(title), "legend_loc": None, "colorbar": False, "frameon": False, **options}
    sq.pl.spatial_scatter(drawn, color="shown", ax=ax, **settings)
    (spots,) = ax.collections[-1:]
    if "crop_coord" not in options:  # as far as the spots go; an image goes further
        margin = 0.5 * slide.entry[_keys.SCALEFACTORS][_keys.SPOT_DIAMETER] * factor
        (left, top), (right, bottom) = (
            factor * slide.coordinates.min(0) - margin,
            factor * slide.coordinates.max(0) + margin,
        )
        ax.set(xlim=(left, right), ylim=(bottom, top))
    if is_groups and legend:
        handles = [
            legend_entry(n, "o", c) for n, c in zip(values.cat.categories, drawn.uns["shown_colors"], strict=True)
        ]
        if has_missing:
            handles.append(legend_entry(missing, "o", GREY))
        legend_beside(ax, handles)
    elif not is_groups and label is not None:
        draw_bar(ax, spots, label, values.to_numpy())
    return spots


def draw_bar(ax: Axes, spots: Collection | AxesImage, label: str, values: Floats) -> None:
    """Draw the color bar of a map, with arrows where values lie beyond its ends."""
    below, above = (values < spots.get_clim()[0] - 1e-9).any(), (values > spots.get_clim()[1] + 1e-9).any()
    extend = ("both" if above else "min") if below else "max" if above else "neither"
    ax.figure.colorbar(spots, ax=ax, shrink=0.7, label=label, extend=extend)


def draw_gene(
    axes: Sequence[Axes],
    slide: Slide,
    gene: str,
    measured: Floats | None,
    predicted: Floats,
    *,
    limits: tuple[float, float],
    note: str = "",
    **options: Any,
) -> None:
    """Draw a gene as measured and as predicted at all spots of the object, side by side with one color bar."""
    options |= {"limits": limits, "label": None}
    if measured is None:
        write_instead(axes[0], f"{gene} was not measured")
    else:
        draw_map(axes[0], slide, pd.Series(measured), title=f"{gene}, measured", **options)
    spots = draw_map(axes[1], slide, pd.Series(predicted), title=f"{gene}, predicted{note}", **options)
    beyond = [values[slide.rows] for values in (measured, predicted) if values is not None]
    draw_bar(axes[1], spots, "log1p counts", np.concatenate(beyond))
