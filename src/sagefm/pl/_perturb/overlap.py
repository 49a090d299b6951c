"""Pairs of ligands and receptors in two groups of slides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._utils import check_choice
from sagefm.pl._axes import BLUE, ORANGE, finish, legend_below, name_points, open_axes, tidy, write_instead
from sagefm.pl._perturb.recorded import arrow, overlap_in

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
    values: Literal["correlation", "effect"] = "correlation",
    n_labels: int = 10,
    key: str = _keys.PERTURB_LR,
    table_key: str = "table",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show each pair's measured correlation, or predicted effect, in one group of slides against the other.

    Parameters
    ----------
    adata
        Spots after :func:`sagefm.tl.perturbation_overlap`.
    values
        The measured ``"correlation"`` of ligand and receptor, or the ``"effect"`` that the model predicts (share of
        spots that go up less that of spots that go down).
    n_labels
        How many pairs to name: those with the largest correlations that the model reproduces.
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
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. Filled points are pairs
    with a significant correlation of one sign in both groups; circles of them are reproduced by the model, crosses
    aren't.

    Raises
    ------
    KeyError
        If the groups have not been compared.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 5a: effects above, correlations below. The paper's axes are
    ``groups=["test", "validation"]``. Quadrants of one sign are shaded as there.

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
    check_choice("values", values, ("correlation", "effect"))
    what, stem = {"correlation": ("measured correlation", "reference_r"), "effect": ("predicted effect E", "effect")}[
        values
    ]
    columns = [f"{stem}_1", f"{stem}_2"]
    overlap = overlap_in(get_anndata(adata, table_key), key, [*columns, "agrees", "reproduced"], [])
    pairs, (one, two) = overlap["pairs"], list(overlap["params"]["groups"])
    agrees, reproduced = pairs["agrees"], pairs["reproduced"]
    ax, show = open_axes(ax, figsize or (5.0, 4.6), show)
    styles: list[tuple[str, pd.DataFrame, dict[str, Any]]] = [
        ("not significant in both", pairs[~agrees], {"marker": ".", "color": "0.75", "s": 25}),
        ("reproduced by the model", pairs[reproduced], {"color": ORANGE, "edgecolor": "k", "linewidth": 0.5, "s": 42}),
        ("not reproduced by the model", pairs[agrees & ~reproduced], {"marker": "x", "color": BLUE, "s": 42}),
    ]
    for label, part, style in styles:
        ax.scatter(part[columns[0]], part[columns[1]], label=f"{label} ({len(part)})", **style)
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlabel=f"{what}, {one}", ylabel=f"{what}, {two}")
    ax.margins(0.12)
    ax.locator_params(nbins=6)
    _shade_quadrants(ax)
    legend_below(ax)
    tidy(ax)
    size = pairs.loc[reproduced, columns].abs().sum(axis=1)
    named = pairs.loc[size.sort_values(ascending=False).index[:n_labels], columns].astype(float)
    name_points(ax, named.to_numpy(), map(arrow, named.index), beside=pairs[columns].dropna().to_numpy(dtype=float))
    return finish(ax, title, show, save, return_fig)


@fill_docstring
def perturbation_overlap(
    adata: AnnData | SpatialData,
    *,
    kind: Literal["groups", "model"] = "groups",
    key: str = _keys.PERTURB_LR,
    table_key: str = "table",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure | None:
    """Show how many pairs are significant in each group of slides and in both, or also predicted by the model.

    Parameters
    ----------
    adata
        Spots after :func:`sagefm.tl.perturbation_overlap`.
    kind
        Which sets overlap. ``"groups"``: pairs with a significant correlation in either group. ``"model"``: pairs with
        a significant correlation of one sign in both groups, and pairs whose predicted effect has that sign in both; a
        diagram each for negative and positive pairs.
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
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. Areas are proportional to
    numbers of pairs.

    Raises
    ------
    KeyError
        If the groups have not been compared.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 5b, is ``kind="model"``.

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
    check_choice("kind", kind, ("groups", "model"))
    shown = ["n_pairs", "significant_1", "significant_2", "significant_both", "agrees", "reproduced"]
    overlap = overlap_in(get_anndata(adata, table_key), key, [], shown)
    counts = {name: int(overlap["counts"][name]) for name in shown}
    ax, show = open_axes(ax, figsize or ((5.4, 4.0) if kind == "groups" else (7.4, 3.6)), show)
    if kind == "model":
        _draw_signs(ax, overlap["signs"])
        return finish(ax, title, show, save, return_fig)
    both = counts["significant_both"]
    one, two = counts["significant_1"] - both, counts["significant_2"] - both
    if one + two + both:
        _draw_circles(ax, (one, two, both), list(overlap["params"]["groups"]))
    else:
        write_instead(ax, "no pair has a significant correlation")
    lines = [
        f"of the {both} in both, {counts['agrees']} have one sign; the model reproduces {counts['reproduced']}",
        f"{counts['n_pairs'] - one - two - both} of {counts['n_pairs']} pairs are significant in neither",
    ]
    ax.set_title("\n".join(["pairs with a significant measured correlation", *lines]), fontsize="small")
    return finish(ax, title, show, save, return_fig)


def _draw_signs(ax: Axes, signs: pd.DataFrame) -> None:
    """Draw the overlap of the reference and the model, negative pairs on the left, positive ones on the right."""
    ax.set_axis_off()
    for left, sign in ((0.0, "negative"), (0.5, "positive")):
        inset = ax.inset_axes((left, 0.0, 0.48, 0.88))
        reference, model, both = (int(n) for n in signs.loc[sign, ["reference", "model", "both"]])
        if reference + model:
            _draw_circles(inset, (reference - both, model - both, both), ["reference", "model"])
        else:
            write_instead(inset, "no pair")
        inset.set_title(f"{sign} pairs: {both} of {reference} predicted", fontsize="small")


def _shade_quadrants(ax: Axes) -> None:
    """Shade where both groups have one sign."""
    from matplotlib.patches import Rectangle

    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for x, y, color in ((right, top, ORANGE), (left, bottom, BLUE)):
        ax.add_patch(Rectangle((0, 0), x, y, color=color, alpha=0.06, linewidth=0, zorder=-1))
    ax.set(xlim=(left, right), ylim=(bottom, top))


def _draw_circles(ax: Axes, sizes: tuple[int, int, int], names: list[str]) -> None:
    """Draw two circles whose areas, and that of their overlap, are the numbers of pairs."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch
    from matplotlib_venn import venn2

    venn = venn2(sizes, None, (ORANGE, BLUE), alpha=0.35, ax=ax)
    for part, hatch in (("10", "///"), ("01", "\\\\\\")):  # told apart in greyscale too
        if (patch := venn.get_patch_by_id(part)) is not None:
            patch.set_hatch(hatch)
    for text in filter(None, venn.subset_labels):  # readable on the hatching
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5})
    totals = (sizes[0] + sizes[2], sizes[1] + sizes[2])
    colors = (to_rgba(ORANGE, 0.35), to_rgba(BLUE, 0.35))
    legend_below(ax, [Patch(color=c, label=f"{name} ({n})") for c, name, n in zip(colors, names, totals, strict=True)])
