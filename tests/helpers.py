"""Paths and models that tests of several folders use."""

import os
from pathlib import Path

import torch

import sagefm as sg
from sagefm.models._vocabulary import hest1k

ROOT = Path(__file__).parents[1]  # of the repository
SECTIONS = Path(os.environ.get("SAGEFM_TEST_SECTIONS", ROOT.parent / "shared" / "data"))


def random_model(hidden, architecture=sg.models.GCN):
    """Model with random weights, all terms of which count."""
    torch.manual_seed(0)
    network = architecture(len(hest1k()), hidden).requires_grad_(False).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias") or name == "gain":
            parameter.normal_(std=0.1)
    if architecture is sg.models.SAGE:
        network.similar_gain.normal_(std=0.1).abs_()  # positive, else the ReLU would hide genes
    return sg.models.Model("random", network, hest1k())
