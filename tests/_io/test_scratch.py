"""Scratch files for what memory doesn't hold."""

import os

import numpy as np
import pytest
from scipy import sparse

from sagefm._io.scratch import Scratch


@pytest.mark.parametrize("limit", [0, 1e4, 1e5, 1e9])
def test_scratch_holds_what_it_is_given(limit):
    matrix = sparse.random(500, 40, density=0.2, format="csr", dtype=np.float32, random_state=0)
    scratch = Scratch(limit)
    held = scratch.csr((matrix[start : start + 60] for start in range(0, 500, 60)), 40)
    assert (held != matrix).nnz == 0
    assert isinstance(held.data, np.memmap) == (limit < 1e5)
    assert held.indices.dtype == held.indptr.dtype  # else scipy copies them whenever it takes rows
    array = scratch.empty((30, 100))
    array[:] = 3
    assert isinstance(array, np.memmap) == (limit < 1e5)
    assert array.sum() == 9000


def test_scratch_of_nothing():
    assert Scratch(0).csr(iter([]), 7).shape == (0, 7)
    assert Scratch(0).csr(iter([sparse.csr_matrix((3, 7))]), 7).shape == (3, 7)
    assert Scratch(0).empty((0, 5)).shape == (0, 5)


def test_a_full_disk_is_an_error(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="no room for 1.2 GB of intermediate results. Set TMPDIR"):
        Scratch(0).empty((30_000, 10_000))
