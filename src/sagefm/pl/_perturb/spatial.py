"""Responses on the tissue."""

from __future__ import annotations

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
from sagefm.pl._spatial import get_coordinates
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
    spatial_key: str = _keys.SPATIAL,
    table_key: str = "table",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
    **kwargs: Any,
) -> Axes | Figure | None:
    """Show the response of every spot on the tissue, through :func:`squidpy.pl.spatial_scatter`.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.perturb_lr` with ``store_spots=True``, or :func:`sagefm.tl.gene_sensitivity`.
    pair
        Column of ``obsm[key]``, ``LIGAND|RECEPTOR``.
    {key}
    {spatial_key}
    {table_key}
    {ax}
    {show}
    {save}
    {return_fig}
    kwargs
        More options of :func:`squidpy.pl.spatial_scatter`, such as ``library_id``.

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. Colours are centred on
    no change.

    Raises
    ------
    KeyError
        If responses by spot are missing, or no such pair is among them.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], "sagefm-mini", n_controls=0, store_spots=True)
    >>> ax = sg.pl.perturbation_spatial(adata, "CXCL12|CXCR4", show=False)
    """
    import squidpy as sq

    adata = get_anndata(adata, table_key)
    run = RUN.get(key, RUN[_keys.PERTURB_LR]).replace("...", "..., store_spots=True")
    table = get_spot_table(adata, key, run)
    choose(pair, table.columns, "pair", f"adata.obsm[{key!r}]")
    coordinates = get_coordinates(adata, spatial_key)
    drawn = _copy_for_squidpy(adata, table[pair], coordinates, spatial_key, kwargs.get("library_key"))
    if "library_key" in kwargs:
        _check_one_slide(adata, kwargs["library_key"], kwargs.get("library_id"))
    if "spatial" not in adata.uns:
        kwargs.setdefault("shape", None)  # points, as there is no image to scale spots by
    if kwargs.get("shape", "circle") is None:
        kwargs.setdefault("size", _point_size(coordinates))
        if "library_key" not in kwargs:
            kwargs.setdefault("library_id", "")  # squidpy's own value where there is none; it would warn
    largest = float(np.abs(table[pair]).max()) or 1.0
    options = {"cmap": "PuOr_r", "vmin": -largest, "vmax": largest, **kwargs}
    ax, show = open_axes(ax, (5.2, 4.4), show)
    sq.pl.spatial_scatter(drawn, color=arrow(pair), spatial_key=spatial_key, ax=ax, **options)
    ax.set(xlabel="", ylabel="")
    return finish(ax, show, save, return_fig)


def _copy_for_squidpy(
    adata: AnnData, values: pd.Series, coordinates: Floats, spatial_key: str, library_key: str | None
) -> AnnData:
    """Small object with what squidpy reads, so that the slide isn't touched."""
    from anndata import AnnData

    drawn = AnnData(obs=values.astype(float).to_frame(arrow(str(values.name))), obsm={spatial_key: coordinates})
    if "spatial" in adata.uns:
        drawn.uns["spatial"] = adata.uns["spatial"]
    if library_key is not None:
        drawn.obs[library_key] = adata.obs[library_key].to_numpy()
    return drawn


def _check_one_slide(adata: AnnData, library_key: str, library_id: Any) -> None:
    """Refuse to draw several slides into one panel."""
    libraries = list(dict.fromkeys(adata.obs[library_key]))
    if len(libraries) > 1 and (library_id is None or (not isinstance(library_id, str) and len(library_id) != 1)):
        raise ValueError(f"one slide at a time: set library_id to one of {libraries}.")


def _point_size(coordinates: Floats) -> float:
    """Size of points that nearly touch on axes of the default size."""
    return float((0.9 * 280) ** 2 / len(coordinates))
