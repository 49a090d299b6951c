"""Pairs of ligands and receptors in two groups of slides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm.pl._axes import BLUE, ORANGE, finish, name_points, open_axes, tidy
from sagefm.pl._perturb.recorded import overlap_in

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData


@fill_docstring
def perturbation_scatter(
    adata: AnnData | SpatialData,
    *,
    n_labels: int = 10,
    key: str = _keys.PERTURB_LR,
    table_key: str = "table",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show each pair's measured correlation in one group of slides against that in the other.

    Parameters
    ----------
    adata
        Spots after :func:`sagefm.tl.perturbation_overlap`.
    n_labels
        How many pairs to name: those with the largest correlations that the model reproduces.
    {key}
    {table_key}
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. Filled points are pairs
    with a significant correlation of one sign in both groups; circles of them are reproduced by the model, crosses
    aren't.

    Raises
    ------
    KeyError
        If the groups have not been compared.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 5a.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> adata.obs["half"] = ["left" if x < 600 else "right" for x in adata.obsm["spatial"][:, 0]]
    >>> sg.pp.neighborhood_graph(adata, library_key="half")
    >>> sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], "sagefm-mini", library_key="half", n_controls=0)
    >>> sg.tl.perturbation_overlap(adata)
    >>> ax = sg.pl.perturbation_scatter(adata, show=False)
    """
    columns = ["reference_r_1", "reference_r_2"]
    overlap = overlap_in(get_anndata(adata, table_key), key, [*columns, "agrees", "reproduced"], [])
    pairs, (one, two) = overlap["pairs"], list(overlap["params"]["groups"])
    agrees, reproduced = pairs["agrees"], pairs["reproduced"]
    ax, show = open_axes(ax, (5.0, 4.6), show)
    styles: list[tuple[str, pd.DataFrame, dict[str, Any]]] = [
        ("not significant in both", pairs[~agrees], {"marker": ".", "color": "0.75", "s": 25}),
        ("reproduced", pairs[reproduced], {"color": ORANGE, "edgecolor": "k", "linewidth": 0.5, "s": 42}),
        ("not reproduced", pairs[agrees & ~reproduced], {"marker": "x", "color": BLUE, "s": 42}),
    ]
    for label, part, style in styles:
        ax.scatter(part[columns[0]], part[columns[1]], label=f"{label} ({len(part)})", **style)
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlabel=f"measured correlation, {one}", ylabel=f"measured correlation, {two}")
    ax.margins(0.12)
    ax.legend(frameon=False, fontsize="small", title="model")
    tidy(ax)
    size = pairs.loc[reproduced, columns].abs().sum(axis=1)
    named = pairs.loc[size.sort_values(ascending=False).index[:n_labels], columns].astype(float)
    name_points(ax, named.to_numpy(), [name.replace("|", "–") for name in named.index])
    return finish(ax, show, save, return_fig)


@fill_docstring
def perturbation_overlap(
    adata: AnnData | SpatialData,
    *,
    key: str = _keys.PERTURB_LR,
    table_key: str = "table",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show how many pairs are significant in each group of slides, in both, and reproduced by the model.

    Parameters
    ----------
    adata
        Spots after :func:`sagefm.tl.perturbation_overlap`.
    {key}
    {table_key}
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. Two circles of a Venn
    diagram are the pairs with a significant measured correlation.

    Raises
    ------
    KeyError
        If the groups have not been compared.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 5b. Circles are of one size, whatever the counts.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> adata.obs["half"] = ["left" if x < 600 else "right" for x in adata.obsm["spatial"][:, 0]]
    >>> sg.pp.neighborhood_graph(adata, library_key="half")
    >>> sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], "sagefm-mini", library_key="half", n_controls=0)
    >>> sg.tl.perturbation_overlap(adata)
    >>> ax = sg.pl.perturbation_overlap(adata, show=False)
    """
    shown = ["n_pairs", "significant_1", "significant_2", "significant_both", "agrees", "reproduced"]
    overlap = overlap_in(get_anndata(adata, table_key), key, [], shown)
    counts = {name: int(overlap["counts"][name]) for name in shown}
    ax, show = open_axes(ax, (5.4, 4.0), show)
    _draw_circles(ax)
    both = counts["significant_both"]
    one, two = counts["significant_1"] - both, counts["significant_2"] - both
    inside = f"{both}\n\nof one sign {counts['agrees']}\nreproduced {counts['reproduced']}"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 2.0, "alpha": 0.85}
    for x, text, size in ((-1.05, str(one), "x-large"), (1.05, str(two), "x-large"), (0, inside, "medium")):
        ax.text(x, 0, text, ha="center", va="center", fontsize=size, bbox=box)
    for x, name in zip((-0.75, 0.75), overlap["params"]["groups"], strict=True):
        ax.text(x, 1.08, name, ha="center", va="bottom")
    rest = f"{counts['n_pairs'] - one - two - both} of {counts['n_pairs']} pairs in neither"
    ax.text(0, -1.12, rest, ha="center", va="top", color="0.35")
    ax.set_title("pairs with a significant measured correlation", fontsize="medium")
    return finish(ax, show, save, return_fig)


def _draw_circles(ax: Axes) -> None:
    """Draw two circles that overlap, told apart by hatches as well."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Circle

    for x, color, hatch in ((-0.55, ORANGE, "///"), (0.55, BLUE, "\\\\\\")):
        pale = to_rgba(color, 0.25)
        ax.add_patch(Circle((x, 0), 1.0, facecolor=pale, edgecolor=color, linewidth=1.5))
        ax.add_patch(Circle((x, 0), 1.0, fill=False, edgecolor=pale, hatch=hatch, linewidth=0))
    ax.set(xlim=(-1.7, 1.7), ylim=(-1.4, 1.4), aspect="equal")
    ax.axis("off")
