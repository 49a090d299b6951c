"""Slides that tests of histology share."""

import numpy as np
import pytest

import sagefm as sg


@pytest.fixture(scope="session")
def predicted():
    """Slide with an image, and expression predicted from it."""
    adata = sg.datasets.simulated_visium(12, 8, n_genes=600, image=True, rng=1)
    adata.obs["half"] = np.where(adata.obs["array_row"] < 6, "upper", "lower")
    sg.pp.histology_patches(adata, size=48, microns_per_unit=1.0)
    sg.tl.histology_embed(adata)
    sg.tl.predict_expression(adata, 40, group_key="half")
    return adata
