"""Slides and a corpus that tests of training share."""

import pytest

import sagefm as sg


@pytest.fixture(scope="session")
def slides():
    """Five sections of four donors."""
    slides = {}
    for i in range(5):
        slide = sg.datasets.simulated_visium(7 + i, 8, n_genes=5000, rng=i)
        slide.obs["donor"] = f"donor{min(i, 3)}"
        slide.obs["sample"] = f"s{i}"
        slides[f"s{i}"] = slide
    return slides


@pytest.fixture(scope="session")
def corpus(slides, tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.zarr"
    return sg.train.prepare_corpus(slides, path, split={"donor2": "validate"})
