"""Means over the spots of a slide that are most alike, wherever they lie: the strongest plain predictor of a gene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sagefm._types import Array, Floats, Floats32
from sagefm.pp._normalize import normalize_total

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

N_COMPONENTS, N_NEIGHBORS, N_STEPS = 50, 15, 3
GENES_AT_A_TIME = 1_000


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
    sc.pp.pca(slide, n_comps=n_components, random_state=rng)
    return np.asarray(slide.obsm["X_pca"], dtype=np.float32)


class Diffusion:
    """Three steps on scanpy's graph of similar spots, in the manner of MAGIC (van Dijk et al. 2018).

    The spot itself is left out of its mean, else a hidden value would be seen.

    Parameters
    ----------
    components
        What :func:`similar_components` returns.
    n_neighbors, n_steps
        Most similar spots in the graph, and steps on it.
    """

    def __init__(
        self, components: Floats32, n_neighbors: int = N_NEIGHBORS, n_steps: int = N_STEPS, rng: int = 0
    ) -> None:
        import scanpy as sc
        from anndata import AnnData
        from scipy import sparse

        slide = AnnData(obsm={"X_pca": components})
        n_neighbors = max(2, min(n_neighbors, len(components) - 1))
        with np.errstate(invalid="ignore"):  # between spots that are the same
            sc.pp.neighbors(slide, n_neighbors=n_neighbors, use_rep="X_pca", method="gauss", random_state=rng)
        kernel = sparse.csr_matrix(slide.obsp["connectivities"])
        kernel.data[~np.isfinite(kernel.data)] = 1
        # A spot is at least as near to itself as to any other.
        kernel = kernel + sparse.diags(kernel.max(axis=1).toarray().ravel() - kernel.diagonal())
        self._step = sparse.csr_matrix(kernel.multiply(1 / np.maximum(kernel.sum(axis=1), 1e-12)))
        self._n_steps = n_steps
        power = sparse.identity(len(components), format="csr")
        for _ in range(n_steps - 1):
            power = power @ self._step
        # What would come back to the spot itself: the diagonal of the last product.
        self._own = np.asarray(power.multiply(self._step.T).sum(axis=1), dtype=float)

    def mean(self, values: Array) -> Floats:
        """Mean of values, shape (spots, columns), over the spots similar to each."""
        found = values
        for _ in range(self._n_steps):
            found = self._step @ found
        return (found - self._own * values) / np.maximum(1 - self._own, 1e-12)

    def fill(self, into: Array, log_counts: csr_matrix) -> Array:
        """Means of the log1p counts of all genes, some genes at a time."""
        columns = log_counts.tocsc()
        for start in range(0, log_counts.shape[1], GENES_AT_A_TIME):
            genes = slice(start, start + GENES_AT_A_TIME)
            into[:, genes] = self.mean(columns[:, genes].toarray())
        return into
