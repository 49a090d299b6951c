"""How well genes were predicted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm._utils import check_choice
from sagefm.pl._axes import finish, get_axes, tidy

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

MODEL, BASELINE, OTHER = "#b35806", "#2166ac", "0.6"
MIN_R = 0.3  # of a gene that is worth naming


def reliability(
    adata: AnnData | SpatialData,
    kind: Literal["scatter", "distribution"] = "scatter",
    *,
    n_labels: int = 5,
    key: str = _keys.IMPUTED,
    table_key: str = "table",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show how well held-out genes were predicted, by the model and by the neighbours' mean.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.impute`.
    kind
        Each gene's correlation by the model against that by the baseline (``"scatter"``), or how both are spread
        (``"distribution"``).
    n_labels
        How many genes of a scatter to name: of the reliable ones with r above 0.3 those that the model adds most to.
    key
        Where the results are.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    ax
        Axes to draw into; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    The axes. Filled points are genes that are reliable: above the diagonal by more than chance.

    Raises
    ------
    KeyError
        If genes were not scored.
    ValueError
        If ``kind`` is neither of the two, or no gene varies.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=18, n_cols=18, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.impute(adata, adata.var_names[:50].tolist(), "sagefm-mini")
    >>> ax = sg.pl.reliability(adata)
    """
    check_choice("kind", kind, ("scatter", "distribution"))
    adata = get_anndata(adata, table_key)
    run, columns = "sg.tl.impute(adata, ...)", ["r", "baseline_r", "difference", "reliable"]
    params = get_result(adata, (key, "params"), Mapping, ["mask", "model"], run)
    table = get_result(adata, (key, "reliability"), pd.DataFrame, columns, run, may_be_empty=True)
    table = table.dropna(subset=["r", "baseline_r"])
    if not len(table):
        raise ValueError("no gene varies on the slide, so none has a correlation.")
    shown = params["mask"] == "center"
    baseline = "neighbours' mean, scaled by depth" if shown else "depth of the spot"
    reliable = table["reliable"].to_numpy(dtype=bool)
    if kind == "distribution":
        ax = get_axes(ax, (5.0, 3.4))
        bins = np.linspace(min(-0.1, table[["r", "baseline_r"]].min(axis=None)), 1, 45).tolist()
        ax.hist(table["baseline_r"], bins, histtype="stepfilled", color="0.85", label=baseline)
        ax.hist(table["r"], bins, histtype="step", color=MODEL, linewidth=1.6, label=str(params["model"]))
        ax.set(xlabel="correlation with the measured gene", ylabel="genes")
        ax.legend(frameon=False, fontsize="small")
        tidy(ax)
        return finish(ax, save)
    ax = get_axes(ax, (4.8, 4.6))
    limits = (min(-0.1, table[["r", "baseline_r"]].min(axis=None)) - 0.02, 1.0)
    ax.plot(limits, limits, color="0.5", linewidth=0.8, zorder=0)
    for members, color, edge, label in (
        (~reliable, "none", OTHER, f"{(~reliable).sum():,} other genes"),
        (reliable, MODEL, MODEL, f"{reliable.sum():,} reliable genes"),
    ):
        part = table[members]
        ax.scatter(
            part["baseline_r"],
            part["r"],
            s=12,
            facecolor=color,
            edgecolor=edge,
            linewidth=0.5,
            rasterized=True,
            label=label,
        )
    for name, row in table[reliable & (table["r"] > MIN_R)].nlargest(n_labels, "difference").iterrows():
        ax.annotate(
            str(name), (row["baseline_r"], row["r"]), xytext=(4, 2), textcoords="offset points", fontsize="x-small"
        )
    ax.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"r of the {baseline}")
    ax.set_ylabel(f"r of {params['model']}")
    ax.legend(frameon=False, fontsize="small", loc="lower right")
    tidy(ax)
    return finish(ax, save)
