"""Slides and models that the tests share."""

import logging
import sys

import anndata as ad
import pytest
import scanpy as sc
from helpers import SECTIONS, random_model

import sagefm as sg

sc.settings.autoshow = False


def pytest_collection_modifyitems(items):
    """Mark what reads real sections."""
    for item in items:
        if "section" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.sections)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    """No progress bars, a cache of the test's own, the level of the log as it was, and no figures left open."""
    monkeypatch.setattr(sg.settings, "progress_bars", False)
    monkeypatch.setattr(sg.settings, "verbosity", "INFO")
    monkeypatch.setenv("SAGEFM_CACHE", str(tmp_path / "cache"))
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def log(caplog):
    """Records of the sagefm logger, which doesn't propagate."""
    logger = logging.getLogger("sagefm")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def section():
    """Reader of real sections by name; skips where they are absent."""

    def read(name: str) -> ad.AnnData:
        path = SECTIONS / f"{name}.h5ad"
        if not path.exists():
            pytest.skip(f"real section {name} is not at {SECTIONS}")
        return ad.read_h5ad(path)

    return read


@pytest.fixture(scope="session")
def _slide():
    adata = sg.datasets.simulated_visium(10, 11, n_genes=10_500, rng=1)
    sg.pp.neighborhood_graph(adata)
    return adata


@pytest.fixture
def slide(_slide):
    """Small simulated slide with its graph, the test's own copy."""
    return _slide.copy()


@pytest.fixture(scope="session")
def bench():
    """The catalogue's slide and what every function makes of it, once for all tests."""
    import catalogue

    return catalogue.Bench()


@pytest.fixture(scope="session")
def tiny():
    """Random model of the published architecture, narrow."""
    return random_model((16, 8, 8, 8, 12))


@pytest.fixture(scope="session")
def sage():
    """Random model of the GraphSAGE family."""
    return random_model((64, 32, 48), sg.models.SAGE)


@pytest.fixture(scope="session")
def published_size():
    """Random model of the published size."""
    return random_model((1024, 512, 512, 512, 1024))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """What jobs read that are killed and started again."""
    import interruption

    folder = tmp_path_factory.mktemp("inputs")
    interruption.make_inputs(folder, side=9, n_sections=2)
    return folder
