"""Means over the spots of a slide that are most alike, wherever they lie: the strongest plain predictor of a gene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from sagefm._types import Array, Floats32
from sagefm.pp._normalize import normalize_total

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

N_COMPONENTS, N_NEIGHBORS, N_STEPS = 50, 15, 3
GENES_AT_A_TIME, SPOTS_AT_A_TIME = 1_000, 1_000
# A slide of fewer spots has too few that are alike.
MIN_SPOTS = 50
# Up to here components are found from the products of spots.
FEW_SPOTS = 1_500
# Above this they are found on as many, drawn at random.
MANY_SPOTS = 6_000


def similar_components(log_counts: csr_matrix, n_components: int = N_COMPONENTS, rng: int = 0) -> Floats32:
    """Principal components of spots by the genes that they show, at a common depth, shape (spots, components).

    There are fewer where the slide has too few spots or genes.
    """
    import scanpy as sc
    from anndata import AnnData

    slide = AnnData(log_counts.expm1())
    normalize_total(slide)
    sc.pp.log1p(slide)
    n_components = min(n_components, *(size - 1 for size in slide.shape))
    spread = slide.X.max(axis=0).toarray() - slide.X.min(axis=0).toarray()
    if n_components < 1 or not spread.any():  # all spots are alike
        return np.zeros((slide.n_obs, 1), dtype=np.float32)
    if slide.n_obs <= FEW_SPOTS:
        return _components_of_few(slide.X, n_components)
    if slide.n_obs <= MANY_SPOTS:
        sc.pp.pca(slide, n_comps=n_components, random_state=rng)
        return np.asarray(slide.obsm["X_pca"], dtype=np.float32)
    some = slide[np.sort(np.random.default_rng(rng).choice(slide.n_obs, MANY_SPOTS, replace=False))].copy()
    sc.pp.pca(some, n_comps=n_components, random_state=rng)
    return np.asarray(slide.X @ some.varm["PCs"], dtype=np.float32)  # not centered, which changes no distance


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
    def over_similar(
        cls, components: Floats32, n_neighbors: int = N_NEIGHBORS, n_steps: int = N_STEPS, rng: int = 0
    ) -> Diffusion:
        """Steps on scanpy's graph of similar spots, in the manner of MAGIC (van Dijk et al. 2018).

        Parameters
        ----------
        components
            What :func:`similar_components` returns.
        n_neighbors, n_steps
            Most similar spots in the graph, and steps on it.
        rng
            Seed of the search for neighbors, which is approximate on large slides.
        """
        import scanpy as sc
        from anndata import AnnData

        slide = AnnData(obsm={"X_pca": components})
        n_neighbors = max(2, min(n_neighbors, len(components) - 1))
        with np.errstate(invalid="ignore"):  # between spots that are the same
            sc.pp.neighbors(slide, n_neighbors=n_neighbors, use_rep="X_pca", method="gauss", random_state=rng)
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
        columns = log_counts.tocsc()
        for start in range(0, log_counts.shape[1], GENES_AT_A_TIME):
            genes = slice(start, start + GENES_AT_A_TIME)
            into[:, genes] = self.mean(columns[:, genes].toarray())
        return into


def with_unit_rows(graph: csr_matrix) -> csr_matrix:
    """The same with weights that add up to 1 in each row."""
    total = np.asarray(graph.sum(axis=1), dtype=float).ravel()
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(total, 1e-12)) @ graph, dtype=np.float32)
