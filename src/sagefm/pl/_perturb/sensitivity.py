"""Derivatives of predicted genes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm._docs import fill_docstring
from sagefm.pl._axes import finish, name_columns, open_axes
from sagefm.pl._perturb.recorded import RUN, sign_of, table_in

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

MAX_SIGNS = 400


@fill_docstring
def sensitivity_heatmap(
    adata: AnnData | SpatialData,
    *,
    key: str = _keys.SENSITIVITY,
    table_key: str = "table",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show the mean derivatives of predicted genes by genes in the neighbors.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.gene_sensitivity`.
    {key}
    {table_key}
    {ax}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. The sign is printed in
    the cells where there are at most 400.

    Raises
    ------
    KeyError
        If there are no results.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.gene_sensitivity(adata, ["COL1A1", "CD74"], ["COL3A1"], model="sagefm-mini")
    >>> ax = sg.pl.sensitivity_heatmap(adata, show=False)
    """
    adata = get_anndata(adata, table_key)
    table = table_in(adata, key, [], default=_keys.SENSITIVITY)
    params = get_result(adata, (key, "params"), Mapping, ["wrt"], RUN[_keys.SENSITIVITY])
    longest = max(map(len, map(str, table.index)))
    size = figsize or (2.6 + 0.09 * longest + 0.42 * table.shape[1], 1.6 + 0.34 * table.shape[0])
    ax, show = open_axes(ax, size, show)
    values = table.to_numpy(dtype=float)
    largest = float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto")
    if values.size <= MAX_SIGNS:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if abs(value) > 0.6 * largest else "black"
            ax.text(column, row, sign_of(value), ha="center", va="center", color=color, fontsize="small")
    name_columns(ax, table.columns)
    ax.set_yticks(range(table.shape[0]), table.index)
    where = "in the neighbors" if params["wrt"] == "neighbors" else "in the spot"
    ax.set(xlabel="predicted gene", ylabel=f"gene {where}")
    ax.figure.colorbar(image, ax=ax, shrink=0.8, label="mean derivative")
    return finish(ax, title, show, save, return_fig)
