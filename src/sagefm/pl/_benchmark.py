"""Scores of representations beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagefm.pl._axes import finish, get_axes, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LABELS = {
    "accuracy": "accuracy",
    "f1_macro": "macro-F1",
    "f1_micro": "micro-F1",
    "recall_macro": "recall, macro",
    "precision_macro": "precision, macro",
    "ari": "adjusted Rand index",
    "nmi": "normalised mutual information",
    "bce": "binary cross-entropy",
}


def benchmark_violin(
    data: pd.DataFrame,
    metric: str = "f1_macro",
    *,
    by: str = "classifier",
    representations: Sequence[str] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show a metric of representations: its spread over fits, and each held-out group.

    Parameters
    ----------
    data
        What :func:`sagefm.benchmark.evaluate_annotation` returned, or any table with a column ``representation``.
    metric
        Column to show.
    by
        Column that colours tell apart, where the table has it.
    representations
        Which to show, in this order; all by default.
    ax
        Axes to draw into; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    The axes: a violin over all fits (bootstraps of all groups), a dot for each group (fit on all training spots), a
    bar at the dots' mean.

    Raises
    ------
    KeyError
        If there is no such column or representation.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 3.

    Examples
    --------
    >>> import pandas as pd
    >>> import sagefm as sg
    >>> scores = pd.DataFrame({"representation": ["X_sage", "PCA"] * 3, "f1_macro": [0.4, 0.3, 0.5, 0.3, 0.4, 0.2]})
    >>> ax = sg.pl.benchmark_violin(scores)
    """
    import matplotlib as mpl

    if missing := [column for column in ("representation", metric) if column not in data]:
        raise KeyError(f"the table has no column {missing[0]!r}; it has {list(data.columns)}.")
    known = list(dict.fromkeys(data["representation"]))
    names = known if representations is None else list(representations)
    if unknown := [name for name in names if name not in known]:
        raise KeyError(f"no representation {unknown[0]!r}; there are {known}.")
    shades = list(dict.fromkeys(data[by])) if by in data else [None]
    ax = get_axes(ax, (7.0, 0.42 * len(names) * max(1, 0.75 * len(shades)) + 1.1))
    palette = mpl.colormaps["tab10"]
    height = 0.8 / len(shades)
    for number, name in enumerate(names):
        for shade_number, shade in enumerate(shades):
            part = data[data["representation"] == name]
            part = part if shade is None else part[part[by] == shade]
            values = part[metric].dropna().to_numpy(dtype=float)
            if not len(values):
                continue
            color = palette(shade_number % 10)
            y = number + (shade_number - (len(shades) - 1) / 2) * height
            if len(values) > 2 and np.ptp(values) > 0:
                violin = ax.violinplot([values], [y], orientation="horizontal", widths=0.9 * height, showextrema=False)
                for body in violin["bodies"]:  # type: ignore[attr-defined]
                    body.set(facecolor=color, alpha=0.25, edgecolor="none")
            whole = part[part["bootstrap"] == 0] if "bootstrap" in part else part
            dots = whole[metric].dropna().to_numpy(dtype=float)
            ax.plot(dots, np.full(len(dots), y), "o", color=color, markersize=3.5, alpha=0.8)
            ax.plot([dots.mean()] * 2, [y - 0.4 * height, y + 0.4 * height], color=color, linewidth=2.5)
    ax.set(xlabel=LABELS.get(metric, metric), ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), names)
    if shades != [None]:
        handles = [
            mpl.lines.Line2D([], [], marker="o", linestyle="", color=palette(i % 10), label=str(shade))
            for i, shade in enumerate(shades)
        ]
        ax.legend(handles=handles, frameon=False, loc="upper left", bbox_to_anchor=(1, 1), title=by)
    tidy(ax, grid="x")
    return finish(ax, save)
