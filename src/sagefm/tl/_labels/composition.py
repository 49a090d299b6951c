"""Shares of classes in spots, by regression of their likelihoods."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
from scipy import sparse

from sagefm import _keys
from sagefm._anndata import get_anndata, open_run
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._stats import pearson
from sagefm._types import Floats
from sagefm._utils import check_choice, check_key, check_whole, get_device
from sagefm.tl._labels import classifiers
from sagefm.tl._labels.held_out import Task, is_known, predict_held_out, record_scores
from sagefm.tl._labels.labels import check_classes, score_labels
from sagefm.tl._labels.network import fit_network

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

T = TypeVar("T")


@fill_docstring
def composition(
    adata: AnnData | SpatialData,
    target_key: str,
    *,
    use_rep: str = _keys.EMBEDDING,
    reference: AnnData | SpatialData | None = None,
    n_layers: int = 2,
    scale: classifiers.Scale = "auto",
    n_epochs: int = 30,
    library_key: str | None = None,
    group_key: str | None = None,
    device: str = "auto",
    rng: int | np.random.Generator = 0,
    key_added: str = _keys.COMPOSITION,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Predict how likely each class is in a spot, by a small network fitted to known likelihoods.

    Parameters
    ----------
    adata
        Slide or slides to predict.
    {target_key}
    {use_rep}
    reference
        Slides to learn from. By default the spots of ``adata`` whose likelihoods are known.
    n_layers
        Layers of the network, 2 or 3.
    {scale}
    {n_epochs}
    {library_key}
    {group_key}
    {device}
    {rng}
    {key_added}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obsm["sage_composition"]``
        Likelihoods, a ``DataFrame`` of shape (spots, classes); they needn't add up to 1. Spots of ``adata`` whose
        likelihoods are known get those of a network that their group was held out from.
    ``uns["sage_composition"]``
        ``params``; ``scores``, as of :func:`sagefm.tl.annotate`: by held-out group and over all, binary cross-entropy
        (``bce``), Pearson and Spearman correlation of each class over spots (``pearson_mean``, ``pearson_median``, …)
        and of each spot over classes (``pearson_spot_mean``, …), and how well the likeliest class is found
        (``accuracy``, ``f1_macro``, …).

    Raises
    ------
    KeyError
        If the likelihoods, the representation, or a column is missing.
    ValueError
        If likelihoods are no numbers between 0 and 1, or the representations don't fit together.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 4b: networks of two and three layers with sigmoid outputs, binary cross-entropy.

    Examples
    --------
    >>> import pandas as pd
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> domains = pd.get_dummies(adata.obs["domain"], dtype=float)
    >>> adata.obsm["share"] = adata.obsp["sage_connectivities"] @ domains / 14
    >>> adata.obs["half"] = (adata.obs["array_row"] < 6).astype(str)
    >>> sg.tl.composition(adata, "share", group_key="half", n_epochs=5)
    >>> adata.obsm["sage_composition"].shape
    (144, 4)
    """
    check_choice("scale", scale, classifiers.SCALES)
    if check_whole("n_layers", n_layers, 2) > 3:
        raise ValueError(f"n_layers={n_layers} has to be 2 or 3.")
    n_epochs = check_whole("n_epochs", n_epochs, 1)
    run = open_run(adata, "tl.composition", key_added, _keys.COMPOSITION, ["obsm"], table_key=table_key, copy=copy)
    if key_added == target_key:
        raise ValueError(f"key_added={key_added!r} would overwrite the likelihoods. Choose another one.")
    query = run.adata
    source = query if reference is None else get_anndata(reference, table_key)
    targets = get_targets(source, target_key)
    if (n_known := int(is_known(targets).sum())) < 2:
        raise ValueError(f"obsm[{target_key!r}] is known for {n_known} spots, too few to learn from.")
    check_classes(targets.columns, "in that table")
    own = get_targets(query, target_key) if source is not query and target_key in query.obsm else None
    if own is not None and list(own.columns) != list(targets.columns):
        raise ValueError(f"obsm[{target_key!r}] of adata and of the reference have other classes.")
    task = Task(query, source, targets, use_rep=use_rep, scale=scale, library_key=library_key, group_key=group_key)
    seed = int(np.random.default_rng(rng).integers(2**31))
    fit = partial(fit_network, n_layers=n_layers, n_epochs=n_epochs, device=get_device(device), seed=seed)
    held_out = predict_held_out(task.views, task.truth, task.groups, fit)
    scale_used = lowest_cross_entropy(task.truth, held_out) or list(task.views)[-1]
    predicted, scored = task.predict(fit, scale_used, held_out.get(scale_used), own)
    scores, text = record_scores(scored, score_composition, "bce", "cross-entropy")
    params = {
        "target_key": target_key,
        "use_rep": use_rep,
        "n_layers": n_layers,
        "scale": scale_used,
        "n_epochs": n_epochs,
        "reference": source is not query,
        "seed": seed,
        "scored_on": None if scored is None else scored.of,
    }
    logger.info("Predicted %d classes of %d spots%s; wrote obsm['%s'].", targets.shape[1], query.n_obs, text, key_added)
    table = pd.DataFrame(predicted, index=query.obs_names, columns=targets.columns)
    return run.commit({("obsm", key_added): table}, params, **scores)


def get_targets(adata: AnnData, target_key: str) -> pd.DataFrame:
    """Likelihoods of every spot, checked; NaN where they aren't known."""
    check_key("target_key", target_key)
    if target_key not in adata.obsm:
        raise KeyError(f"target_key={target_key!r} not in adata.obsm. Put the likelihoods of the classes there.")
    found = adata.obsm[target_key]
    if not isinstance(found, pd.DataFrame):
        found = pd.DataFrame(found.toarray() if sparse.issparse(found) else np.asarray(found), index=adata.obs_names)
    found = found.set_axis([str(name) for name in found.columns], axis=1)
    if not found.columns.is_unique:
        raise ValueError(f"obsm[{target_key!r}] has several columns of one name.")
    try:
        found = found.astype(float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"obsm[{target_key!r}] has to hold numbers.") from error
    if found.shape[1] < 2 or (found < 0).any(axis=None) or (found > 1).any(axis=None):
        raise ValueError(f"obsm[{target_key!r}] has to hold likelihoods of two classes or more, between 0 and 1.")
    return found


def lowest_cross_entropy(target: Floats, held_out: Mapping[T, Floats]) -> T | None:
    """What predicts best where groups are held out; None if nothing was tried."""
    return min(held_out, key=lambda name: cross_entropy(target, held_out[name]), default=None)


def cross_entropy(truth: Floats, predicted: Floats) -> float:
    """Mean binary cross-entropy over spots and classes."""
    p = np.clip(predicted, 1e-7, 1 - 1e-7)
    return float(-(truth * np.log(p) + (1 - truth) * np.log1p(-p)).mean())


def score_composition(truth: Floats, predicted: Floats) -> dict[str, float]:
    """Agreement of likelihoods; a correlation with something constant counts 0."""
    from scipy.stats import rankdata

    scores: dict[str, float] = {"n_spots": len(truth), "bce": cross_entropy(truth, predicted)}
    for axis, of in ((0, ""), (1, "_spot")):
        ranks = rankdata(predicted, axis=axis), rankdata(truth, axis=axis)
        for name, (a, b) in (("pearson", (predicted, truth)), ("spearman", ranks)):
            r = np.nan_to_num(pearson(a, b, axis))
            scores[f"{name}{of}_mean"], scores[f"{name}{of}_median"] = float(r.mean()), float(np.median(r))
    return {**scores, **score_labels(truth.argmax(axis=1), predicted.argmax(axis=1))}
