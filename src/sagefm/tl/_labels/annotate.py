"""Labels of spots from labelled spots."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, open_run
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._types import Array, Floats, Strings
from sagefm._utils import check_choice
from sagefm.tl._labels import classifiers
from sagefm.tl._labels.held_out import Task, predict_held_out, record_scores
from sagefm.tl._labels.labels import check_classes, get_labels, score_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

UNSURE = "unsure"


@fill_docstring
def annotate(
    adata: AnnData | SpatialData,
    label_key: str,
    *,
    use_rep: str = _keys.EMBEDDING,
    reference: AnnData | SpatialData | None = None,
    merge: Mapping[str, str | None] | None = None,
    classifier: classifiers.Kind = "forest",
    scale: classifiers.Scale = "auto",
    min_probability: float = 0.5,
    library_key: str | None = None,
    group_key: str | None = None,
    rng: int | np.random.Generator = 0,
    key_added: str = _keys.ANNOTATION,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Label every spot by a classifier of its representation, fitted on labelled spots.

    The labels are those of ``reference``, or, without one, of the spots of ``adata`` that have one. Parameters are
    chosen, and the classifier is scored, on groups (donors) that it was not fitted on.

    Parameters
    ----------
    adata
        Slide or slides to label.
    {label_key}
    {use_rep}
    reference
        Labelled slides. By default the labelled spots of ``adata``.
    {merge}
    classifier
        ``"forest"``, a random forest, or ``"mlp"``, a network of three layers.
    {scale}
    min_probability
        Spots whose most probable class is less probable than this become ``"unsure"``.
    {library_key}
    {group_key}
    {rng}
    {key_added}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obs["sage_annotation"]``
        Categorical: the most probable class, or ``"unsure"``.
    ``obsm["sage_annotation"]``
        Class probabilities, a ``DataFrame`` of shape (spots, classes). Labelled spots of ``adata`` get those of a
        classifier that their group was held out from.
    ``uns["sage_annotation"]``
        ``params``; ``tried``: settings with their scores on held-out groups; ``scores``: ``"overall"`` and by
        held-out group, accuracy, macro- and micro-F1, recall and precision of the most probable class, the share of
        spots that are sure (``share_sure``), and the accuracy among those (``accuracy_sure``). As the settings were
        chosen on the same groups, the scores are a little too good; :func:`sagefm.benchmark.evaluate_annotation` nests
        the choice. With a reference, labels in ``adata`` are what is scored, but for groups that the reference has
        too, and labels that the reference lacks count as missed; without labels in ``adata`` the scores are of the
        reference's groups, each held out (``params["scored_on"]`` says which).

    Raises
    ------
    KeyError
        If the labels, the representation, or a column is missing.
    ValueError
        If there are fewer than two classes, a class has a name that can't be saved, or the representations don't fit
        together.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 3. Scores need two labelled groups, or a reference and labels in ``adata``;
    without, a warning says so, and probabilities of labelled spots come from a classifier that has seen them.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> adata.obs["half"] = (adata.obs["array_row"] < 6).astype(str)
    >>> sg.tl.annotate(adata, "domain", group_key="half")
    >>> adata.obsm["sage_annotation"].columns.tolist()
    ['adipose', 'immune', 'stroma', 'tumor']
    """
    check_choice("classifier", classifier, classifiers.KINDS)
    check_choice("scale", scale, classifiers.SCALES)
    if not isinstance(min_probability, int | float | np.number) or not 0 <= min_probability <= 1:
        raise ValueError(f"min_probability={min_probability!r} has to lie between 0 and 1.")
    run = open_run(adata, "tl.annotate", key_added, _keys.ANNOTATION, ["obs", "obsm"], table_key=table_key, copy=copy)
    if key_added == label_key:
        raise ValueError(f"key_added={key_added!r} would overwrite the labels. Choose another one.")
    query = run.adata
    source = query if reference is None else get_anndata(reference, table_key)
    labels = get_labels(source, label_key, merge)
    classes = _get_classes(labels, label_key)
    own = None
    if source is not query and label_key in query.obs:
        own = get_labels(query, label_key, merge, strict=False)
    task = Task(query, source, labels, use_rep=use_rep, scale=scale, library_key=library_key, group_key=group_key)
    seed = int(np.random.default_rng(rng).integers(2**31))
    chosen = classifiers.choose(task.views, task.truth, task.groups, classifier, seed)
    fit = partial(classifiers.fit_probabilities, kind=classifier, params=chosen.params, seed=seed, classes=classes)
    view = {chosen.scale: task.views[chosen.scale]}
    held_out = predict_held_out(view, task.truth, task.groups, fit).get(chosen.scale)
    probability, scored = task.predict(fit, chosen.scale, held_out, own)
    metrics = partial(_score, classes=classes, min_probability=min_probability)
    scores, text = record_scores(scored, metrics, "accuracy", "accuracy")
    params = {
        "label_key": label_key,
        "use_rep": use_rep,
        "classifier": classifier,
        "scale": chosen.scale,
        "settings": {name: float(value) for name, value in chosen.params.items()},
        "min_probability": float(min_probability),
        "reference": source is not query,
        "seed": seed,
        "scored_on": None if scored is None else scored.of,
    }
    sure = probability.max(axis=1) >= min_probability
    best = np.asarray([*classes, UNSURE])[np.where(sure, probability.argmax(axis=1), len(classes))]
    logger.info(
        "Labelled %d spots with %d classes, %d unsure%s; wrote obs['%s'].",
        *(query.n_obs, len(classes), int((~sure).sum()), text, key_added),
    )
    written = {
        ("obs", key_added): pd.Categorical(best, [*classes, UNSURE]),
        ("obsm", key_added): pd.DataFrame(probability, index=query.obs_names, columns=classes),
    }
    return run.commit(written, params, tried=chosen.tried, **scores)


def _get_classes(labels: pd.Series, label_key: str) -> list[str]:
    """Names of the classes, checked."""
    classes = sorted(labels.dropna().unique())
    if len(classes) < 2:
        raise ValueError(f"obs[{label_key!r}] has {len(classes)} classes to learn from, needs two or more: {classes}.")
    if UNSURE in classes:
        raise ValueError(f"a class can't be named {UNSURE!r}. Rename it through merge.")
    check_classes(classes, "through merge")
    return classes


def _score(truth: Array, probability: Floats, *, classes: list[str], min_probability: float) -> dict[str, float]:
    """Agreement of the most probable class, over all spots and over those that are sure."""
    predicted: Strings = np.asarray(classes)[probability.argmax(axis=1)]
    sure = probability.max(axis=1) >= min_probability
    return {
        "n_spots": len(truth),
        **score_labels(truth, predicted),
        "share_sure": float(sure.mean()),
        "accuracy_sure": float((predicted == truth)[sure].mean()) if sure.any() else np.nan,
    }
