"""Figures of in-silico perturbations.

Directions are told apart by marker and hatch besides colour, so that they survive a greyscale print.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._utils import shorten
from sagefm.pl._axes import finish, get_axes, tidy
from sagefm.pl._recorded import DOWN, RUN, UP, overlap_in, run_pairs, sign_of, table_in
from sagefm.pl._spatial import get_coordinates

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

MARKERS = "osD^vP"


def perturbation_lollipop(
    adata: AnnData | SpatialData,
    pairs: Sequence[str] | None = None,
    *,
    n_pairs: int = 30,
    key: str = _keys.PERTURB_LR,
    table_key: str = "table",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show the share of spots where each receptor goes up or down.

    A line to the right is the share that goes up, one to the left the share that goes down; what is missing to 1
    stays as it is. Markers are the slide groups where results are by library. Names of pairs have the sign
    of the reference correlation, in its colour, and a star where the verdict is that the pair responds.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.perturb_lr`.
    pairs
        Pairs to show, ``LIGAND|RECEPTOR``. By default those with the largest effect, significant ones first.
    n_pairs
        How many at most, if ``pairs`` is not given.
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
    The axes.

    Raises
    ------
    KeyError
        If there are no results, or no such pair.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 5c.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4"), ("CSF1", "CSF1R")], "sagefm-mini", n_controls=0)
    >>> ax = sg.pl.perturbation_lollipop(adata)
    """
    from matplotlib.lines import Line2D

    adata = get_anndata(adata, table_key)
    shares = ["frac_up", "frac_down"]
    results = run_pairs(table_in(adata, key, [*shares, "status", "effect", "reference_r"]))
    shown = _chosen(results, pairs, n_pairs)
    parts = {"": results.loc[shown]}
    if "libraries" in adata.uns[key]:
        libraries = table_in(adata, key, [*shares, "library", "pair"], "libraries")
        libraries = libraries.drop_duplicates(["library", "pair"])
        parts = {
            name: part.set_index("pair").reindex(shown) for name, part in libraries.groupby("library", observed=True)
        }
    ax = get_axes(ax, (5.6, 1.2 + 0.28 * len(shown) * max(1, len(parts) / 2)))
    at = np.arange(len(shown))[::-1]
    offsets = np.linspace(0.25, -0.25, len(parts)) if len(parts) > 1 else [0.0]
    for number, (part, offset) in enumerate(zip(parts.values(), offsets, strict=True)):
        marker = MARKERS[number % len(MARKERS)]
        for column, sign, color in (("frac_up", 1, UP), ("frac_down", -1, DOWN)):
            share = sign * part[column].to_numpy(dtype=float)
            ax.hlines(at + offset, 0, share, color=color, linewidth=2.2, zorder=1)
            filled = color if sign > 0 else "white"  # full is up, open is down
            ax.scatter(share, at + offset, marker=marker, s=34, color=filled, edgecolor=color, linewidth=1.4, zorder=2)
    ax.axvline(0, color="0.4", linewidth=0.8, zorder=0)
    ax.set(xlim=(-1.08, 1.08), ylim=(-0.8, len(shown) - 0.2), yticks=at, xlabel="share of spots")
    ticks = np.linspace(-1, 1, 5)
    ax.set_xticks(ticks, [f"{abs(tick):g}" for tick in ticks])
    responds = (
        results.loc[shown, "verdict"].eq("responds") if "verdict" in results else np.zeros(len(shown), dtype=bool)
    )
    reference = results.loc[shown, "reference_r"].to_numpy(dtype=float)
    labels = [
        f"{name.replace('|', ' → ')} ({sign_of(r)}){' *' if star else ''}"
        for name, r, star in zip(shown, reference, responds, strict=True)
    ]
    for label, r in zip(ax.set_yticklabels(labels), reference, strict=True):
        label.set_color("#7f3b08" if r > 0 else "#2166ac" if r < 0 else "0.4")
    ax.set_title("receptor goes down   |   receptor goes up", fontsize="medium")
    handles = []
    if len(parts) > 1:
        handles = [
            Line2D([], [], marker=MARKERS[i % len(MARKERS)], color="0.3", linestyle="", label=str(name))
            for i, name in enumerate(parts)
        ]
    unknown = ", (?) none" if np.isnan(reference).any() else ""
    handles.append(Line2D([], [], linestyle="", label=f"(+) (−): measured correlation{unknown}"))
    if responds.any():
        handles.append(Line2D([], [], linestyle="", label="*  more than controls"))
    _legend_outside(ax, handles)
    tidy(ax, grid="x")
    return finish(ax, save)


def perturbation_scatter(
    adata: AnnData | SpatialData,
    *,
    n_labels: int = 10,
    key: str = _keys.PERTURB_LR,
    table_key: str = "table",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show each pair's measured correlation in one group of slides against that in the other.

    Parameters
    ----------
    adata
        Spots after :func:`sagefm.tl.perturbation_overlap`.
    n_labels
        How many pairs to name: those with the largest correlations that the model reproduces.
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
    The axes. Filled points are pairs with a significant correlation of one sign in both groups; circles of them
    are reproduced by the model, crosses aren't.

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
    >>> ax = sg.pl.perturbation_scatter(adata)
    """
    adata = get_anndata(adata, table_key)
    overlap = overlap_in(adata, key, ["reference_r_1", "reference_r_2", "agrees", "reproduced"], [])
    pairs, (one, two) = overlap["pairs"], list(overlap["params"]["groups"])
    ax = get_axes(ax, (5.0, 4.6))
    styles: dict[str, tuple[Any, dict[str, Any]]] = {
        "not significant in both": (~pairs["agrees"], {"marker": ".", "color": "0.75", "s": 25}),
        "reproduced": (pairs["reproduced"], {"marker": "o", "color": UP, "edgecolor": "k", "linewidth": 0.5, "s": 42}),
        "not reproduced": (pairs["agrees"] & ~pairs["reproduced"], {"marker": "x", "color": "#2166ac", "s": 42}),
    }
    for label, (members, style) in styles.items():
        part = pairs[members]
        ax.scatter(part["reference_r_1"], part["reference_r_2"], label=f"{label} ({len(part)})", **style)
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    size = (pairs["reference_r_1"].abs() + pairs["reference_r_2"].abs())[pairs["reproduced"]]
    for name in size.sort_values(ascending=False).index[:n_labels]:
        place = pairs.loc[name, ["reference_r_1", "reference_r_2"]].to_numpy(dtype=float)
        text = name.replace("|", "–")
        ax.annotate(text, place, xytext=(5, 3), textcoords="offset points", fontsize="x-small")
    ax.set(xlabel=f"measured correlation, {one}", ylabel=f"measured correlation, {two}")
    ax.margins(0.12)
    ax.legend(frameon=False, fontsize="small", title="model")
    tidy(ax)
    return finish(ax, save)


def perturbation_overlap(
    adata: AnnData | SpatialData,
    *,
    key: str = _keys.PERTURB_LR,
    table_key: str = "table",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show how many pairs are significant in each group of slides, in both, and reproduced by the model.

    Parameters
    ----------
    adata
        Spots after :func:`sagefm.tl.perturbation_overlap`.
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
    The axes, with two circles of a Venn diagram: pairs with a significant measured correlation.

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
    >>> ax = sg.pl.perturbation_overlap(adata)
    """
    from matplotlib.patches import Circle

    adata = get_anndata(adata, table_key)
    shown = ["n_pairs", "significant_1", "significant_2", "significant_both", "agrees", "reproduced"]
    overlap = overlap_in(adata, key, [], shown)
    counts, names = overlap["counts"], list(overlap["params"]["groups"])
    ax = get_axes(ax, (5.4, 4.0))
    both = int(counts["significant_both"])
    for x, color, hatch in ((-0.55, UP, "///"), (0.55, "#2166ac", "\\\\\\")):
        ax.add_patch(Circle((x, 0), 1.0, facecolor=(*_rgb(color), 0.25), edgecolor=color, linewidth=1.5))
        ax.add_patch(Circle((x, 0), 1.0, fill=False, edgecolor=(*_rgb(color), 0.25), hatch=hatch, linewidth=0))
    only = [int(counts[f"significant_{i}"]) - both for i in (1, 2)]
    box = {"facecolor": "white", "edgecolor": "none", "pad": 2.0, "alpha": 0.85}
    ax.text(-1.05, 0, str(only[0]), ha="center", va="center", fontsize="x-large", bbox=box)
    ax.text(1.05, 0, str(only[1]), ha="center", va="center", fontsize="x-large", bbox=box)
    inside = f"{both}\n\nof one sign {int(counts['agrees'])}\nreproduced {int(counts['reproduced'])}"
    ax.text(0, 0, inside, ha="center", va="center", fontsize="medium", bbox=box)
    for x, name in zip((-0.75, 0.75), names, strict=True):
        ax.text(x, 1.08, name, ha="center", va="bottom")
    rest = int(counts["n_pairs"]) - only[0] - only[1] - both
    ax.text(0, -1.12, f"{rest} of {int(counts['n_pairs'])} pairs in neither", ha="center", va="top", color="0.35")
    ax.set(xlim=(-1.7, 1.7), ylim=(-1.4, 1.4), aspect="equal")
    ax.set_title("pairs with a significant measured correlation", fontsize="medium")
    ax.axis("off")
    return finish(ax, save)


def dose_response(
    adata: AnnData | SpatialData,
    pairs: Sequence[str] | None = None,
    *,
    n_pairs: int = 6,
    key: str = _keys.PERTURB_LR,
    table_key: str = "table",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show the mean predicted receptor at every level of the ligand.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.perturb_lr` with ``n_levels`` above 2.
    pairs
        Pairs to show, ``LIGAND|RECEPTOR``. By default those with the largest mean change.
    n_pairs
        How many at most, if ``pairs`` is not given.
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
    The axes. Changes are from the lowest level, so that receptors of any abundance share the axis.

    Raises
    ------
    KeyError
        If there are no levels, or no such pair.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], "sagefm-mini", n_controls=0, n_levels=5)
    >>> ax = sg.pl.dose_response(adata)
    """
    adata = get_anndata(adata, table_key)
    results = run_pairs(table_in(adata, key, ["status", "mean_delta"]))
    doses = table_in(adata, key, ["pair", "level", "dose", "mean"], "doses")
    shown = _chosen(results, pairs, n_pairs, by="mean_delta")
    if lacking := [name for name in shown if not (doses["pair"] == name).any()]:
        raise KeyError(f"there are no doses of {shorten(lacking)}. Run sg.tl.perturb_lr again.")
    ax = get_axes(ax, (5.4, 3.8))
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    grey = np.linspace(0.0, 0.75, max(len(shown), 2))
    for number, name in enumerate(shown):
        part = doses[doses["pair"] == name].sort_values("level")
        change = part["mean"].to_numpy() - part["mean"].iloc[0]
        color = _viridis(grey[number])
        marker = MARKERS[number % len(MARKERS)]
        ax.plot(part["dose"], change, marker=marker, color=color, label=name.replace("|", " → "))
    ax.set(xlabel="ligand in the neighbours, log1p counts", ylabel="change of the predicted receptor")
    _legend_outside(ax, ax.get_legend_handles_labels()[0])
    tidy(ax, grid="y")
    return finish(ax, save)


def perturbation_spatial(
    adata: AnnData | SpatialData,
    pair: str,
    *,
    key: str = _keys.PERTURB_LR,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = "table",
    ax: Axes | None = None,
    save: str | Path | None = None,
    **kwargs: Any,
) -> Axes:
    """Show the response of every spot on the tissue, through :func:`squidpy.pl.spatial_scatter`.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.perturb_lr` with ``store_spots=True``, or :func:`sagefm.tl.gene_sensitivity`.
    pair
        Column of ``obsm[key]``, ``LIGAND|RECEPTOR``.
    key
        Where the results are.
    spatial_key
        Coordinates in ``obsm``.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    ax
        Axes to draw into; new ones by default.
    save
        File to write the figure to.
    kwargs
        More options of :func:`squidpy.pl.spatial_scatter`, such as ``library_id``.

    Returns
    -------
    The axes. Colours are centred on no change.

    Raises
    ------
    KeyError
        If responses by spot are missing, or no such pair is among them.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], "sagefm-mini", n_controls=0, store_spots=True)
    >>> ax = sg.pl.perturbation_spatial(adata, "CXCL12|CXCR4")
    """
    import squidpy as sq
    from anndata import AnnData

    adata = get_anndata(adata, table_key)
    table = adata.obsm.get(key)
    if not isinstance(table, pd.DataFrame):
        run = RUN.get(key, RUN[_keys.PERTURB_LR]).replace("...", "..., store_spots=True")
        raise KeyError(f"no table in adata.obsm[{key!r}]. Run {run} first.")
    if pair not in table:
        raise KeyError(f"no pair {pair!r} in adata.obsm[{key!r}]; it has {shorten(table.columns)}.")
    coordinates = get_coordinates(adata, spatial_key)
    # A small object of its own, so that the slide isn't touched.
    title = pair.replace("|", " → ")
    drawn = AnnData(obs=table[[pair]].rename(columns={pair: title}).astype(float))
    drawn.obsm[spatial_key] = coordinates
    if "spatial" in adata.uns:
        drawn.uns["spatial"] = adata.uns["spatial"]
    else:
        kwargs.setdefault("shape", None)
    if "library_key" not in kwargs:
        if kwargs.get("shape", "") is None:
            kwargs.setdefault("library_id", "")  # squidpy's own value where there is none; it would warn
    else:
        libraries = list(dict.fromkeys(adata.obs[kwargs["library_key"]]))
        named = kwargs.get("library_id")
        if len(libraries) > 1 and (named is None or (not isinstance(named, str) and len(named) != 1)):
            raise ValueError(f"one slide at a time: set library_id to one of {libraries}.")
        drawn.obs[kwargs["library_key"]] = adata.obs[kwargs["library_key"]].to_numpy()
    largest = float(np.abs(drawn.obs[title]).max()) or 1.0
    ax = get_axes(ax, (5.2, 4.4))
    options: dict[str, Any] = {
        "cmap": "PuOr_r",
        "vmin": -largest,
        "vmax": largest,
        "size": _point_size(drawn, spatial_key),
    }
    if kwargs.get("shape", "circle") is not None:
        options.pop("size")
    sq.pl.spatial_scatter(drawn, color=title, spatial_key=spatial_key, ax=ax, **{**options, **kwargs})
    ax.set(xlabel="", ylabel="")
    return finish(ax, save)


def _chosen(results: pd.DataFrame, pairs: Sequence[str] | None, n_pairs: int, by: str = "effect") -> list[str]:
    """Names of the pairs to show."""
    if pairs is not None:
        names = [pairs] if isinstance(pairs, str) else list(pairs)
        if unknown := [name for name in names if name not in results.index]:
            raise KeyError(f"no results of {unknown[0]!r}; there are those of {shorten(results.index)}.")
        return names
    order = results.assign(_size=results[by].abs(), _p=results["padj"].fillna(1.0) if "padj" in results else 1.0)
    order["_p"] = order["_p"].ge(0.05)
    top = order.sort_values(["_p", "_size"], ascending=[True, False], kind="stable").index[:n_pairs]
    return results.loc[top].sort_values(by, ascending=False, kind="stable").index.tolist()


def _legend_outside(ax: Axes, handles: Sequence[Any]) -> None:
    ax.legend(handles=handles, frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _rgb(color: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def _viridis(value: float) -> Any:
    import matplotlib as mpl

    return mpl.colormaps["viridis"](value)


def _point_size(adata: AnnData, spatial_key: str) -> float:
    """Size of points that nearly touch on axes of the default size."""
    extent = np.ptp(adata.obsm[spatial_key][:, :2], axis=0).max() or 1.0
    spacing = extent / np.sqrt(max(adata.n_obs, 1))
    return float((0.9 * 280 * spacing / extent) ** 2)
