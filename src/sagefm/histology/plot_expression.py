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
from sagefm._slides import split_libraries
from sagefm._types import Floats, Ints
from sagefm.pl._axes import finish, open_grid
from sagefm.pl._spatial import draw_gene, get_coordinates
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
    library_id: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    cmap: str = "viridis",
    table_key: str = "table",
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> list[Axes] | Figure | None:
    """Show measured genes beside what the histology says of them, on the tissue.

    Both maps of a gene share one colour scale, over what 98 % of the values of both span. A prediction is a mean, so
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
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. There is a row for each
    gene, with its measured and its predicted ``log1p`` counts at the common depth, and the Pearson r of both where
    groups were held out.

    Raises
    ------
    KeyError
        If a gene was not predicted, there is no such slide, or the coordinates or counts are missing.
    ValueError
        If there are several slides and none was chosen.

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
    rows = _find_slide(adata, library_key or params.get("library_key"), library_id)
    coordinates = get_coordinates(adata, spatial_key)[rows]
    layer = params.get("layer") if layer is None else layer
    measured = _measured(adata, [name for name in names if name in adata.var_names], layer, params["depth"])
    of = ", reference" if params.get("scored_on") == "reference" else ""

    grid = open_grid(len(names), 2, (4.5, 3.8))
    for axes, name in zip(grid, names, strict=True):
        predicted = table[name].to_numpy(dtype=float)[rows]
        counted = measured[name][rows] if name in measured else np.full(len(rows), np.nan)
        known = counted if np.isfinite(counted).any() else None
        note = f" ({_quality(scores['r'][name])}{of})"
        limits = _limits(np.concatenate([counted, predicted]))
        draw_gene(axes, coordinates, name, known, predicted, limits=limits, cmap=cmap, note=note)
    return finish(_titled(grid, library_id), show, save, return_fig)


@fill_docstring
def superresolved_expression(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = _keys.SUPERRESOLVED,
    library_key: str | None = None,
    library_id: str | None = None,
    cmap: str = "viridis",
    table_key: str = "table",
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
    ValueError
        If there are several slides and none was chosen.

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
        raise ValueError(f"the map is of {len(steps)} slides: set library_key to their column of obs, and library_id.")
    points = adata[_find_slide(adata, library_key, library_id)]
    coordinates = get_coordinates(points, _keys.SPATIAL)

    n_columns = min(len(names), N_GENES)
    grid = open_grid(-(-len(names) // n_columns), n_columns, (4.6, 4.2))
    axes = _titled(grid, library_id)
    for ax in axes:
        ax.axis("off")
    for ax, name in zip(axes, names, strict=False):
        _draw_grid(ax, coordinates, obs_df(points, [name])[name].to_numpy(dtype=float), steps, cmap)
        ax.set_title(f"{name}\n{_quality(r[name])}")
    about = ["Predicted from the histology. Between the spots nothing was measured:", "r is that of held-out spots."]
    figure: Any = axes[0].figure
    figure.supxlabel(("\n" if n_columns == 1 else " ").join(about), fontsize="small")
    return finish(axes[: len(names)], show, save, return_fig)


def _choose_genes(genes: str | Sequence[str] | None, r: pd.Series, where: str) -> list[str]:
    """Those asked for, or the best predicted."""
    best = r.sort_values(ascending=False, kind="stable").index.astype(str)
    return choose(best[:N_GENES].tolist() if genes is None else genes, r.index, "gene", where)


def _find_slide(adata: AnnData, library_key: str | None, library_id: str | None) -> Ints:
    """Rows of one slide."""
    if library_key is None and library_id is not None:
        raise ValueError(f"library_id={library_id!r} is one of which column of obs? Set library_key.")
    slides = dict(split_libraries(adata, library_key).rows())
    if library_id is None and len(slides) > 1:
        raise ValueError(f"one slide at a time: set library_id to one of {list(slides)}.")
    wanted = None if library_id is None else str(library_id)
    return slides[choose(wanted, slides, "slide", f"adata.obs[{library_key!r}]")[0]]


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


def _titled(grid: list[list[Axes]], library_id: str | None) -> list[Axes]:
    """Return all axes of a grid, whose figure gets the slide's name."""
    figure: Any = grid[0][0].figure
    if library_id is not None:
        figure.suptitle(str(library_id))
    return [ax for axes in grid for ax in axes]


def _draw_grid(ax: Axes, coordinates: Floats, values: Floats, steps: Floats, cmap: str) -> None:
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
    vmin, vmax = _limits(values)
    image = ax.imshow(raster, extent=extent, vmin=vmin, vmax=vmax, cmap=cmap, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, shrink=0.7, label="log1p counts")
