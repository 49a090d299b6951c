"""Axes: made, tidied, saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagefm._io.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def get_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Those given, or new ones of a size in inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def finish(ax: Axes, save: str | Path | None) -> Axes:
    """Save the figure, if that is asked for."""
    if save is not None:
        save_figure(ax.get_figure(root=True), save, dpi=150, bbox_inches="tight")  # type: ignore[arg-type]
    return ax


def save_figure(figure: Figure, path: str | Path, **options: Any) -> None:
    """Save a figure in the format that the name ends in, complete or not at all."""
    path = Path(path)
    if not path.suffix:
        path = path.with_name(f"{path.name}.{figure.canvas.get_default_filetype()}")
    with atomic(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], **options)


def tidy(ax: Axes, grid: str | None = None) -> None:
    """No frame above and on the right; a faint grid along an axis."""
    ax.spines[["top", "right"]].set_visible(False)
    if grid is not None:
        ax.grid(axis=grid, color="0.92", linewidth=0.8, zorder=-1)  # type: ignore[arg-type]
        ax.set_axisbelow(True)
