"""How every plot begins and ends: axes are made or taken from the caller; the figure is saved, shown or returned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sagefm._io.files import atomic

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Drawn = TypeVar("Drawn", "Axes", "list[Axes]")

# Dark to light, so that they differ in greyscale too; orange and blue differ for most colour-blind readers.
ORANGE, BLUE, PALE_BLUE = "#b35806", "#2166ac", "#92c5de"
MARKERS = "osD^vP"


def open_axes(ax: Axes | None, size: tuple[float, float], show: bool | None) -> tuple[Axes, bool | None]:
    """Return new axes of a size in inches, or the caller's, which are the caller's to show as well."""
    import matplotlib.pyplot as plt

    if ax is None:
        return plt.subplots(figsize=size, layout="constrained")[1], show
    return ax, bool(show)


def open_grid(n_rows: int, n_columns: int, panel: tuple[float, float], **options: Any) -> list[list[Axes]]:
    """Rows of new axes, each of a size in inches."""
    import matplotlib.pyplot as plt

    size = (panel[0] * n_columns, panel[1] * n_rows)
    axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained", **options)[1]
    return [list(row) for row in axes]


def finish(axes: Drawn, show: bool | None, save: str | Path | None, return_fig: bool | None) -> Drawn | Figure | None:
    """Save the figure, and show or return it, as scanpy does.

    The figure stays open, so that ``plt.savefig`` and notebooks find it.
    """
    import matplotlib.pyplot as plt

    first = axes[0] if isinstance(axes, list) else axes
    figure = first.get_figure(root=True)
    assert figure is not None
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


def name_points(ax: Axes, points: Iterable[Sequence[float]], names: Iterable[object]) -> None:
    """Name points on their upper right, further up where another name is in the way; set the limits before."""
    figure: Any = ax.get_figure(root=True)
    figure.draw_without_rendering()  # lays the axes out, so that places in pixels are known
    taken: list[Any] = []
    for (x, y), name in sorted(zip(points, names, strict=True), key=lambda named: named[0][1]):
        text = ax.annotate(str(name), (x, y), (4, 2), textcoords="offset points", fontsize="x-small")
        box = text.get_window_extent()
        while blocking := [other.y1 for other in taken if box.overlaps(other)]:
            text.xyann = (4, text.xyann[1] + 72 / figure.dpi * (max(blocking) - box.y0 + 1))
            box = text.get_window_extent()
        taken.append(box)


def legend_beside(ax: Axes, handles: Sequence[Artist] | None = None, title: str | None = None) -> None:
    """Draw a legend on the right of the axes, of what was drawn with a label unless told otherwise."""
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    ax.legend(handles=handles, frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), title=title)


def legend_entry(label: object, marker: str = "", color: Any = "0.3") -> Line2D:
    """Entry of a legend: a marker and what it stands for, or a text alone."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=marker, color=color, label=str(label))


def palette(n: int) -> list[str]:
    """Colours of ``n`` groups."""
    import matplotlib as mpl

    colors = mpl.colormaps["tab20" if n > 10 else "tab10"].colors  # type: ignore[attr-defined]
    return [mpl.colors.to_hex(color) for color in islice(cycle(colors), n)]
