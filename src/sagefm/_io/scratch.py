"""Intermediate arrays that may be larger than memory: beyond a limit they lie in a file that the system pages."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable
from typing import IO

import numpy as np
from numpy.typing import DTypeLike
from scipy import sparse

from sagefm._settings import logger, settings
from sagefm._types import Array


class Scratch:
    """Memory of one call, up to ``settings.memory_limit``; what comes after goes to unnamed temporary files.

    Parameters
    ----------
    limit
        Bytes to hold in memory.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._free = settings.memory_limit * 1e9 if limit is None else limit

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        """Array with any content."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self._takes(size):
            return np.empty(shape, dtype)
        with _file() as file:
            _reserve(file, size)
            return np.memmap(file, dtype, mode="r+", shape=shape)

    def csr(self, blocks: Iterable[sparse.csr_matrix], n_columns: int) -> sparse.csr_matrix:
        """Blocks of rows, one below the other; float32."""
        data, indices, ends = _Column(self, np.float32), _Column(self, np.int32), [np.zeros(1, dtype=np.int64)]
        for block in blocks:
            data.append(block.data)
            indices.append(block.indices)
            ends.append(block.indptr[1:].astype(np.int64) + ends[-1][-1])
        indptr = np.concatenate(ends)
        if indptr[-1] <= np.iinfo(np.int32).max:
            indptr = indptr.astype(np.int32)  # of one type with the indices, else scipy copies these
        matrix = sparse.csr_matrix((len(indptr) - 1, n_columns), dtype=np.float32)
        # Not through the constructor, which reads all of it.
        matrix.data, matrix.indices, matrix.indptr = data.array(), indices.array(indptr.dtype), indptr
        return matrix

    def _takes(self, size: int) -> bool:
        if size > self._free:
            return False
        self._free -= size
        return True


class _Column:
    """One-dimensional array that grows, in memory until the scratch is full."""

    def __init__(self, scratch: Scratch, dtype: DTypeLike) -> None:
        self._scratch, self._dtype = scratch, np.dtype(dtype)
        self._parts: list[Array] = []
        self._file: IO[bytes] | None = None
        self._size = 0

    def append(self, part: Array) -> None:
        part = np.ascontiguousarray(part, dtype=self._dtype)
        self._size += part.nbytes
        if self._file is None and self._scratch._takes(2 * part.nbytes):  # once more when the parts are joined
            self._parts.append(part)
            return
        if self._file is None:
            self._file = _file()
            for held in self._parts:
                _write(self._file, held)
            self._parts = []
        _write(self._file, part)

    def array(self, dtype: DTypeLike | None = None) -> Array:
        if self._file is None:
            return np.concatenate([np.empty(0, self._dtype), *self._parts]).astype(dtype or self._dtype, copy=False)
        with self._file as file:
            file.flush()
            found = np.memmap(file, self._dtype, mode="r+", shape=(self._size // self._dtype.itemsize,))
        return found if dtype is None else found.astype(dtype, copy=False)


def _file() -> IO[bytes]:
    logger.debug("More than settings.memory_limit=%g GB; going on in %s.", settings.memory_limit, tempfile.gettempdir())
    return tempfile.TemporaryFile(prefix="sagefm-")


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the space now: a full disk is an error here, and would be a crash when a page is written."""
    try:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        raise _no_space(size) from error


def _write(file: IO[bytes], part: Array) -> None:
    try:
        part.tofile(file)
    except OSError as error:
        raise _no_space(part.nbytes) from error


def _no_space(size: int) -> OSError:
    return OSError(
        f"{tempfile.gettempdir()} has no room for {size / 1e9:.1f} GB of intermediate results. Set TMPDIR to a folder "
        f"that has, or raise sg.settings.memory_limit (now {settings.memory_limit:g} GB) if memory has."
    )
