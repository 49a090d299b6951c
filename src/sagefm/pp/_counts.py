"""Counts of one slide in a model's genes, read in row blocks whatever holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

# Values per block that are looked at to tell counts from normalised data.
N_SAMPLED = 2000


class Counts:
    """log1p counts of chosen genes, one dense block of rows at a time.

    Parameters
    ----------
    adata
        Slide. ``X`` or the layer may be CSR, CSC, dense, backed or dask.
    index
        Vocabulary index of each column, -1 for one to leave out. Columns with the same index are added up.
    layer
        Layer with the counts; ``X`` by default.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        While reading: if a value is negative, not finite or, in a sample, not whole.
    """

    def __init__(self, adata: AnnData, index: NDArray[np.int64], layer: str | None = None) -> None:
        if layer is not None and layer not in adata.layers:
            raise KeyError(f"layer {layer!r} not in adata.layers; it has {sorted(adata.layers)}.")
        self.name = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        matrix = adata.X if layer is None else adata.layers[layer]
        if matrix is None:
            raise ValueError("adata.X is empty. Pass layer=... to name the layer with the raw counts.")
        if sparse.issparse(matrix) and matrix.format != "csr":
            matrix = matrix.tocsr()  # rows are read in blocks
        self._matrix = matrix
        self._hint = _other_counts(adata, layer)
        self.n_obs: int = adata.n_obs
        self.index = index
        self.genes = self._genes()
        """Vocabulary indices of the genes that the slide has, ascending, without those known to be all zero."""

    def _genes(self) -> NDArray[np.int64]:
        known = self.index >= 0
        if sparse.issparse(self._matrix):
            # A gene that is zero on the whole slide adds nothing to any product.
            seen = np.zeros(len(self.index), dtype=bool)
            seen[self._matrix.indices] = True
            known &= seen
        return np.unique(self.index[known])

    def reader(self, genes: NDArray[np.int64]) -> Callable[[slice], NDArray[np.float32]]:
        """Return a function that reads rows as dense log1p counts of ``genes``, in this order.

        Its result is a view of a buffer that the next call overwrites.
        """
        position = np.full(max(self.index.max(initial=-1), genes.max(initial=-1)) + 2, len(genes), dtype=np.int32)
        position[genes] = np.arange(len(genes))
        target = position[self.index]  # index -1 reads the last entry, which no gene has
        kept = target[target < len(genes)]
        is_doubled = len(np.unique(kept)) < len(kept)
        buffer = np.empty((0, len(genes) + 1), dtype=np.float32)

        def read(rows: slice) -> NDArray[np.float32]:
            nonlocal buffer
            block = self._read(rows)
            # Other columns all go to one more column at the end, which is cut off. What is read may be the
            # user's own matrix, so nothing is changed in place.
            moved = sparse.csr_matrix(
                (block.data, np.take(target, block.indices), block.indptr), shape=(block.shape[0], len(genes) + 1)
            )
            if is_doubled or not block.has_canonical_format:
                moved = moved.copy()
                moved.sum_duplicates()  # before the logarithm
            moved.data = np.log1p(moved.data)
            if len(buffer) < block.shape[0]:
                buffer = np.empty((block.shape[0], len(genes) + 1), dtype=np.float32)
            return moved.toarray(out=buffer[: block.shape[0]])[:, :-1]

        return read

    def _read(self, rows: slice) -> sparse.csr_matrix:
        """Rows as float32 CSR, checked."""
        block: Any = self._matrix[rows]
        if hasattr(block, "compute"):
            block = block.compute()
        block = sparse.csr_matrix(block)
        self._check(block.data)
        return block.astype(np.float32, copy=False)

    def _check(self, values: NDArray[Any]) -> None:
        if values.dtype.kind not in "fiub":
            raise ValueError(f"{self.name} holds values of type {values.dtype}. {self._hint}")
        if not len(values):
            return
        # One pass each over the block, no copies: NaN fails both comparisons.
        low, high = values.min(), values.max()
        if not (low >= 0 and high < np.inf):
            what = "negative values" if low < 0 else "values that are not finite"
            raise ValueError(f"{self.name} holds {what}, so it is no matrix of raw counts. {self._hint}")
        sample = values[:: max(1, len(values) // N_SAMPLED)]
        if values.dtype.kind == "f" and (odd := sample[sample != np.rint(sample)]).size:
            raise ValueError(
                f"{self.name} holds values that are no counts, such as {odd[0]:.4g}: the model takes raw counts "
                f"and does its own log1p. {self._hint}"
            )


def _other_counts(adata: AnnData, layer: str | None) -> str:
    """Where raw counts may lie instead, for error messages."""
    for name in ("counts", "raw_counts", "raw"):
        if name in adata.layers and name != layer:
            return f"Pass layer={name!r}, which may hold them."
    if adata.raw is not None:
        return "If adata.raw holds them, start from adata.raw.to_adata()."
    return "Pass layer=... to name the layer with the raw counts."
