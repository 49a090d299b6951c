"""How well likelihoods of classes in unseen donors are predicted from a representation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._utils import check_choice, check_whole, get_device, progress
from sagefm.benchmark._clustering import as_names
from sagefm.benchmark._groups import get_slides, get_views, split_groups
from sagefm.tl._labels import classifiers
from sagefm.tl._labels import composition as compositions
from sagefm.tl._labels.held_out import predict_held_out
from sagefm.tl._labels.network import N_UNITS, fit_network

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


@fill_docstring
def evaluate_composition(
    adata: AnnData | SpatialData,
    target_key: str,
    use_reps: str | Sequence[str],
    *,
    group_key: str = "donor",
    library_key: str | None = None,
    n_layers: int | Sequence[int] = (2, 3),
    n_units: int | Sequence[int] = N_UNITS,
    scale: classifiers.Scale = "auto",
    n_folds: int = classifiers.MAX_FOLDS,
    test_groups: Sequence[str] | None = None,
    pooled: bool = False,
    n_epochs: int = 30,
    device: str = "auto",
    rng: int = 0,
    table_key: str = "table",
) -> pd.DataFrame:
    """Predict class likelihoods of held-out donors, each in turn, from representations.

    Parameters
    ----------
    adata
        Slides with the representations, side by side.
    {target_key}
    use_reps
        Representations in ``obsm``, as of :func:`evaluate_annotation`.
    group_key
        Column of ``obs`` with the groups that are held out together, ideally donors.
    library_key
        Column of ``obs`` with the slide of each spot. By default, ``group_key``.
    n_layers
        Layers of the network; 2, 3, or both.
    n_units
        Units of its hidden layers, one number or several to choose from.
    {scale}
    {n_folds}
    {test_groups}
    {pooled}
    {n_epochs}
    {device}
    {seed}
    {table_key}

    Returns
    -------
    Table with a row for each representation, depth and held-out group. Columns are ``representation``, ``n_layers``,
    ``group``, the scores of :func:`sagefm.tl.composition`, and the chosen ``scale`` and ``n_units``. ``n_layers`` 0 is
    the mean of the training spots, which reads nothing of the spot.

    Raises
    ------
    KeyError
        If the likelihoods, a representation, or a column is missing.
    ValueError
        If there are fewer than two groups, the targets are no likelihoods, or ``pooled`` lacks ``test_groups``.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 4b.

    Examples
    --------
    >>> import pandas as pd
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> adata.obsm["share"] = adata.obsp["sage_connectivities"] @ pd.get_dummies(adata.obs["domain"], dtype=float) / 14
    >>> adata.obs["half"] = (adata.obs["array_row"] < 6).astype(str)
    >>> table = sg.benchmark.evaluate_composition(adata, "share", "X_sage", group_key="half", n_layers=2, n_epochs=5)
    >>> table["n_layers"].tolist()
    [0, 2, 0, 2]
    """
    depths = [check_whole("n_layers", n, 2) for n in (n_layers if isinstance(n_layers, Sequence) else [n_layers])]
    widths = [check_whole("n_units", n, 1) for n in (n_units if isinstance(n_units, Sequence) else [n_units])]
    n_folds = check_whole("n_folds", n_folds, 2)
    if not depths or max(depths) > 3:
        raise ValueError(f"n_layers={n_layers} has to be 2, 3 or both.")
    if not widths:
        raise ValueError("n_units is empty.")
    n_epochs = check_whole("n_epochs", n_epochs, 1)
    check_choice("scale", scale, classifiers.SCALES)
    adata = get_anndata(adata, table_key)
    targets = compositions.get_targets(adata, target_key)
    known = targets.notna().all(axis=1).to_numpy()
    truth = targets[known].to_numpy()
    groups, folds = split_groups(adata, group_key, known, test_groups, pooled=pooled)
    slides = get_slides(adata, group_key, library_key)
    rows = []
    tasks = [(rep, group) for rep in as_names(use_reps) for group in folds]
    for rep, group in progress(tasks, "Regressing", unit="fold"):
        views = get_views(adata, rep, group, slides, known, scale)
        train, test = folds[group]
        mean = np.broadcast_to(truth[train].mean(axis=0), truth[test].shape)
        start = {"representation": rep, "group": group}
        rows.append({**start, "n_layers": 0, **compositions.score_composition(truth[test], mean), "scale": "none"})
        seen = {name: view[train] for name, view in views.items()}
        for depth in depths:
            fit = partial(fit_network, n_layers=depth, n_epochs=n_epochs, device=get_device(device), seed=rng)
            scale_used, width = list(seen)[-1], widths[0]
            if len(seen) * len(widths) > 1:
                tried = {
                    (name, width): predicted
                    for width in widths
                    for name, predicted in predict_held_out(
                        seen, truth[train], groups[train], partial(fit, n_units=width), n_folds
                    ).items()
                }
                scale_used, width = compositions.lowest_cross_entropy(truth[train], tried) or (scale_used, width)
            found = fit(seen[scale_used], truth[train], n_units=width)(views[scale_used][test])
            scores = compositions.score_composition(truth[test], found)
            rows.append({**start, "n_layers": depth, **scores, "scale": scale_used, "n_units": width})
    return pd.DataFrame(rows)
