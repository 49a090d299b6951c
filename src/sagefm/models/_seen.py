"""Which spots a model was trained on: 64-bit hashes of their counts, by which a slide is known again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sagefm._types import Bools, Floats32, Ints
from sagefm.models._masks import scatter

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

KEY, KEY_OF_HASHES = "trained_spots", 0x9E3779B97F4A7C15
N_GENES = 500  # the most abundant ones, which filters leave
# A spot that shows fewer of them is like too many others.
MIN_SHOWN = 20


def hashed_genes(gene_mean: Floats32) -> Ints:
    """Genes whose counts are hashed, as vocabulary indices, ascending, from their means in training."""
    # As precise as a file holds the means, so that the choice survives saving.
    return np.sort(np.argsort(-np.round(gene_mean, 4), kind="stable")[:N_GENES])


def hash_spots(counts: csr_matrix, genes: Ints) -> tuple[Ints, Bools]:
    """Hash of each spot's counts of some genes, and whether it shows enough of them.

    Parameters
    ----------
    counts
        Raw counts of all genes of the vocabulary, shape (spots, genes).
    genes
        See :func:`hashed_genes`.
    """
    picked = counts[:, genes].tocsr()
    picked.eliminate_zeros()
    values = np.rint(picked.data.astype(float)).astype(np.uint64)
    mixed = scatter(genes.astype(np.uint64)[picked.indices] << np.uint64(32) | values, KEY_OF_HASHES)
    # Differences of a sum that wraps around are sums that wrap around.
    ends = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(mixed, dtype=np.uint64)])[picked.indptr]
    return np.diff(ends).view(np.int64), np.diff(picked.indptr) >= MIN_SHOWN
