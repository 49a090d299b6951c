"""Labels of spots from labelled spots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import check_free, get_anndata
from sagefm._settings import logger
from sagefm._utils import check_choice
from sagefm.tl._labels import classifiers
from sagefm.tl._labels.held_out import Scored, check_same_model, in_query, in_reference
from sagefm.tl._labels.labels import check_classes, get_labels, score_labels
from sagefm.tl._points import get_column, get_points

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

UNSURE = "unsure"


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
    label_key
        Column of ``obs`` with the labels, missing where a spot has none.
    use_rep
        Representation in ``obsm``, of both objects and from the same model.
    reference
        Labelled slides. By default the labelled spots of ``adata``.
    merge
        Class of each label, such as ``{"invasive cancer": "tumour", "undetermined": None}``; None leaves spots out.
        Labels that it doesn't name stay as they are.
    classifier
        ``"forest"``, a random forest, or ``"mlp"``, a network of three layers.
    scale
        ``"slide"`` standardises the representation within each slide, which takes what only tells slides apart, such
        as depth; ``"none"`` leaves it; ``"auto"`` takes what predicts held-out groups better (``"slide"`` where there
        is one group).
    min_probability
        Spots whose most probable class is less probable than this become ``"unsure"``.
    library_key
        Column of ``obs`` with the slide of each spot; each object is one slide by default.
    group_key
        Column of ``obs`` with what is held out together, best the donor; ``library_key`` by default.
    rng
        Seed or generator.
    key_added
        Where the annotation goes.
    table_key
        Table to use where ``adata`` or ``reference`` is a ``SpatialData``.
    copy
        Return a copy instead of writing in place.

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
    adata = get_anndata(adata, table_key, copy=copy)
    check_free(adata, key_added, _keys.ANNOTATION, ["obs", "obsm"], "tl.annotate")
    if key_added == label_key:
        raise ValueError(f"key_added={key_added!r} would overwrite the labels. Choose another one.")
    source = adata if reference is None else get_anndata(reference, table_key)
    labels = get_labels(source, label_key, merge)
    known = labels.notna().to_numpy()
    classes = sorted(labels[known].unique())
    if len(classes) < 2:
        raise ValueError(f"obs[{label_key!r}] has {len(classes)} classes to learn from, needs two or more: {classes}.")
    if UNSURE in classes:
        raise ValueError(f"a class can't be named {UNSURE!r}. Rename it through merge.")
    check_classes(classes, "through merge")
    views = classifiers.views(get_points(source, use_rep), get_column(source, "library_key", library_key), scale)
    key = group_key or library_key
    groups = get_column(source, "group_key", key, known)
    target = np.asarray(labels[known], dtype=str)
    known_views = {name: points[known] for name, points in views.items()}
    seed = int(np.random.default_rng(rng).integers(2**31))
    query = views
    if source is not adata:
        points = get_points(adata, use_rep)
        check_same_model(source, adata, use_rep)
        query = classifiers.views(points, get_column(adata, "library_key", library_key), scale)

    choice = classifiers.choose(known_views, target, groups, classifier, seed)
    estimator = classifiers.fit(classifiers.make(classifier, choice.params, seed), known_views[choice.scale], target)
    found = classifiers.probabilities(estimator, query[choice.scale], classes)
    held_out = _held_out(known_views[choice.scale], target, groups, classes, classifier, choice, seed)
    if source is adata:
        if held_out is not None:
            found[known] = held_out
        scored = in_reference(target, held_out, groups, "adata")
    else:
        scored = None
        if label_key in adata.obs:
            own = get_labels(adata, label_key, merge, strict=False)
            scored = in_query(adata, own.notna().to_numpy(), own.to_numpy(), found, key, groups)
        scored = scored or in_reference(target, held_out, groups, "reference")
    if scored is None:
        logger.warning(
            "Nothing is held out: all labels come from one group, so how good the annotation is can't be told. "
            "Set group_key to a column with two groups or more, such as donors."
        )
    sure = found.max(axis=1) >= min_probability
    best = np.asarray([*classes, UNSURE])[np.where(sure, found.argmax(axis=1), len(classes))]
    params = {
        "function": "tl.annotate",
        "label_key": label_key,
        "use_rep": use_rep,
        "classifier": classifier,
        "scale": choice.scale,
        "settings": {name: float(value) for name, value in choice.params.items()},
        "min_probability": float(min_probability),
        "reference": source is not adata,
        "seed": seed,
    }
    recorded: dict[str, Any] = {"params": params, "tried": choice.tried.set_axis(choice.tried.index.astype(str))}
    accuracy = ""
    if scored is not None:
        recorded["scores"] = _score(scored, classes, float(min_probability))
        params["scored_on"] = scored.of
        accuracy = f" (accuracy {recorded['scores']['accuracy'].iloc[0]:.2f} where groups of {scored.of} are held out)"
    adata.obs[key_added] = pd.Categorical(best, [*classes, UNSURE])
    adata.obsm[key_added] = pd.DataFrame(found, index=adata.obs_names, columns=classes)
    adata.uns[key_added] = recorded
    logger.info(
        "Labelled %d spots with %d classes, %d unsure%s; wrote obs['%s'].",
        *(adata.n_obs, len(classes), int((~sure).sum())),
        accuracy,
        key_added,
    )
    return adata if copy else None


def _held_out(
    points: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    classes: list[str],
    kind: str,
    choice: classifiers.Choice,
    seed: int,
) -> np.ndarray | None:
    """Probabilities of every labelled spot from a classifier that hasn't seen its group."""
    splits = classifiers.folds(groups)
    if not splits:
        return None
    found = np.zeros((len(labels), len(classes)))
    for train, held_out in splits:
        estimator = classifiers.fit(classifiers.make(kind, choice.params, seed), points[train], labels[train])
        found[held_out] = classifiers.probabilities(estimator, points[held_out], classes)
    return found


def _score(scored: Scored, classes: list[str], min_probability: float) -> pd.DataFrame:
    """Scores over all spots and by group."""
    probability = scored.predicted
    predicted, sure = np.asarray(classes)[probability.argmax(axis=1)], probability.max(axis=1) >= min_probability
    right = predicted == scored.truth
    names, rows = [], []
    for name, part in scored.parts():
        names.append(name)
        rows.append(
            {
                "n_spots": int(part.sum()),
                **score_labels(scored.truth[part], predicted[part]),
                "share_sure": float(sure[part].mean()),
                "accuracy_sure": float(right[part & sure].mean()) if (part & sure).any() else np.nan,
            }
        )
    return pd.DataFrame(rows, index=pd.Index(names, name="group"))
