"""Labels of spots from labelled spots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, open_run
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._types import Array, Floats, Strings
from sagefm._utils import check_choice, shorten
from sagefm.tl._labels import classifiers
from sagefm.tl._labels.held_out import HeldOut, Task, predict_held_out, record_scores
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
    min_probability: float = 0.7,
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
        Spots whose most probable class is right with less confidence than this become ``"unsure"``.
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
    ``obs["sage_annotation_confidence"]``
        Chance that the most probable class is right, learned from its probability on held-out groups (logistic
        regression, Platt's scaling); the probability itself where only one group is labelled. Of another
        ``key_added``, ``obs[f"{{key_added}}_confidence"]``.
    ``obsm["sage_annotation"]``
        Class probabilities, a ``DataFrame`` of shape (spots, classes). Labelled spots of ``adata`` get those of a
        classifier that their group was held out from.
    ``uns["sage_annotation"]``
        ``params``; ``tried``: settings with their scores on held-out groups; ``scores``: ``"overall"`` and by
        held-out group, accuracy, macro- and micro-F1, recall and precision of the most probable class, beside the
        accuracy of naming the ``majority`` class of the other groups; the share of spots that are sure
        (``share_sure``), and the accuracy among those and the others (``accuracy_sure``, ``accuracy_unsure``). A
        group's confidence is learned from the other groups. As the settings were chosen on the same groups, the scores
        are a little too good; :func:`sagefm.benchmark.evaluate_annotation` nests the choice. With a reference, labels
        in ``adata`` are what is scored, but for groups that the reference has too; labels that the reference lacks are
        counted apart (``n_lacking``), and a warning names them. Without labels in ``adata`` the scores are of the
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
    confidence_key = _keys.CONFIDENCE.format(key_added)
    run = open_run(
        *(adata, "tl.annotate", key_added, _keys.ANNOTATION, ["obs", "obsm"], [("obs", confidence_key)]),
        table_key=table_key,
        copy=copy,
    )
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
    confidence, of_scored = _confidence(task, probability, held_out, scored, classes)
    metrics = partial(_score, classes=classes, min_probability=min_probability)
    if scored is not None:
        scored = replace(scored, predicted=np.column_stack([scored.predicted, *of_scored]))
    scores, text = record_scores(scored, metrics, "accuracy", "accuracy")
    _report_lacking(scored, classes)
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
    sure = confidence >= min_probability
    best = np.asarray([*classes, UNSURE])[np.where(sure, probability.argmax(axis=1), len(classes))]
    logger.info(
        "Labelled %d spots with %d classes, %d unsure%s; wrote obs['%s'].",
        *(query.n_obs, len(classes), int((~sure).sum()), text, key_added),
    )
    written = {
        ("obs", key_added): pd.Categorical(best, [*classes, UNSURE]),
        ("obs", confidence_key): confidence,
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


def _confidence(
    task: Task, probability: Floats, held_out: Floats | None, scored: HeldOut | None, classes: list[str]
) -> tuple[Floats, list[Floats]]:
    """Confidence in every spot; and, of those that are scored, theirs and the class that is most frequent elsewhere.

    Those of a group are learned from the others.
    """
    codes = np.array([classes.index(name) for name in task.truth])
    if held_out is None:
        tops = [np.empty(0) if scored is None else scored.predicted.max(axis=1)]
        return probability.max(axis=1), [*tops, np.full(len(tops[0]), float(np.bincount(codes).argmax()))]
    right = held_out.argmax(axis=1) == codes
    own, majority = np.empty(len(codes)), np.empty(len(codes))
    for group in np.unique(task.groups):
        here = task.groups == group
        own[here] = classifiers.fit_confidence(held_out[~here], right[~here])(held_out[here])
        majority[here] = np.bincount(codes[~here]).argmax()
    learned = classifiers.fit_confidence(held_out, right)
    confidence = learned(probability)
    if task.source is task.adata:
        confidence[task.known] = own
    if scored is None or scored.predicted is held_out:
        return confidence, [own, majority]
    return confidence, [learned(scored.predicted), np.full(len(scored.truth), float(np.bincount(codes).argmax()))]


def _score(truth: Array, predicted: Floats, *, classes: list[str], min_probability: float) -> dict[str, float]:
    """Agreement of the most probable class, by whether spots are sure, and of the class most frequent elsewhere."""
    known = np.isin(truth, classes)
    labels, names = truth[known], np.asarray(classes)
    *probability, confidence, majority = predicted[known].T
    if not known.any():
        return {"n_spots": 0, "n_lacking": len(truth)}
    best: Strings = names[np.argmax(probability, axis=0)]
    right, sure = best == labels, confidence >= min_probability
    return {
        "n_spots": int(known.sum()),
        "n_lacking": int((~known).sum()),
        **score_labels(labels, best),
        "majority": float((names[majority.astype(int)] == labels).mean()),
        "share_sure": float(sure.mean()),
        "accuracy_sure": float(right[sure].mean()) if sure.any() else np.nan,
        "accuracy_unsure": float(right[~sure].mean()) if not sure.all() else np.nan,
    }


def _report_lacking(scored: HeldOut | None, classes: list[str]) -> None:
    """Name the labels that couldn't be predicted, since the reference lacks them."""
    lacking = [] if scored is None else sorted(set(scored.truth.tolist()) - set(classes))
    if scored is not None and lacking:
        logger.warning(
            "The reference lacks %s, so the %d spots of adata with these labels count in no score.",
            *(shorten(lacking), int(np.isin(scored.truth, lacking).sum())),
        )
