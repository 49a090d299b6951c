"""Axes: made, tidied, saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def get_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Those given, or new ones of a size in inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def finish(ax: Axes, save: str | Path | None) -> Axes:
    """Save the figure, if that is asked for."""
    if save is not None:
        ax.get_figure(root=True).savefig(save, dpi=150, bbox_inches="tight")  # type: ignore[union-attr]
    return ax


def tidy(ax: Axes, grid: str | None = None) -> None:
    """No frame above and on the right; a faint grid along an axis."""
    ax.spines[["top", "right"]].set_visible(False)
    if grid is not None:
        ax.grid(axis=grid, color="0.92", linewidth=0.8, zorder=-1)  # type: ignore[arg-type]
        ax.set_axisbelow(True)
