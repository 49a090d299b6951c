"""Plots of expression that was predicted from histology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm._docs import fill_docstring
from sagefm._settings import ROWS_AT_A_TIME
from sagefm._types import Floats
from sagefm.pl._axes import finish, open_grid
from sagefm.pl._spatial import draw_bar, draw_gene, get_slides
from sagefm.pl._tables import choose, get_spot_table
from sagefm.pp._counts import Counts

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

N_GENES = 3


@fill_docstring
def predicted_expression(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    expression_key: str = _keys.HISTOLOGY_EXPRESSION,
    layer: str | None = None,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    spatial_key: str = _keys.SPATIAL,
    cmap: str = "viridis",
    table_key: str = "table",
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
    **kwargs: Any,
) -> list[Axes] | Figure | None:
    """Show measured genes beside what the histology says of them, on the tissue.

    Both maps of a gene share one color scale, over what 98 % of the values of both span. A prediction is a mean, so
    its map is paler where it knows less.

    Parameters
    ----------
    adata
        Slides after :func:`sagefm.tl.predict_expression`.
    genes
        Genes that were predicted; by default the three with the best reliability.
    expression_key
        Where :func:`sagefm.tl.predict_expression` wrote, its ``key_added``.
    layer
        Layer with raw counts. By default, the one that the prediction was trained on.
    library_key
        Column of ``obs`` with the slide of each spot. By default, the one that the prediction used.
    {library_id}
    {spatial_key}
    {cmap}
    {table_key}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}
    {map_options}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. There is a row for each
    gene, with its measured and its predicted ``log1p`` counts at the common depth, and the Pearson r of both where
    groups were held out.

    Raises
    ------
    KeyError
        If a gene was not predicted, there is no such slide, or the coordinates or counts are missing.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=8, n_cols=8, n_genes=300, image=True)
    >>> sg.pp.histology_patches(adata, size=64)
    >>> sg.tl.histology_embed(adata)
    >>> adata.obs["half"] = (adata.obs["array_row"] < 4).astype(str)
    >>> sg.tl.predict_expression(adata, 20, group_key="half")
    >>> axes = sg.pl.predicted_expression(adata, show=False)
    """
    adata = get_anndata(adata, table_key)
    run = "sg.tl.predict_expression(adata)"
    params = get_result(adata, (expression_key, "params"), Mapping, ["depth"], run)
    table = get_spot_table(adata, expression_key, run)
    scores = adata.uns[expression_key].get("scores", pd.DataFrame({"r": np.nan}, index=table.columns))
    names = _choose_genes(genes, scores["r"], f"adata.obsm[{expression_key!r}]")
    slides = get_slides(adata, spatial_key, library_key or params.get("library_key"), library_id)
    layer = params.get("layer") if layer is None else layer
    measured = _measured(adata, [name for name in names if name in adata.var_names], layer, params["depth"])
    of = ", reference" if params.get("scored_on") == "reference" else ""

    drawn = [(name, slide) for name in names for slide in slides]
    grid = open_grid(len(drawn), 2, (4.5, 3.8), figsize)
    for axes, (name, slide) in zip(grid, drawn, strict=True):
        predicted = table[name].to_numpy(dtype=float)
        counted = measured.get(name, np.full(adata.n_obs, np.nan))
        known = counted if np.isfinite(counted[slide.rows]).any() else None
        note = f" ({_quality(scores['r'][name])}{of})"
        limits = _limits(np.concatenate([counted, predicted]))
        draw_gene(axes, slide, name, known, predicted, limits=limits, note=note, cmap=cmap, **kwargs)
    return finish([ax for axes in grid for ax in axes], title, show, save, return_fig)


@fill_docstring
def superresolved_expression(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = _keys.SUPERRESOLVED,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    cmap: str = "viridis",
    table_key: str = "table",
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> list[Axes] | Figure | None:
    """Show the dense map of expression between the spots.

    Parameters
    ----------
    adata
        What :func:`sagefm.tl.superresolve_expression` returned; of a ``SpatialData`` its table, by ``table_key``.
    genes
        Genes of the map; by default the three with the best reliability.
    {key}
    library_key
        Column of ``obs`` with the slide of each point.
    {library_id}
    {cmap}
    table_key
        Table to use in ``SpatialData`` objects, such as ``"superresolved"``.
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. There is a map for each
    gene, a pixel for each point, under the Pearson r of spots that were held out. Between the spots nothing is
    measured, so r says nothing of the detail there.

    Raises
    ------
    KeyError
        If the table is no dense map, or there is no such gene or slide.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=8, n_cols=8, n_genes=300, image=True)
    >>> sg.pp.histology_patches(adata, size=64)
    >>> sg.tl.histology_embed(adata)
    >>> adata.obs["half"] = (adata.obs["array_row"] < 4).astype(str)
    >>> sg.tl.predict_expression(adata, 20, group_key="half")
    >>> dense = sg.tl.superresolve_expression(adata, 80)
    >>> axes = sg.pl.superresolved_expression(dense, show=False)
    """
    from scanpy.get import obs_df

    adata = get_anndata(adata, table_key)
    run = "dense = sg.tl.superresolve_expression(adata)"
    params = get_result(adata, (key, "params"), Mapping, ["stride", "microns_per_unit"], run)
    r = adata.var.get("reliability", pd.Series(np.nan, index=adata.var_names))
    names = _choose_genes(genes, r, "the dense map")
    steps = params["stride"] / np.atleast_1d(np.asarray(params["microns_per_unit"], dtype=float))
    library_key = library_key or params.get("library_key")
    if library_key is None and len(steps) > 1:
        raise ValueError(f"the map is of {len(steps)} slides: set library_key to their column of obs.")
    slides = get_slides(adata, _keys.SPATIAL, library_key, library_id)
    values = obs_df(adata, names)

    rows = open_grid(len(slides), len(names), (4.6, 4.2), figsize)
    for axes, slide in zip(rows, slides, strict=True):
        for ax, name in zip(axes, names, strict=True):
            found = values[name].to_numpy(dtype=float)
            _draw_grid(ax, slide.coordinates, found[slide.rows], steps, cmap, _limits(found))
            ax.set_title(slide.title(f"{name}\n{_quality(r[name])}"))
            ax.axis("off")
    about = ["Predicted from the histology. Between the spots nothing was measured:", "r is that of held-out spots."]
    figure: Any = rows[0][0].figure
    figure.supxlabel(("\n" if len(names) == 1 else " ").join(about), fontsize="small")
    return finish([ax for axes in rows for ax in axes], title, show, save, return_fig)


def _choose_genes(genes: str | Sequence[str] | None, r: pd.Series, where: str) -> list[str]:
    """Those asked for, or the best predicted."""
    best = r.sort_values(ascending=False, kind="stable").index.astype(str)
    return choose(best[:N_GENES].tolist() if genes is None else genes, r.index, "gene", where)


def _measured(adata: AnnData, genes: list[str], layer: str | None, depth: float) -> dict[str, Floats]:
    """log1p counts of genes at a common depth, as they were learned from; NaN where a spot has no counts."""
    if not genes or (layer is None and adata.X is None):
        return {}
    counts = Counts(adata, np.arange(adata.n_vars), layer)
    columns = adata.var_names.get_indexer(genes)
    parts = []
    for start in range(0, adata.n_obs, ROWS_AT_A_TIME):
        block = counts.raw_rows(slice(start, min(start + ROWS_AT_A_TIME, adata.n_obs)))
        totals = np.asarray(block.sum(axis=1), dtype=float)
        parts.append(np.log1p(block[:, columns].toarray() * (depth / np.where(totals > 0, totals, np.nan))))
    return dict(zip(genes, np.concatenate(parts).T, strict=True))


def _limits(values: Floats) -> tuple[float, float]:
    """What nearly all of the values span."""
    low, high = np.nanpercentile(values, (1, 99))
    return float(low), float(high if high > low else low + 1)


def _quality(r: float) -> str:
    return f"held-out r = {r:.2f}" if np.isfinite(r) else "held-out r not known"


def _draw_grid(
    ax: Axes, coordinates: Floats, values: Floats, steps: Floats, cmap: str, limits: tuple[float, float]
) -> None:
    """Draw points of a square grid as the pixels of an image, y downwards."""
    from scipy.spatial import cKDTree

    nearest = np.median(cKDTree(coordinates).query(coordinates, k=2)[0][:, 1])
    step = steps[np.abs(steps - nearest).argmin()]  # slides may have units of their own
    low = coordinates.min(axis=0)
    columns, rows = np.rint((coordinates - low) / step).astype(int).T
    raster = np.full((rows.max() + 1, columns.max() + 1), np.nan)
    raster[rows, columns] = values
    left, top = low - step / 2
    extent = (left, left + step * raster.shape[1], top + step * raster.shape[0], top)
    image = ax.imshow(raster, extent=extent, vmin=limits[0], vmax=limits[1], cmap=cmap, interpolation="nearest")
    draw_bar(ax, image, "log1p counts", values[np.isfinite(values)])
