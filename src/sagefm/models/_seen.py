"""Which spots a model was trained on: 64-bit hashes of their counts, by which a slide is known again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sagefm._types import Bools, Floats32, Ints

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from sagefm.models._vocabulary import Vocabulary

KEY = "trained_spots"
# The most abundant genes: those that a filter of genes or spots leaves. Genes that users drop on purpose don't count.
N_GENES, DROPPED = 500, ("MT-", "RPL", "RPS")
# A spot that shows fewer of them is like too many others.
MIN_SHOWN = 20


def hashed_genes(vocabulary: Vocabulary, gene_mean: Floats32) -> Ints:
    """Genes whose counts are hashed, as vocabulary indices, ascending."""
    kept = np.array([not symbol.startswith(DROPPED) for symbol in vocabulary.symbols])
    # As precise as a file holds the means, so that the choice survives saving.
    order = np.argsort(np.where(kept, -np.round(gene_mean, 4), np.inf), kind="stable")
    return np.sort(order[:N_GENES])


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
    mixed = _mix(genes.astype(np.uint64)[picked.indices] << np.uint64(32) | values)
    # Differences of a sum that wraps around are sums that wrap around.
    ends = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(mixed, dtype=np.uint64)])[picked.indptr]
    return np.diff(ends).view(np.int64), np.diff(picked.indptr) >= MIN_SHOWN


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter numbers (splitmix64), so that near ones are far apart."""
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
