"""Responses on the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm.pl._perturb.recorded import RUN, arrow
from sagefm.pl._spatial import draw_map, finish_maps, get_slides, open_maps
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
    cmap: str = "PuOr_r",
    table_key: str = "table",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
    **kwargs: Any,
) -> Axes | list[Axes] | Figure | None:
    """Show the response of every spot on the tissue.

    Parameters
    ----------
    adata
        Slide, or several, after :func:`sagefm.tl.perturb_lr` with ``store_spots=True``, or
        :func:`sagefm.tl.gene_sensitivity`.
    pair
        Column of ``obsm[key]``, ``LIGAND|RECEPTOR``.
    {key}
    {library_key}
    {library_id}
    {spatial_key}
    {cmap}
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
    label = "derivative" if key == _keys.SENSITIVITY else "change of the receptor, log1p counts"
    axes, show = open_maps(ax, len(slides), figsize, show)
    for axis, slide in zip(axes, slides, strict=True):
        draw_map(
            axis, slide, table[pair], title=arrow(pair), limits=(-largest, largest), label=label, cmap=cmap, **kwargs
        )
    return finish_maps(axes, title, show, save, return_fig)
