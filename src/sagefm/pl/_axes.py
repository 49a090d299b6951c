"""How every plot begins and ends: axes are made or taken from the caller; the figure is saved, shown or returned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sagefm._io.files import atomic
from sagefm._types import Floats

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Drawn = TypeVar("Drawn", "Axes", "list[Axes]")

# Dark to light, so that they differ in greyscale too; orange and blue differ for most color-blind readers.
ORANGE, BLUE, PALE_BLUE = "#b35806", "#2166ac", "#92c5de"
MARKERS = "o^sDvP"


def open_axes(ax: Axes | None, figsize: tuple[float, float], show: bool | None) -> tuple[Axes, bool | None]:
    """Return new axes of a size in inches, or the caller's, which are the caller's to show as well."""
    import matplotlib.pyplot as plt

    if ax is None:
        return plt.subplots(figsize=figsize, layout="constrained")[1], show
    return ax, bool(show)


def open_grid(
    n_rows: int, n_columns: int, panel: tuple[float, float], figsize: tuple[float, float] | None = None
) -> list[list[Axes]]:
    """Rows of new axes, each of a size in inches, unless the figure has a size."""
    import matplotlib.pyplot as plt

    figsize = figsize or (panel[0] * n_columns, panel[1] * n_rows)
    axes = plt.subplots(n_rows, n_columns, figsize=figsize, squeeze=False, layout="constrained")[1]
    return [list(row) for row in axes]


def finish(
    axes: Drawn, title: str | None, show: bool | None, save: str | Path | None, return_fig: bool | None
) -> Drawn | Figure | None:
    """Give the figure its title, save it, and show or return it, as scanpy does.

    The figure stays open, so that ``plt.savefig`` and notebooks find it. The title of several panels stands over all.
    """
    import matplotlib.pyplot as plt

    first = axes[0] if isinstance(axes, list) else axes
    figure = first.get_figure(root=True)
    assert figure is not None
    if title is not None and axes is first:
        first.set_title(title)
    elif title is not None:
        figure.suptitle(title)
    if save is not None:
        save_figure(figure, save, dpi=150, bbox_inches="tight")
    if return_fig:
        return figure
    if show is None:
        from scanpy import settings

        show = bool(settings.autoshow)
    if not show:
        return axes
    plt.show()
    return None


def save_figure(figure: Figure, path: str | Path, **options: Any) -> None:
    """Save a figure in the format that the name ends in, complete or not at all."""
    path = Path(path)
    if not path.suffix:
        path = path.with_name(f"{path.name}.{figure.canvas.get_default_filetype()}")
    with atomic(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], **options)


def tidy(ax: Axes, grid: str | None = None) -> None:
    """Remove the frame above and on the right; draw a faint grid along an axis."""
    ax.spines[["top", "right"]].set_visible(False)
    if grid is not None:
        ax.grid(axis=grid, color="0.92", linewidth=0.8, zorder=-1)  # type: ignore[arg-type]
        ax.set_axisbelow(True)


def write_instead(ax: Axes, text: str) -> None:
    """Put a text in the place of a drawing."""
    ax.text(0.5, 0.5, text, ha="center", va="center")
    ax.axis("off")


def name_columns(ax: Axes, names: Sequence[object]) -> None:
    """Name the whole numbers of the x-axis, slanted so that long names have room."""
    ax.set_xticks(range(len(names)), [str(name) for name in names], rotation=45, ha="right", rotation_mode="anchor")


def name_points(
    ax: Axes, points: Floats, names: Iterable[object], *, beside: Floats | None = None, **style: Any
) -> None:
    """Name points, shape (points, 2), where no other name and none of the points ``beside`` is in the way.

    Call it last: places depend on the limits and the layout.
    """
    from adjustText import adjust_text

    texts = [ax.text(x, y, str(name), fontsize="x-small", **style) for (x, y), name in zip(points, names, strict=True)]
    if not texts:
        return
    figure: Any = ax.get_figure(root=True)
    figure.draw_without_rendering()
    x, y = np.asarray(points if beside is None else beside, dtype=float).T
    lines = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5}
    adjust_text(
        texts,
        x,
        y,
        target_x=points[:, 0],
        target_y=points[:, 1],
        ax=ax,
        expand=(1.1, 1.3),
        iter_lim=1000,
        arrowprops=lines,
    )


def legend_beside(ax: Axes, handles: Sequence[Artist] | None = None, title: str | None = None) -> None:
    """Draw a legend on the right of the axes, of what was drawn with a label unless told otherwise."""
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    ax.legend(handles=handles, frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), title=title)


def legend_below(ax: Axes, handles: Sequence[Artist] | None = None, n_columns: int = 2) -> None:
    """Draw a legend below the axes and their labels, so that they stay as wide as they are."""
    from matplotlib.transforms import ScaledTranslation

    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    figure: Any = ax.get_figure(root=True)
    figure.draw_without_rendering()  # lays the labels out, so that their height is known
    outer: Any = ax.get_tightbbox()
    height = (ax.get_window_extent().y0 - outer.y0) / figure.dpi
    place = ax.transAxes + ScaledTranslation(0, -height, figure.dpi_scale_trans)
    options: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": place, "ncols": n_columns}
    ax.legend(handles=handles, frameon=False, fontsize="small", **options)


def legend_entry(label: object, marker: str = "", color: Any = "0.3") -> Line2D:
    """Entry of a legend: a marker and what it stands for, or a text alone."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=marker, color=color, label=str(label))


def palette_of(n: int, colors: str | Sequence[str] | None = None) -> list[str]:
    """Colors of ``n`` groups: of a color map of matplotlib, or the given ones, in turn where there are fewer."""
    import matplotlib as mpl

    if colors is None or isinstance(colors, str):
        colors = mpl.colormaps[colors or ("tab20" if n > 10 else "tab10")].colors  # type: ignore[attr-defined]
    return [mpl.colors.to_hex(color) for color in islice(cycle(colors), n)]
