"""Slides, models and results that tests of the tools share."""

import pytest
from comparison import embed_and_impute, run_tools

import sagefm as sg


@pytest.fixture(scope="module", params=["tiny", "sage"])
def model(request):
    """Both families go through one engine."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def expected(_slide, model):
    """Embedding and predictions by either."""
    return embed_and_impute(_slide.copy(), model)


@pytest.fixture(scope="session")
def expected_of_sage(_slide, sage):
    """Embedding, predictions and responses."""
    return run_tools(_slide.copy(), sage)


@pytest.fixture(scope="session")
def _patch():
    adata = sg.datasets.simulated_visium(5, 7, n_genes=10_500, rng=1)
    sg.pp.neighborhood_graph(adata)
    return adata


@pytest.fixture
def patch(_patch):
    """Slide small enough for the literal protocol, the test's own copy."""
    return _patch.copy()
