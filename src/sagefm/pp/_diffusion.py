"""Means over the spots of a slide that are most alike, wherever they lie: the strongest plain predictor of a gene."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from sagefm._types import Array, Floats32, Ints
from sagefm.pp._normalize import normalize_total

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

N_COMPONENTS, N_NEIGHBORS, N_STEPS = 50, 15, 3
GENES_AT_A_TIME, SPOTS_AT_A_TIME, BLOCK_VALUES = 1_000, 1_000, 1e8
# A slide of fewer spots has too few that are alike.
MIN_SPOTS = 50
# Up to here components are found from the products of spots.
FEW_SPOTS = 1_500
# Above this they are found on as many, drawn at random.
MANY_SPOTS = 6_000


def similar_components(log_counts: csr_matrix, n_components: int = N_COMPONENTS, rng: int = 0) -> Floats32:
    """Principal components of spots by the genes that they show, at a common depth, shape (spots, components).

    There are fewer where the slide has too few spots or genes. On a large slide they are found on some of its spots.
    """
    import scanpy as sc

    n_spots = log_counts.shape[0]
    some: slice | Ints = slice(None)
    if n_spots > MANY_SPOTS:
        some = np.sort(np.random.default_rng(rng).choice(n_spots, MANY_SPOTS, replace=False))
    slide, depth = _at_common_depth(log_counts[some])
    n_components = min(n_components, *(size - 1 for size in slide.shape))
    spread = slide.X.max(axis=0).toarray() - slide.X.min(axis=0).toarray()
    if n_components < 1 or not spread.any():  # all spots are alike
        return np.zeros((n_spots, 1), dtype=np.float32)
    if n_spots <= FEW_SPOTS:
        return _components_of_few(slide.X, n_components)
    sc.pp.pca(slide, n_comps=n_components, random_state=rng)
    if n_spots <= MANY_SPOTS:
        return np.asarray(slide.obsm["X_pca"], dtype=np.float32)
    starts = range(0, n_spots, MANY_SPOTS)
    blocks = (_at_common_depth(log_counts[start : start + MANY_SPOTS], depth)[0].X for start in starts)
    # Not centered, which changes no distance.
    return np.concatenate([block @ slide.varm["PCs"] for block in blocks]).astype(np.float32)


def _at_common_depth(log_counts: csr_matrix, depth: float | None = None) -> tuple[AnnData, float]:
    """Log counts at a depth, by default the median one."""
    import scanpy as sc
    from anndata import AnnData

    slide = AnnData(log_counts.expm1())
    depth = normalize_total(slide, depth)
    sc.pp.log1p(slide)
    return slide, depth


def _components_of_few(values: csr_matrix, n_components: int) -> Floats32:
    """All the same from the products of spots, which are few: ten times as fast as from the genes."""
    from scipy.linalg import eigh

    centered = values.toarray()
    centered -= centered.mean(axis=0)
    first = len(centered) - n_components
    variances, vectors = eigh((centered @ centered.T).astype(float), subset_by_index=(first, len(centered) - 1))
    return np.ascontiguousarray((vectors * np.sqrt(np.maximum(variances, 0)))[:, ::-1], dtype=np.float32)


class Diffusion:
    """Means over spots that are some steps away on a graph, the spot itself left out.

    Else a hidden value would be seen.

    Parameters
    ----------
    step
        Weight of each spot (column) in the mean of another (row); rows add up to 1, or to 0 for a spot alone.
    n_steps
        Steps on the graph.
    """

    def __init__(self, step: csr_matrix, n_steps: int = N_STEPS) -> None:
        self.step, self._n_steps = step, n_steps
        # What would come back to the spot itself: the diagonal of the product of all steps.
        self._own = np.zeros(step.shape[0])
        back = step.T.tocsr()
        for start in range(0, step.shape[0], SPOTS_AT_A_TIME):
            rows = slice(start, start + SPOTS_AT_A_TIME)
            way = step[rows]
            for _ in range(n_steps - 2):
                way = way @ step
            last = back[rows] if n_steps > 1 else sparse.identity(step.shape[0], format="csr")[rows]
            self._own[rows] = np.asarray(way.multiply(last).sum(axis=1)).ravel()

    @classmethod
    def over_similar(cls, components: Floats32, n_neighbors: int = N_NEIGHBORS, n_steps: int = N_STEPS) -> Diffusion:
        """Steps on scanpy's graph of similar spots, in the manner of MAGIC (van Dijk et al. 2018).

        Parameters
        ----------
        components
            What :func:`similar_components` returns.
        n_neighbors, n_steps
            Most similar spots in the graph, and steps on it.
        """
        import scanpy as sc
        from anndata import AnnData

        slide = AnnData(obsm={"X_pca": components})
        n_neighbors = max(2, min(n_neighbors, len(components) - 1))
        with np.errstate(invalid="ignore"):  # between spots that are the same
            # Exact at any size: among 50 components that takes seconds for tens of thousands of spots.
            sc.pp.neighbors(slide, n_neighbors, use_rep="X_pca", method="gauss", transformer="sklearn")
        kernel = sparse.csr_matrix(slide.obsp["connectivities"])
        kernel.data[~np.isfinite(kernel.data)] = 1
        # A spot is at least as near to itself as to any other.
        kernel = kernel + sparse.diags(kernel.max(axis=1).toarray().ravel() - kernel.diagonal())
        return cls(with_unit_rows(kernel), n_steps)

    @classmethod
    def of_slide(cls, log_counts: csr_matrix, neighbors: csr_matrix) -> Diffusion:
        """Over the similar spots of a slide, or over the neighbors in space where it has too few spots.

        Parameters
        ----------
        log_counts
            log1p counts of the genes that are shown, shape (spots, genes).
        neighbors
            Ones where a spot (row) has a neighbor (column).
        """
        if log_counts.shape[0] < MIN_SPOTS:
            return cls(with_unit_rows(neighbors), 1)
        return cls.over_similar(similar_components(log_counts))

    def mean(self, values: Array) -> Array:
        """Mean of values, shape (spots, columns), over the spots similar to each."""
        found = values
        for _ in range(self._n_steps):
            found = self.step @ found
        own = self._own.astype(values.dtype)[:, None]
        return (found - own * values) / np.maximum(1 - own, 1e-12)

    def fill(self, into: Array, log_counts: csr_matrix) -> Array:
        """Means of the log1p counts of all genes, some genes at a time."""
        for genes, values in dense_blocks(log_counts):
            into[:, genes] = self.mean(values)
        return into


def dense_blocks(values: csr_matrix) -> Iterator[tuple[slice, Floats32]]:
    """Some columns at a time, dense: all of the rows, half a gigabyte at most."""
    width = max(1, min(GENES_AT_A_TIME, int(BLOCK_VALUES / max(values.shape[0], 1))))
    columns = values.tocsc()
    for start in range(0, values.shape[1], width):
        genes = slice(start, start + width)
        yield genes, columns[:, genes].toarray()


def with_unit_rows(graph: csr_matrix) -> csr_matrix:
    """The same with weights that add up to 1 in each row."""
    total = np.asarray(graph.sum(axis=1), dtype=float).ravel()
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(total, 1e-12)) @ graph, dtype=np.float32)
