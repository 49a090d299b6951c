"""Counts of one slide in a model's genes, read in row blocks whatever holds them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sagefm._io.scratch import Scratch
from sagefm._settings import logger
from sagefm._types import Array, Floats, Floats32, Ints
from sagefm._utils import check_key

if TYPE_CHECKING:
    from anndata import AnnData

# Rows that the density of genes is estimated on.
DENSITY_SPOTS = 128
N_THREADS = min(8, os.cpu_count() or 1)
# Values per block that are looked at to tell counts from normalised data.
N_SAMPLED = 2000
# What unsigned integers of 32 bits and more wrap a negative number to lies above.
MAX_COUNT = 2**31


@dataclass(frozen=True)
class Block:
    """log1p counts of some rows: a dense array, and the non-zeros of the remaining genes as in CSR."""

    dense: Floats32
    genes: NDArray[np.int32]
    values: Floats32
    indptr: Ints

    def nonzeros(self, start: int, stop: int) -> tuple[NDArray[np.int32], Floats32, Ints]:
        """Gene (counted from ``start``), value, and first entry of each row, for sparse genes start to stop."""
        picked = np.flatnonzero((self.genes >= start) & (self.genes < stop))
        return (
            self.genes[picked] - np.int32(start),
            self.values[picked],
            np.searchsorted(picked, self.indptr[:-1]),
        )


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

    def __init__(self, adata: AnnData, index: Ints, layer: str | None = None) -> None:
        if layer is not None:
            check_key("layer", layer)
        if layer is not None and layer not in adata.layers:
            raise KeyError(f"layer {layer!r} not in adata.layers; it has {sorted(adata.layers)}.")
        self.name = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        matrix = adata.X if layer is None else adata.layers[layer]
        if isinstance(matrix, np.ma.MaskedArray):
            raise ValueError(f"{self.name} is a masked array; fill it first, as in {self.name}.filled(0).")
        if matrix is None:
            raise ValueError("adata.X is empty. Pass layer=... to name the layer with the raw counts.")
        if getattr(matrix, "format", "csr") != "csr":  # rows are read in blocks
            if not sparse.issparse(matrix):
                logger.warning("%s is stored by columns (CSC), so all of it is read into memory.", self.name)
                matrix = matrix.to_memory()
            matrix = matrix.tocsr()
        self._matrix = matrix
        self._hint = _other_counts(adata, layer)
        self.n_obs: int = adata.n_obs
        self.index = index
        has_gene = np.zeros(index.max(initial=-1) + 1, dtype=bool)
        has_gene[index[index >= 0]] = True
        self.genes: Ints = np.flatnonzero(has_gene)
        """Vocabulary indices of the genes that the slide has, ascending."""

    def density(self) -> Floats:
        """Share of spots that each of ``genes`` is found in, estimated on some of them."""
        start = max(0, (self.n_obs - DENSITY_SPOTS) // 2)
        block = self._read(slice(start, min(start + DENSITY_SPOTS, self.n_obs)))
        found = np.bincount(block.indices, minlength=len(self.index)) / max(1, block.shape[0])
        density = np.zeros(self.index.max(initial=-1) + 2)
        np.maximum.at(density, self.index, found)
        return density[self.genes]

    def reader(self, dense: Ints, sparse_: Ints) -> Callable[[slice], Block]:
        """Return a function that reads rows as log1p counts of some genes.

        Parameters
        ----------
        dense
            Genes (vocabulary indices) to return as a dense array, in this order. It is a view of a buffer
            that the next call overwrites.
        sparse_
            Genes to return as a list of non-zeros, numbered in this order.
        """
        # Where each column goes: 0..D-1 are dense, D is cut off, from D+1 on are sparse.
        n_dense, n_codes = len(dense), len(dense) + 1 + len(sparse_)
        top = max(array.max(initial=-1) for array in (self.index, dense, sparse_))
        code_of = np.full(top + 2, n_dense, dtype=np.int32)
        code_of[dense] = np.arange(n_dense)
        code_of[sparse_] = np.arange(n_dense + 1, n_codes)
        code_of[-1] = n_dense  # what index -1 reads
        target = code_of[self.index]
        codes_used = target[target != n_dense]
        is_doubled = np.bincount(codes_used, minlength=1).max() > 1
        buffer = np.empty((0, n_dense + 1), dtype=np.float32)

        def fill(part: sparse.csr_matrix, out: Floats32) -> Block:
            has_zeros = self._check(part.data)
            # This may share memory with the user's matrix, so nothing is changed in place.
            data = part.data.astype(np.float32, copy=False)
            coded = sparse.csr_matrix((data, np.take(target, part.indices), part.indptr), (part.shape[0], n_codes))
            if is_doubled or not part.has_canonical_format:
                coded = coded.copy()
                coded.sum_duplicates()  # before the logarithm
            if has_zeros:  # stored, but no sign of a gene
                coded = coded.copy()
                coded.eliminate_zeros()
            values, codes = np.log1p(coded.data), coded.indices
            cut = sparse.csr_matrix((values, np.minimum(codes, n_dense), coded.indptr), out.shape)
            picked = np.flatnonzero(codes > n_dense)
            return Block(
                dense=cut.toarray(out=out)[:, :-1],
                genes=codes[picked] - np.int32(n_dense + 1),
                values=values[picked],
                indptr=np.searchsorted(picked, coded.indptr),
            )

        def read(rows: slice) -> Block:
            nonlocal buffer
            block = self._read(rows)
            n = block.shape[0]
            if len(buffer) < n:
                buffer = np.empty((n, n_dense + 1), dtype=np.float32)
            # numpy and scipy let go of the interpreter here, so threads share the work.
            edges = np.linspace(0, n, min(n, N_THREADS) + 1).astype(int)
            bounds = [slice(start, stop) for start, stop in pairwise(edges)]
            with ThreadPoolExecutor(len(bounds)) as pool:
                parts = list(pool.map(fill, [_rows(block, part) for part in bounds], [buffer[part] for part in bounds]))
            starts = np.cumsum([0, *(len(part.values) for part in parts)])
            indptr = [part.indptr[:-1] + start for part, start in zip(parts, starts[:-1], strict=True)]
            return Block(
                dense=buffer[:n, :-1],
                genes=np.concatenate([part.genes for part in parts]),
                values=np.concatenate([part.values for part in parts]),
                indptr=np.concatenate([*indptr, starts[-1:]]),
            )

        return read

    def log1p(self, genes: Ints, batch_size: int, scratch: Scratch | None = None) -> sparse.csr_matrix:
        """log1p counts of some genes on the whole slide, shape (spots, genes); 0 for genes that it lacks."""
        read = self.reader(np.empty(0, dtype=np.int64), genes)

        def blocks() -> Iterator[sparse.csr_matrix]:
            for start in range(0, self.n_obs, batch_size):
                block = read(slice(start, min(start + batch_size, self.n_obs)))
                shape = (len(block.indptr) - 1, len(genes))
                yield sparse.csr_matrix((block.values, block.genes, block.indptr), shape)

        return (scratch or Scratch()).csr(blocks(), len(genes))

    def raw_rows(self, rows: slice) -> sparse.csr_matrix:
        """Counts as they are, of every column, checked. They may share memory with the user's matrix."""
        block = self._read(rows)
        self._check(block.data)
        return block

    def _read(self, rows: slice) -> sparse.csr_matrix:
        """Rows as CSR, in memory, unchecked."""
        if sparse.issparse(self._matrix):
            return _rows(self._matrix, rows)
        block: Any = self._matrix[rows]
        if hasattr(block, "compute"):
            block = block.compute()
        if not sparse.issparse(block):
            block = np.asarray(block)
            self._check_type(block.dtype)
            if block.dtype == np.float16 or not block.dtype.isnative:  # which scipy has no sparse matrices of
                block = block.astype(np.float32 if block.dtype == np.float16 else block.dtype.newbyteorder("="))
        return sparse.csr_matrix(block)

    def _check_type(self, dtype: np.dtype[Any]) -> None:
        if dtype.kind not in "fiub":
            raise ValueError(f"{self.name} holds values of type {dtype}, which are not counts. {self._hint}")

    def _check(self, values: Array) -> bool:
        """Refuse what is no count; return whether any value is 0."""
        self._check_type(values.dtype)
        if not len(values):
            return False
        # One pass each over the block, no copies: NaN fails both comparisons.
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= MAX_COUNT):
            what = "negative values" if low < 0 else "values that are not finite"
            if low >= 0 and np.isfinite(high):
                what = f"values such as {high:.4g}, more than a spot has molecules (an integer that overflowed?)"
            raise ValueError(f"{self.name} holds {what}, so it is not a matrix of raw counts. {self._hint}")
        sample = values[:: max(1, len(values) // N_SAMPLED)]
        if values.dtype.kind == "f" and (odd := sample[sample != np.rint(sample)]).size:
            raise ValueError(
                f"{self.name} holds values that are not counts, such as {odd[0]:.4g}: the model takes raw counts "
                f"and does its own log1p. {self._hint}"
            )
        return bool(low == 0)


def _rows(matrix: sparse.csr_matrix, rows: slice) -> sparse.csr_matrix:
    """Rows of a CSR matrix, sharing its memory."""
    indptr = matrix.indptr[rows.start : rows.stop + 1]
    entries = slice(indptr[0], indptr[-1])
    shape = (rows.stop - rows.start, matrix.shape[1])
    data = matrix.data[entries]
    if data.dtype == np.float16:  # which scipy can hold, but not work with
        data = data.astype(np.float32)
    return sparse.csr_matrix((data, matrix.indices[entries], indptr - indptr[0]), shape)


def _other_counts(adata: AnnData, layer: str | None) -> str:
    """Where raw counts may lie instead, for error messages."""
    for name in ("counts", "raw_counts", "raw"):
        if name in adata.layers and name != layer:
            return f"Pass layer={name!r}, which may hold them."
    if adata.raw is not None:
        return "If adata.raw holds them, start from adata.raw.to_adata()."
    return "Pass layer=... to name the layer with the raw counts."
