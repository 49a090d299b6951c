"""Pairs and models that tests of perturbations share."""

import copy

import torch
from helpers import random_model

import sagefm as sg
from sagefm.models._vocabulary import hest1k

SYMBOLS = hest1k().symbols


PAIRS = [("CXCL12", "CXCR4"), ("CXCL12", "CCR7"), ("TGFB1", "TGFBR2"), ("IL6", "IL6R"), ("COL1A1", "COL1A1")]


def gene(name):
    return SYMBOLS.index(name)


def awake(model):
    """The same model with the targets of the tests above the last ReLU."""
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        network.fc_gene.bias.add_(1)
    return sg.models.Model("awake", network, model.vocabulary)


def run(adata, pairs, model, **options):
    options = {"n_controls": 0, "store_spots": True, **options}
    sg.tl.perturb_lr(adata, pairs, model, **options)
    return adata.uns["perturb_lr"]["results"]


def planted_model(pairs, strength):
    """Published architecture that responds to the ligands of some pairs, and a little to every gene."""
    model = random_model((64, 32, 32, 32, 64))
    network = model.network
    with torch.no_grad():
        for unit, (ligand, receptor) in enumerate(pairs):
            for conv in (network.conv1, network.conv2, network.conv3, network.conv4, network.conv5):
                conv.lin.weight[unit] = 0
                conv.lin.weight[:, unit] = 0 if conv is not network.conv1 else conv.lin.weight[:, unit]
                conv.lin.weight[unit, unit if conv is not network.conv1 else gene(ligand)] = 1
                conv.bias[unit] = 0
            network.fc_gene.weight[:, unit] = 0
            network.fc_gene.weight[gene(receptor), unit] = strength
        network.fc_gene.bias.fill_(5)  # above the last ReLU
    return model
