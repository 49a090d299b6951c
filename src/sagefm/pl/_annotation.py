"""Labels on the tissue: predicted beside a pathologist's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import issparse

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm.pl._spatial import draw_spots, finish, get_coordinates

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure
    from spatialdata import SpatialData


def annotation(
    adata: AnnData | SpatialData,
    label_key: str | None = None,
    *,
    merge: Mapping[str, str | None] | None = None,
    key: str = _keys.ANNOTATION,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = "table",
    show: bool = True,
    save: str | Path | None = None,
) -> Figure | None:
    """Show predicted labels on the tissue, beside known ones and how probable the predicted ones are.

    Parameters
    ----------
    adata
        One slide after :func:`sagefm.tl.annotate`; of several, pass one: ``adata[adata.obs["sample"] == "A1"]``.
    label_key
        Column of ``obs`` with known labels, such as a pathologist's.
    merge
        Class of each label, as given to :func:`sagefm.tl.annotate`.
    key
        Where :func:`sagefm.tl.annotate` wrote, its ``key_added``.
    spatial_key
        Coordinates in ``obsm``.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    show
        Show the figure; else return it.
    save
        File to write the figure to.

    Returns
    -------
    ``None``, or the figure: known labels (where ``label_key`` is given; grey where a spot has none), predicted labels
    in the same colours with unsure spots in light grey, and the probability of the most probable class.

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
    >>> figure = sg.pl.annotation(adata, "domain", show=False)
    """
    import matplotlib.pyplot as plt

    adata = get_anndata(adata, table_key)
    if key not in adata.obs or key not in adata.obsm:
        raise KeyError(f"{key!r} in adata.obs and adata.obsm is no annotation. Run sg.tl.annotate(adata, …) first.")
    if label_key is not None and label_key not in adata.obs:
        raise KeyError(f"label_key={label_key!r} not in adata.obs.")
    coordinates = get_coordinates(adata, spatial_key)
    probability = adata.obsm[key]
    classes = [str(name) for name in probability.columns]
    panels: list[tuple[str, pd.Series]] = []
    if label_key is not None:
        labels = adata.obs[label_key].astype(object)
        if merge is not None:
            classes_of = {str(label): name for label, name in merge.items()}
            labels = labels.map(lambda label: classes_of.get(str(label), str(label)) if pd.notna(label) else None)
        others = sorted(set(labels.dropna().astype(str)) - set(classes))
        known = labels.astype(str).where(labels.notna())
        panels.append((label_key, pd.Series(pd.Categorical(known, [*classes, *others]))))
    predicted = adata.obs[key].astype(str)
    panels.append(("predicted", pd.Series(pd.Categorical(predicted.where(predicted.isin(classes)), classes))))

    figure, axes = plt.subplots(
        1, len(panels) + 1, figsize=(4.9 * (len(panels) + 1), 4.0), layout="constrained", squeeze=False
    )
    for ax, (title, values) in zip(axes[0], panels, strict=False):
        draw_spots(ax, coordinates, values, title=title)
    n_unsure = int((~predicted.isin(classes)).sum())
    if n_unsure:
        axes[0, len(panels) - 1].set_xlabel(f"grey: {n_unsure} of {len(predicted)} spots unsure")
    draw_spots(
        axes[0, -1],
        coordinates,
        probability.to_numpy(dtype=float).max(axis=1),
        title="probability of the predicted class",
        vmin=1 / len(classes),
        vmax=1.0,
    )
    return finish(figure, show, save)


def composition(
    adata: AnnData | SpatialData,
    target_key: str | None = None,
    *,
    key: str = _keys.COMPOSITION,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = "table",
    show: bool = True,
    save: str | Path | None = None,
) -> Figure | None:
    """Show the likeliest class of each spot on the tissue, predicted beside known.

    Parameters
    ----------
    adata
        One slide after :func:`sagefm.tl.composition`.
    target_key
        Known likelihoods in ``obsm``.
    key
        Where :func:`sagefm.tl.composition` wrote, its ``key_added``.
    spatial_key
        Coordinates in ``obsm``.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    show
        Show the figure; else return it.
    save
        File to write the figure to.

    Returns
    -------
    ``None``, or the figure.

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
    >>> figure = sg.pl.composition(adata, "share", show=False)
    """
    import matplotlib.pyplot as plt

    adata = get_anndata(adata, table_key)
    if not isinstance(adata.obsm.get(key), pd.DataFrame):
        raise KeyError(f"{key!r} in adata.obsm is no composition. Run sg.tl.composition(adata, …) first.")
    if target_key is not None and target_key not in adata.obsm:
        raise KeyError(f"target_key={target_key!r} not in adata.obsm.")
    coordinates = get_coordinates(adata, spatial_key)
    predicted = adata.obsm[key]
    classes = [str(name) for name in predicted.columns]
    panels = [("predicted", predicted.to_numpy(dtype=float))]
    if target_key is not None:
        target = adata.obsm[target_key]
        if isinstance(target, pd.DataFrame):
            target = target.set_axis([str(name) for name in target.columns], axis=1).reindex(columns=classes)
        panels.insert(0, (target_key, np.asarray(target.toarray() if issparse(target) else target, dtype=float)))
    figure, axes = plt.subplots(1, len(panels), figsize=(5.0 * len(panels), 4.0), layout="constrained", squeeze=False)
    for ax, (title, values) in zip(axes[0], panels, strict=True):
        known = np.isfinite(values).all(axis=1)
        codes = np.where(known, np.where(np.isnan(values), -1, values).argmax(axis=1), -1)
        draw_spots(ax, coordinates, pd.Series(pd.Categorical.from_codes(codes, classes)), title=f"{title}, likeliest")
    return finish(figure, show, save)
