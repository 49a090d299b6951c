"""Plots of patches of the histology."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._types import Array, Bools, Ints
from sagefm._utils import check_whole, shorten
from sagefm.histology.spot_patches import get_params, open_patches
from sagefm.pl._axes import finish, open_grid

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

N_COLUMNS = 6
LOW_TISSUE = 0.25  # share of a patch below which it is marked


@fill_docstring
def histology_patches(
    adata: AnnData | SpatialData,
    n: int = 12,
    *,
    spots: str | Sequence[str] | None = None,
    color: str | None = None,
    histology_key: str = _keys.HISTOLOGY,
    rng: int | np.random.Generator = 0,
    table_key: str = "table",
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> list[Axes] | Figure | None:
    """Show the image around some spots.

    Parameters
    ----------
    adata
        Slides after :func:`sagefm.pp.histology_patches`; the ``SpatialData`` where the image lies in one.
    n
        How many spots to draw at random.
    spots
        Names of the spots to show instead.
    color
        Column of ``obs`` for the titles. Of groups each has a row, and ``n`` is shared among them; by numbers the
        patches are sorted. Spots without a value are left out.
    {histology_key}
    {rng}
    {table_key}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. Each patch is under the
    spot's name or its value of ``color``, and what is wrong with it: less than 25 % tissue, or that it leaves the
    image.

    Raises
    ------
    KeyError
        If there are no patches, no such spot, or no such column.
    FileNotFoundError
        If the image is gone.
    ValueError
        If no spot has a value of ``color``.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=8, n_cols=8, n_genes=300, image=True)
    >>> sg.pp.histology_patches(adata, size=64)
    >>> axes = sg.pl.histology_patches(adata, color="domain", show=False)
    """
    from anndata import AnnData

    n = check_whole("n", n, 1)
    sdata = None if isinstance(adata, AnnData) else adata
    adata = get_anndata(adata, table_key)
    lines, titles = _choose(adata, n, spots, color, np.random.default_rng(rng))
    picked = np.concatenate(lines)
    pixels, padded = _read(adata[picked], sdata, histology_key)
    column = adata.obs.get(_keys.HISTOLOGY_TISSUE.format(histology_key))
    tissue = np.ones(len(picked)) if column is None else column.to_numpy()[picked]

    grid = open_grid(len(lines), max(map(len, lines)), (1.7, 2.0), figsize)
    for axes in grid:
        for ax in axes:
            ax.axis("off")
    used = [ax for axes, line in zip(grid, lines, strict=True) for ax in axes[: len(line)]]
    for i, ax in enumerate(used):
        marks = [f"{tissue[i]:.0%} tissue"] * bool(tissue[i] < LOW_TISSUE) + ["leaves the image"] * bool(padded[i])
        ax.imshow(pixels[i])
        ax.set_title("\n".join([titles[picked[i]], *marks]), fontsize="x-small", color="tab:red" if marks else "black")
    return finish(used, title, show, save, return_fig)


def _choose(
    adata: AnnData, n: int, spots: str | Sequence[str] | None, color: str | None, rng: np.random.Generator
) -> tuple[list[Ints], list[str]]:
    """Rows of the slide by line of the gallery, and every row's title."""
    if spots is None:
        known = np.arange(adata.n_obs)
    else:
        names = [spots] if isinstance(spots, str) else list(spots)
        known = adata.obs_names.get_indexer(names)
        if not names or (known < 0).any():
            missing = [name for name, row in zip(names, known, strict=True) if row < 0]
            raise KeyError(f"spots {shorten(missing)} not in adata.obs_names." if names else "spots is empty.")
    if color is None:
        picked = known if spots is not None else np.sort(rng.permutation(known)[:n])
        return np.split(picked, range(N_COLUMNS, len(picked), N_COLUMNS)), adata.obs_names.tolist()
    if color not in adata.obs:
        raise KeyError(f"color={color!r} not in adata.obs.")
    column = adata.obs[color]
    known = known[column.notna().to_numpy()[known]]
    if not len(known):
        raise ValueError(f"none of the spots has a value in adata.obs[{color!r}].")
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        picked = known if spots is not None else rng.permutation(known)[:n]
        picked = picked[np.argsort(column.to_numpy()[picked], kind="stable")]
        return np.split(picked, range(N_COLUMNS, len(picked), N_COLUMNS)), [f"{value:.3g}" for value in column]
    groups = column.astype("category").cat
    of_groups = [known[groups.codes.to_numpy()[known] == code] for code in range(len(groups.categories))]
    of_groups = [rows for rows in of_groups if len(rows)]
    if spots is None:
        each = max(1, n // len(of_groups))
        of_groups = [np.sort(rng.permutation(rows)[:each]) for rows in of_groups]
    return of_groups, column.astype(str).tolist()


def _read(adata: AnnData, sdata: SpatialData | None, key: str) -> tuple[Array, Bools]:
    """Pixels of the patches, and which of them leave the image."""
    size = get_params(adata, key)["size"]
    found = np.empty((adata.n_obs, size, size, 3), dtype=np.uint8)
    padded = np.zeros(adata.n_obs, dtype=bool)
    for rows, patches in open_patches(adata, sdata, key):
        padded[rows] = patches.padded
        for numbers, pixels in patches.blocks():
            found[rows[numbers]] = pixels
    return found, padded
