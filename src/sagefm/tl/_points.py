"""Spots as points of a representation, with the slides and groups they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from sagefm import _keys
from sagefm._slides import split_libraries
from sagefm._types import Array, Bools, Floats32, Ints, Strings
from sagefm._utils import check_key

if TYPE_CHECKING:
    from anndata import AnnData

MAX_VALUE = 1e15  # float32 sums of squares of larger ones overflow


def get_points(adata: AnnData, use_rep: str) -> Array:
    """Representation of every spot, checked to be finite."""
    check_key("use_rep", use_rep)
    if use_rep not in adata.obsm:
        mend = "Run sg.tl.sage_embed(adata) first." if use_rep == _keys.EMBEDDING else "Set use_rep."
        raise KeyError(f"{use_rep!r} not in adata.obsm. {mend}")
    points = adata.obsm[use_rep]
    points = np.asarray(points.toarray() if sparse.issparse(points) else points)
    if points.ndim != 2 or not points.shape[1] or points.dtype.kind not in "fiu" or not np.isfinite(points).all():
        raise ValueError(f"obsm[{use_rep!r}] has to hold finite numbers, shape (spots, dimensions).")
    if len(points) and (largest := max(-float(points.min()), float(points.max()))) > MAX_VALUE:
        raise ValueError(f"obsm[{use_rep!r}] holds values up to {largest:.3g}, too large to square. Scale it first.")
    return points


def get_column(
    adata: AnnData, name: str, key: str | None, rows: Bools | None = None, *, single: str = "all"
) -> Strings:
    """Column of ``obs`` as text, without gaps in the rows asked for; all are of one kind where ``key`` is None."""
    return split_libraries(adata, key, name=name, rows=rows, single=single).labels


def standardize(points: Array, slides: Array) -> Floats32:
    """Give every dimension mean 0 and variance 1 within each slide, which takes what only tells slides apart."""
    scaled = np.empty(points.shape, dtype=np.float32)
    for slide in np.unique(slides):
        rows = slides == slide
        scaled[rows] = standardize_like(points[rows], points[rows])
    return scaled


def standardize_like(points: Array, others: Array) -> Floats32:
    """Shift and scale every dimension as gives ``others`` mean 0 and variance 1."""
    others = others.astype(np.float64)
    spread = others.std(axis=0)
    spread = np.where(spread > 1e-6 * np.abs(others).max(initial=0), spread, 1)
    return np.asarray((points.astype(np.float64) - others.mean(axis=0)) / spread, dtype=np.float32)


def sample_distances(points: Array, n_spots: int, seed: int) -> tuple[Ints, Array]:
    """Row numbers of at most ``n_spots`` spots drawn at random, and the distances between them."""
    from sklearn.metrics import pairwise_distances

    chosen = np.random.default_rng(seed).permutation(len(points))[:n_spots]
    return chosen, pairwise_distances(points[chosen])


def silhouette(sample: tuple[Ints, Array], clusters: Array) -> float:
    """Mean silhouette of a sample; NaN where its spots are all of one cluster, or each of its own."""
    from sklearn.metrics import silhouette_score

    chosen, distances = sample
    several = 1 < len(np.unique(clusters[chosen])) < len(chosen)
    return float(silhouette_score(distances, clusters[chosen], metric="precomputed")) if several else float("nan")
