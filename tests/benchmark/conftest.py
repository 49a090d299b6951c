"""Models and functions that the benchmark's tests share."""

from dataclasses import replace

import numpy as np
import pytest

from sagefm.tl._labels import classifiers


@pytest.fixture(scope="module")
def model(tiny):
    """Random model that records a mean of each gene."""
    return replace(tiny, gene_mean=np.random.default_rng(0).random(14558, dtype=np.float32))


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch):
    """Forests of few trees: what is tested is the way through, not the score."""
    monkeypatch.setattr(classifiers, "N_TREES", 10)
