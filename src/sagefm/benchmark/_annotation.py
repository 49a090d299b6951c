"""How well labels of unseen donors are predicted from a representation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._types import Floats
from sagefm._utils import check_choice, check_whole, progress
from sagefm.benchmark._clustering import as_names
from sagefm.benchmark._groups import get_slides, get_views, split_groups
from sagefm.tl._labels import classifiers
from sagefm.tl._labels.labels import METRICS, get_labels, score_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


@fill_docstring
def evaluate_annotation(
    adata: AnnData | SpatialData,
    label_key: str,
    use_reps: str | Sequence[str],
    *,
    group_key: str = "donor",
    library_key: str | None = None,
    merge: Mapping[str, str | None] | None = None,
    classifier: classifiers.Kind | Sequence[classifiers.Kind] = ("forest", "mlp"),
    scale: classifiers.Scale = "auto",
    param_grid: Mapping[str, classifiers.Grid] | None = None,
    n_folds: int = classifiers.MAX_FOLDS,
    test_groups: Sequence[str] | None = None,
    pooled: bool = False,
    n_bootstraps: int = 30,
    rng: int = 0,
    table_key: str = "table",
) -> pd.DataFrame:
    """Predict labels of held-out donors, each in turn, from representations.

    What the classifier reads and how it is set is chosen for each held-out group by cross-validation among the groups
    that are left, so the held-out one has no say.

    Parameters
    ----------
    adata
        Labelled slides with the representations, side by side.
    {label_key}
    use_reps
        Representations in ``obsm``. A name with ``{{group}}`` stands for several, one for each held-out group, such as
        embeddings by models that were trained without it.
    group_key
        Column of ``obs`` with the groups that are held out together, ideally donors.
    library_key
        Column of ``obs`` with the slide of each spot. By default, ``group_key``.
    {merge}
    classifier
        ``"forest"``, ``"mlp"``, or both.
    {scale}
    param_grid
        Settings to choose from, as scikit-learn's ``GridSearchCV`` takes them, by classifier, such as
        ``dict(forest={{"max_depth": [10, None]}})``. By default, two of each.
    {n_folds}
    {test_groups}
    {pooled}
    n_bootstraps
        How many times to fit again on training spots drawn with replacement.
    {seed}
    {table_key}

    Returns
    -------
    Table with a row for each representation, classifier, held-out group and fit. Columns are ``representation``,
    ``classifier``, ``group``, ``bootstrap`` (0 for all training spots, then the draws), ``n_spots``, ``accuracy``,
    ``f1_macro``, ``f1_micro``, ``recall_macro``, ``precision_macro``, and the chosen ``scale`` and ``settings``.

    Raises
    ------
    KeyError
        If the labels, a representation, or a column is missing.
    ValueError
        If there are fewer than two groups with labels, or two classes, ``pooled`` lacks ``test_groups``, or the
        estimator has no such setting.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 3: four OSCC sections as ``test_groups``, ``pooled``, with 30 bootstraps.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> adata.obs["half"] = (adata.obs["array_row"] < 6).astype(str)
    >>> table = sg.benchmark.evaluate_annotation(
    ...     adata, "domain", "X_sage", group_key="half", classifier="forest", n_bootstraps=0
    ... )
    >>> table["group"].tolist()
    ['False', 'True']
    """
    kinds = as_names(classifier)
    for kind in kinds:
        check_choice("classifier", kind, classifiers.KINDS)
    check_choice("scale", scale, classifiers.SCALES)
    grids = dict(param_grid or {})
    for kind in grids:
        check_choice("param_grid", kind, classifiers.KINDS)
        classifiers.list_settings(kind, grids[kind])
    n_folds = check_whole("n_folds", n_folds, 2)
    check_whole("n_bootstraps", n_bootstraps, 0)
    seed = check_whole("rng", rng, 0)
    adata = get_anndata(adata, table_key)
    labels = get_labels(adata, label_key, merge)
    known = labels.notna().to_numpy()
    truth = np.asarray(labels[known], dtype=str)
    groups, folds = split_groups(adata, group_key, known, test_groups, pooled=pooled)
    slides = get_slides(adata, group_key, library_key)
    tasks = [(rep, kind, group) for rep in as_names(use_reps) for kind in kinds for group in folds]
    rows = []
    for rep, kind, group in progress(tasks, "Annotating", unit="fold"):
        views = get_views(adata, rep, group, slides, known, scale)
        train, test = folds[group]
        if len(np.unique(truth[train])) < 2:
            raise ValueError(f"without {group!r} there are no two classes in obs[{label_key!r}] to learn.")
        seen = {name: view[train] for name, view in views.items()}
        choice = classifiers.choose(
            *(seen, truth[train], groups[train], kind, seed), grid=grids.get(kind), n_folds=n_folds, show=False
        )
        generator = np.random.default_rng(seed)
        for bootstrap in range(n_bootstraps + 1):
            drawn = train if bootstrap == 0 else generator.choice(train, len(train))
            if len(np.unique(truth[drawn])) < 2:
                continue
            estimator = classifiers.make(kind, choice.params, seed + bootstrap)
            classifiers.fit(estimator, views[choice.scale][drawn], truth[drawn])
            rows.append(
                {
                    "representation": rep,
                    "classifier": kind,
                    "group": group,
                    "bootstrap": bootstrap,
                    "n_spots": len(test),
                    **score_labels(truth[test], estimator.predict(views[choice.scale][test])),
                    "scale": choice.scale,
                    "settings": ", ".join(f"{name}={value}" for name, value in choice.params.items()),
                }
            )
    return pd.DataFrame(rows)


def compare_representations(
    scores: pd.DataFrame, baseline: str | None = None, *, metrics: str | Sequence[str] = ("accuracy", "f1_macro")
) -> pd.DataFrame:
    """Test whether representations predict better than one of them, or than each other.

    Parameters
    ----------
    scores
        What :func:`evaluate_annotation` returned.
    baseline
        Representation to compare the others with. By default, all pairs are compared.
    metrics
        Columns to compare.

    Returns
    -------
    Table by representation, classifier and metric, with ``difference`` (mean over groups, fits on all training spots),
    ``n_groups``, ``n_ahead`` (groups in which it is above), ``pval_groups`` (Wilcoxon's signed-rank test, two-sided,
    one pair a group) and ``pval_bootstraps`` (one pair a group and draw, and the paper's test where the groups are
    pooled: draws of the same spots are no independent pairs, so this p-value is too small; NaN without draws).

    Raises
    ------
    KeyError
        If there is no such representation or column.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 3. With six groups the smallest p-value over groups is 0.03.

    Examples
    --------
    >>> import pandas as pd
    >>> import sagefm as sg
    >>> scores = pd.DataFrame(
    ...     {
    ...         "representation": ["X_sage", "X_sage", "PCA", "PCA"],
    ...         "classifier": "forest",
    ...         "group": ["A", "B", "A", "B"],
    ...         "bootstrap": 0,
    ...         "accuracy": [0.7, 0.8, 0.6, 0.9],
    ...     }
    ... )
    >>> int(sg.benchmark.compare_representations(scores, "PCA", metrics=["accuracy"]).loc[0, "n_ahead"])
    1
    """
    names = list(scores["representation"].unique())
    if baseline is not None and baseline not in names:
        raise KeyError(f"no representation {baseline!r}; there are {names}.")
    metrics = as_names(metrics)
    if missing := [metric for metric in metrics if metric not in scores]:
        raise KeyError(f"no metric {missing[0]!r}; there are {[name for name in METRICS if name in scores]}.")
    pairs = list(combinations(names, 2)) if baseline is None else [(name, baseline) for name in names]
    rows = []
    for kind in scores["classifier"].unique():
        for metric in metrics:
            table = scores[scores["classifier"] == kind].pivot_table(
                index=["group", "bootstrap"], columns="representation", values=metric
            )
            for name, other in pairs:
                if name == other or name not in table or other not in table:
                    continue
                difference = (table[name] - table[other]).dropna()
                whole = difference[difference.index.get_level_values("bootstrap") == 0].to_numpy()
                drawn = difference[difference.index.get_level_values("bootstrap") > 0].to_numpy()
                rows.append(
                    {
                        "representation": name,
                        "baseline": other,
                        "classifier": kind,
                        "metric": metric,
                        "difference": float(whole.mean()),
                        "n_groups": len(whole),
                        "n_ahead": int((whole > 0).sum()),
                        "pval_groups": _signed_rank(whole),
                        "pval_bootstraps": _signed_rank(drawn),
                    }
                )
    return pd.DataFrame(rows)


def _signed_rank(differences: Floats) -> float:
    from scipy.stats import wilcoxon

    if len(differences) < 2:
        return float("nan")
    return float(wilcoxon(differences).pvalue) if np.any(differences) else 1.0
