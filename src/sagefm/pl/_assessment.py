"""The trust card as a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm._docs import fill_docstring
from sagefm.pl._axes import finish, open_axes
from sagefm.pp._assess.card import COLORS, headline, remarks

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

SHADES = {"fine": "#d1e5f0", "with care": "#fee0b6", "outside what the model knows": "#f4a582"}
LEVELS = list(SHADES)
LETTERS = 92
PARTS = ["verdict", "checks", "slides", "expected_r", "expected_r_sd", "expected_r_beyond_depth"]
PARTS += ["markers_unknown", "markers_missing", "params"]
COLUMNS = ("value", "care", "outside", "worse", "verdict", "text")


@fill_docstring
def assessment(
    adata: AnnData | SpatialData,
    *,
    key: str = _keys.ASSESSMENT,
    table_key: str = "table",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show the trust card of a slide: where each check lies between fine and outside what the model knows.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.pp.assess`.
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
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. Each check has three
    fields, for values that are fine, to be taken with care, and outside what the model knows; a field's edges are
    the model's limits. Checks without limits show their verdict alone.

    Raises
    ------
    KeyError
        If the slide was not assessed.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.pp.assess(adata, "sagefm-mini")
    >>> ax = sg.pl.assessment(adata, show=False)
    """
    adata = get_anndata(adata, table_key)
    run = "sg.pp.assess(adata)"
    found = get_result(adata, (key,), Mapping, PARTS, run)
    checks = get_result(adata, (key, "checks"), pd.DataFrame, COLUMNS, run)
    notes = "\n".join(textwrap.fill(line, LETTERS + 28) for line in remarks(dict(found)))
    ax, show = open_axes(ax, figsize or (9.0, 0.62 * len(checks) + 0.9 + 0.17 * (notes.count("\n") + 1)), show)
    for y, (name, row) in enumerate(checks.iterrows()):
        _draw_check(ax, y, str(name), row)
    for at, level in enumerate(LEVELS):
        ax.text(at + 0.5, -0.75, level.replace(" what the model knows", ""), ha="center", fontsize="small", color="0.4")
    ax.set(xlim=(-0.9, 6.4), ylim=(len(checks) - 0.4, -1.0))
    title = headline(dict(found)) if title is None else title
    ax.set_title(title, loc="left", weight="bold", color=COLORS[found["verdict"]], parse_math=False)
    ax.text(0, -0.01, notes, transform=ax.transAxes, va="top", fontsize="small", color="0.3", parse_math=False)
    ax.axis("off")
    return finish(ax, None, show, save, return_fig)


def _draw_check(ax: Axes, y: int, name: str, row: pd.Series) -> None:
    """Draw a check's fields, its value in one of them, and its verdict in words."""
    verdict, color = row["verdict"], COLORS[row["verdict"]]
    if np.isfinite(row["care"]):
        n_fields = 3 if np.isfinite(row["outside"]) else 2
        shades = list(SHADES.values())[:n_fields]
        ax.barh([y] * n_fields, 1, left=range(n_fields), height=0.36, color=shades, edgecolor="white")
        place = _position(row["value"], row["care"], row["outside"], row["worse"] == "above")
        ax.plot(place, y, "o", color=color, markersize=9)
    elif verdict in LEVELS:
        ax.plot(LEVELS.index(verdict) + 0.5, y, "o", color=color, markersize=9)
    style: dict[str, Any] = {"ha": "left", "fontsize": "small", "parse_math": False}
    ax.text(-0.08, y, name, ha="right", va="center", parse_math=False)
    ax.text(3.12, y, verdict, va="bottom", color=color, weight="bold", **style)
    ax.text(3.12, y, textwrap.fill(str(row["text"]).partition(";")[0], LETTERS - 32), va="top", **style)


def _position(value: float, care: float, outside: float, above: bool) -> float:
    """Place between 0 and 3, the limits lying at 1 and 2; the further the value, the slower."""
    if not above:  # smaller is worse
        value, care, outside = (1 / max(limit, 1e-9) for limit in (value, care, outside))
    if value <= care:
        return float(value / care) if care > 0 else 1.0
    if not np.isfinite(outside):
        return float(2 - care / value)
    if value <= outside:
        return float(1 + (value - care) / (outside - care))
    return float(3 - outside / value)
