"""Labels on the tissue: predicted beside a pathologist's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm.pl._axes import finish, open_grid
from sagefm.pl._spatial import draw_map, get_slides, stored_colors
from sagefm.pl._tables import get_spot_table

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

PANEL = (4.9, 4.0)
SURE = "probability of the predicted class"


@fill_docstring
def annotation(
    adata: AnnData | SpatialData,
    label_key: str | None = None,
    *,
    merge: Mapping[str, str | None] | None = None,
    key: str = _keys.ANNOTATION,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    spatial_key: str = _keys.SPATIAL,
    palette: str | Sequence[str] | None = None,
    table_key: str = "table",
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
    **kwargs: Any,
) -> list[Axes] | Figure | None:
    """Show predicted labels on the tissue, beside known ones and how probable the predicted ones are.

    Parameters
    ----------
    adata
        Slide, or several, after :func:`sagefm.tl.annotate`. There is a row of panels for each slide.
    label_key
        Column of ``obs`` with known labels, such as a pathologist's.
    {merge}
    {key}
    {library_key}
    {library_id}
    {spatial_key}
    {palette}
    {table_key}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}
    {map_options}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. The panels are known
    labels (where ``label_key`` is given; grey where a spot has none), predicted labels in the same colors with
    unsure spots in grey, and the probability of the most probable class.

    Raises
    ------
    KeyError
        If there is no annotation, or the labels or coordinates are missing.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 3.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> adata.obs["half"] = (adata.obs["array_row"] < 6).astype(str)
    >>> sg.tl.annotate(adata, "domain", group_key="half")
    >>> axes = sg.pl.annotation(adata, "domain", show=False)
    """
    adata = get_anndata(adata, table_key)
    run = "sg.tl.annotate(adata, ...)"
    if key not in adata.obs:
        raise KeyError(f"{key!r} not in adata.obs. Run {_keys.advise(run, key)} first.")
    probability = get_spot_table(adata, key, run)
    if label_key is not None and label_key not in adata.obs:
        raise KeyError(f"label_key={label_key!r} not in adata.obs.")
    slides = get_slides(adata, spatial_key, library_key, library_id)
    classes = [str(name) for name in probability.columns]
    predicted = adata.obs[key].astype(str)
    panels = [("predicted", "unsure", pd.Series(pd.Categorical(predicted.where(predicted.isin(classes)), classes)))]
    if label_key is not None:
        panels.insert(0, (label_key, "no label", _known(adata.obs[label_key], merge, classes)))
    highest = pd.Series(probability.to_numpy(dtype=float).max(axis=1))

    colors = stored_colors(adata, key) if palette is None else palette
    rows = open_grid(len(slides), len(panels) + 1, PANEL, figsize)
    for axes, slide in zip(rows, slides, strict=True):
        for ax, (what, missing, groups) in zip(axes, panels, strict=False):
            note = f"{missing} ({groups.iloc[slide.rows].isna().sum()} spots)"
            draw_map(ax, slide, groups, title=what, colors=colors, missing=note, **kwargs)
        draw_map(axes[-1], slide, highest, title=SURE, limits=(1 / len(classes), 1.0), **kwargs)
    return finish([ax for axes in rows for ax in axes], title, show, save, return_fig)


@fill_docstring
def composition(
    adata: AnnData | SpatialData,
    target_key: str | None = None,
    *,
    key: str = _keys.COMPOSITION,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    spatial_key: str = _keys.SPATIAL,
    palette: str | Sequence[str] | None = None,
    table_key: str = "table",
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
    **kwargs: Any,
) -> list[Axes] | Figure | None:
    """Show the likeliest class of each spot on the tissue, predicted beside known.

    Parameters
    ----------
    adata
        Slide, or several, after :func:`sagefm.tl.composition`. There is a row of panels for each slide.
    target_key
        Known likelihoods in ``obsm``.
    {key}
    {library_key}
    {library_id}
    {spatial_key}
    {palette}
    {table_key}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}
    {map_options}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. The panels are the known
    (where ``target_key`` is given) and the predicted classes.

    Raises
    ------
    KeyError
        If there is no prediction, or the likelihoods or coordinates are missing.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 4c.

    Examples
    --------
    >>> import pandas as pd
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> adata.obsm["share"] = adata.obsp["sage_connectivities"] @ pd.get_dummies(adata.obs["domain"], dtype=float) / 14
    >>> sg.tl.composition(adata, "share", n_epochs=5)
    >>> axes = sg.pl.composition(adata, "share", show=False)
    """
    adata = get_anndata(adata, table_key)
    predicted = get_spot_table(adata, key, "sg.tl.composition(adata, ...)")
    if target_key is not None and target_key not in adata.obsm:
        raise KeyError(f"target_key={target_key!r} not in adata.obsm.")
    slides = get_slides(adata, spatial_key, library_key, library_id)
    classes = [str(name) for name in predicted.columns]
    panels = [("predicted", _likeliest(predicted, classes))]
    if target_key is not None:
        panels.insert(0, (target_key, _likeliest(adata.obsm[target_key], classes)))
    colors = stored_colors(adata, key) if palette is None else palette
    rows = open_grid(len(slides), len(panels), PANEL, figsize)
    for axes, slide in zip(rows, slides, strict=True):
        for ax, (what, groups) in zip(axes, panels, strict=True):
            draw_map(ax, slide, groups, title=f"{what}, likeliest", colors=colors, **kwargs)
    return finish([ax for axes in rows for ax in axes], title, show, save, return_fig)


def _known(labels: pd.Series, merge: Mapping[str, str | None] | None, classes: list[str]) -> pd.Series:
    """Labels as classes, those that are no class last, so that classes have the colors of the predicted ones."""
    labels = labels.astype(object)
    if merge is not None:
        classes_of = {str(label): name for label, name in merge.items()}
        labels = labels.map(lambda label: classes_of.get(str(label), str(label)) if pd.notna(label) else None)
    known = labels.astype(str).where(labels.notna())
    return pd.Series(pd.Categorical(known, [*classes, *sorted(set(known.dropna()) - set(classes))]))


def _likeliest(likelihoods: Any, classes: list[str]) -> pd.Series:
    """Likeliest class of each spot; none where a likelihood is missing."""
    if isinstance(likelihoods, pd.DataFrame):
        named = likelihoods.set_axis([str(name) for name in likelihoods.columns], axis=1)
        likelihoods = named.reindex(columns=classes)
    values = np.asarray(likelihoods.toarray() if issparse(likelihoods) else likelihoods, dtype=float)
    known = np.isfinite(values).all(axis=1)
    codes = np.where(known, np.where(known[:, None], values, 0).argmax(axis=1), -1)
    return pd.Series(pd.Categorical.from_codes(codes, classes))
