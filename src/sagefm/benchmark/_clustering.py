"""How well clusters of a representation agree with what is known of the spots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._types import Floats32, Strings
from sagefm._utils import check_whole, progress
from sagefm.tl._labels.labels import get_labels
from sagefm.tl._points import get_column, get_points, sample_distances, silhouette

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

MAX_SILHOUETTE = 2_000


@fill_docstring
def evaluate_clustering(
    adata: AnnData | SpatialData,
    use_reps: str | Sequence[str],
    targets: str | Sequence[str],
    *,
    within: str | None = None,
    n_repeats: int = 5,
    rng: int = 0,
    table_key: str = "table",
) -> pd.DataFrame:
    """Compare k-means clusters of representations with samples, tissues or labels.

    Parameters
    ----------
    adata
        Slides with the representations, side by side.
    {use_reps}
    targets
        Columns of ``obs`` to compare with, as many clusters as they have values; spots without one are left out.
    within
        Column of ``obs``: cluster its slides one by one instead of all spots together.
    n_repeats
        Number of runs of k-means to average over.
    rng
        Seed of the first repeat. Each repeat adds 1 to it.
    {table_key}

    Returns
    -------
    Table with a row for each representation, target and part. Columns are ``representation``, ``target``, ``part``
    (``"all"``, or the value of ``within``), ``n_spots``, ``n_clusters``, ``ari``, ``nmi``, ``silhouette`` and
    ``davies_bouldin`` of the clusters, and ``ari_sd`` over seeds. The silhouette is that of at most 2,000 spots. Parts
    in which a target has one value are left out.

    Raises
    ------
    KeyError
        If a representation or a column is missing.
    ValueError
        If no part has two values of a target.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 2a.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> table = sg.benchmark.evaluate_clustering(adata, "X_sage", "domain")
    >>> int(table.loc[0, "n_clusters"])
    4
    """
    check_whole("n_repeats", n_repeats, 1)
    seed = check_whole("rng", rng, 0)
    adata = get_anndata(adata, table_key)
    parts = get_column(adata, "within", within)
    tasks = []
    for target in as_names(targets):
        labels = get_labels(adata, target)
        found = False
        for part in pd.unique(parts):
            rows = (parts == part) & labels.notna().to_numpy()
            if labels[rows].nunique() > 1:
                found = True
                tasks += [(rep, target, str(part), rows, labels[rows].astype(str)) for rep in as_names(use_reps)]
        if not found:
            raise ValueError(f"obs[{target!r}] has one value only, so clusters can't be compared with it.")
    rows_out = []
    for rep, target, part, rows, labels in progress(tasks, "Clustering", unit="part"):
        points = get_points(adata, rep)[rows]
        rows_out.append(
            {
                "representation": rep,
                "target": target,
                "part": part,
                "n_spots": int(rows.sum()),
                "n_clusters": int(labels.nunique()),
                **_compare(points, labels.to_numpy(), n_repeats, seed),
            }
        )
    return pd.DataFrame(rows_out)


def _compare(points: Floats32, labels: Strings, n_repeats: int, seed: int) -> dict[str, float]:
    from sklearn.cluster import KMeans
    from sklearn.metrics import (
        adjusted_rand_score,
        davies_bouldin_score,
        normalized_mutual_info_score,
    )

    n_clusters = len(np.unique(labels))
    scores = []
    for repeat in range(seed, seed + n_repeats):
        found = KMeans(n_clusters, n_init="auto", random_state=repeat).fit_predict(points)
        several = 1 < len(np.unique(found)) < len(points)
        scores.append(
            {
                "ari": adjusted_rand_score(labels, found),
                "nmi": normalized_mutual_info_score(labels, found),
                "silhouette": silhouette(sample_distances(points, MAX_SILHOUETTE, repeat), found),
                "davies_bouldin": davies_bouldin_score(points, found) if several else np.nan,
            }
        )
    table = pd.DataFrame(scores)
    return {**{name: float(value) for name, value in table.mean().items()}, "ari_sd": float(table["ari"].std(ddof=0))}


def as_names(names: str | Sequence[str]) -> list[str]:
    """One name or several, as a list."""
    listed = [names] if isinstance(names, str) else list(names)
    if not listed or not all(isinstance(name, str) for name in listed):
        raise TypeError(f"expected a name or several, got {names!r}.")
    return listed
