"""Responses on the tissue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._types import Floats
from sagefm.pl._axes import finish, open_axes
from sagefm.pl._perturb.recorded import RUN, arrow
from sagefm.pl._spatial import Slide, get_slides, open_panels
from sagefm.pl._tables import choose, get_spot_table

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData


@fill_docstring
def perturbation_spatial(
    adata: AnnData | SpatialData,
    pair: str,
    *,
    key: str = _keys.PERTURB_LR,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = "table",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
    **kwargs: Any,
) -> Axes | list[Axes] | Figure | None:
    """Show the response of every spot on the tissue, through :func:`squidpy.pl.spatial_scatter`.

    Parameters
    ----------
    adata
        Slide, or several, after :func:`sagefm.tl.perturb_lr` with ``store_spots=True``, or
        :func:`sagefm.tl.gene_sensitivity`.
    pair
        Column of ``obsm[key]``, ``LIGAND|RECEPTOR``.
    {key}
    {drawn_library_key}
    {drawn_library_id}
    {spatial_key}
    {table_key}
    {ax}
    {show}
    {save}
    {return_fig}
    kwargs
        More options of :func:`squidpy.pl.spatial_scatter`.

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``; a list of axes
    for several slides. Colors are centered on no change, and the same for all slides.

    Raises
    ------
    KeyError
        If responses by spot are missing, or no such pair is among them.
    ValueError
        If several slides are to be drawn into ``ax``.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], "sagefm-mini", n_controls=0, store_spots=True)
    >>> ax = sg.pl.perturbation_spatial(adata, "CXCL12|CXCR4", show=False)
    """
    adata = get_anndata(adata, table_key)
    run = RUN.get(key, RUN[_keys.PERTURB_LR]).replace("...", "..., store_spots=True")
    table = get_spot_table(adata, key, run)
    choose(pair, table.columns, "pair", f"adata.obsm[{key!r}]")
    slides = get_slides(adata, spatial_key, library_key, library_id)
    largest = float(np.abs(table[pair]).max()) or 1.0
    options: dict[str, Any] = {"cmap": "PuOr_r", "vmin": -largest, "vmax": largest, **kwargs}
    if len(slides) == 1:
        first, show = open_axes(ax, (5.2, 4.4), show)
        axes = [first]
    elif ax is not None:
        raise ValueError(f"ax is one panel, and there are {len(slides)} slides. Set library_id to one of them.")
    else:
        axes = open_panels(len(slides), (5.2, 4.4))
    for axis, slide in zip(axes, slides, strict=True):
        _draw(axis, adata, table[pair], slide, spatial_key, options)
    if len(slides) > 1:
        return finish(axes, show, save, return_fig)
    return finish(axes[0], show, save, return_fig)


def _draw(
    ax: Axes, adata: AnnData, values: pd.Series, slide: Slide, spatial_key: str, options: Mapping[str, Any]
) -> None:
    """Draw a slide by squidpy, from a small object, so that the user's isn't touched."""
    import squidpy as sq
    from anndata import AnnData

    obs = values.iloc[slide.rows].astype(float).to_frame(arrow(str(values.name)))
    drawn, options = AnnData(obs=obs, obsm={spatial_key: slide.coordinates}), dict(options)
    images = adata.uns.get("spatial")
    if images:  # the image of the slide, if it is there by name; else that of the only slide
        drawn.uns["spatial"] = {slide.name: images[slide.name]} if slide.name in images else dict(images)
    if not images or (slide.name and slide.name not in images):
        options.setdefault("shape", None)  # points, as there is no image to scale spots by
    if options.get("shape", "circle") is None:
        options.setdefault("size", _point_size(slide.coordinates))
        options.setdefault("library_id", "")  # squidpy's own value where there is none; it would warn
        drawn.uns.pop("spatial", None)
    sq.pl.spatial_scatter(drawn, color=obs.columns[0], spatial_key=spatial_key, ax=ax, **options)
    ax.set(xlabel="", ylabel="", title=slide.title(obs.columns[0]))


def _point_size(coordinates: Floats) -> float:
    """Size of points that nearly touch on axes of the default size."""
    return float((0.9 * 280) ** 2 / len(coordinates))
