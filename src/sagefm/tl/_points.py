"""Spots as points of a representation, with the slides and groups they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sagefm import _keys
from sagefm._utils import check_key, shorten

if TYPE_CHECKING:
    from anndata import AnnData

MAX_VALUE = 1e15  # float32 sums of squares of larger ones overflow


def get_points(adata: AnnData, use_rep: str) -> NDArray[Any]:
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
    adata: AnnData, name: str, key: str | None, rows: NDArray[np.bool_] | None = None, *, single: str = "all"
) -> NDArray[np.str_]:
    """Column of ``obs`` as text, without gaps in the rows asked for; all are of one kind where ``key`` is None."""
    n_rows = adata.n_obs if rows is None else int(rows.sum())
    if key is None:
        return np.full(n_rows, single)
    check_key(name, key)
    if key not in adata.obs:
        raise KeyError(f"{name}={key!r} not in adata.obs; it has {shorten(adata.obs.columns)}.")
    column = adata.obs[key] if rows is None else adata.obs[key][rows]
    if column.isna().any():
        raise ValueError(f"obs[{key!r}] is missing for {int(column.isna().sum())} spots that need it.")
    return column.astype(str).to_numpy(dtype=str)


def standardize(points: NDArray[Any], slides: NDArray[np.str_]) -> NDArray[np.float32]:
    """Give every dimension mean 0 and variance 1 within each slide, which takes what only tells slides apart."""
    scaled = np.empty(points.shape, dtype=np.float32)
    for slide in np.unique(slides):
        rows = slides == slide
        scaled[rows] = standardize_like(points[rows], points[rows])
    return scaled


def standardize_like(points: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float32]:
    """Shift and scale every dimension as gives ``others`` mean 0 and variance 1."""
    others = others.astype(np.float64)
    spread = others.std(axis=0)
    spread = np.where(spread > 1e-6 * np.abs(others).max(initial=0), spread, 1)
    return np.asarray((points.astype(np.float64) - others.mean(axis=0)) / spread, dtype=np.float32)


def silhouette(points: NDArray[Any], clusters: NDArray[Any], n_spots: int, seed: int) -> float:
    """Mean silhouette of at most ``n_spots`` spots; NaN where these are all of one cluster, or each of its own."""
    from sklearn.metrics import silhouette_score

    if len(points) > n_spots:
        chosen = np.random.default_rng(seed).permutation(len(points))[:n_spots]
        points, clusters = points[chosen], clusters[chosen]
    several = 1 < len(np.unique(clusters)) < len(points)
    return float(silhouette_score(points, clusters)) if several else float("nan")
