"""Slides that a model was trained on are known again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import random_model
from safetensors.torch import load_file, save_file
from scipy import sparse

import sagefm as sg
from sagefm.models._seen import MIN_SHOWN, hash_spots, hashed_genes
from sagefm.models._vocabulary import hest1k


def in_vocabulary(adata):
    index = hest1k().find_symbols(adata.var_names)
    counts = sparse.lil_matrix((adata.n_obs, len(hest1k())), dtype=np.float32)
    counts[:, index[index >= 0]] = adata.X[:, index >= 0]
    return counts.tocsr()


@pytest.fixture
def trained(slide):
    """A model that was trained on the slide, as far as its card can tell."""
    counts = in_vocabulary(slide)
    mean = np.asarray(counts.log1p().mean(axis=0)).ravel().astype(np.float32)
    hashes, enough = hash_spots(counts, hashed_genes(mean))
    assert enough.all()
    model = random_model((8, 8), sg.models.SAGE)
    return replace(model, gene_mean=mean, trained_spots=np.unique(hashes))


def check(adata, model):
    sg.pp.neighborhood_graph(adata)
    sg.pp.assess(adata, model)
    return adata.uns["sage_assessment"]["checks"].loc["training"]


def test_the_card_knows_the_slide_again(slide, trained):
    found = check(slide, trained)
    assert (found["value"], found["verdict"]) == (1.0, "with care")
    assert "flatters" in found["text"]


def test_filters_dont_hide_it(slide, trained):
    """Fewer spots, without rare genes, in another order."""
    rare = np.asarray((slide.X > 0).mean(axis=0)).ravel() < 0.1
    kept = slide[::3, ~rare].copy()
    kept = kept[:, np.random.default_rng(0).permutation(kept.n_vars)].copy()
    assert check(kept, trained)["value"] > 0.9


def test_another_slide_is_not_taken_for_it(trained):
    other = sg.datasets.simulated_visium(10, 11, n_genes=10_500, rng=7)
    found = check(other, trained)
    assert (found["value"], found["verdict"]) == (0.0, "fine")


def test_one_count_makes_another_spot(slide, trained):
    counts, genes = in_vocabulary(slide), hashed_genes(trained.gene_mean)
    before, _ = hash_spots(counts, genes)
    counts = counts.tolil()
    counts[5, genes[3]] += 1
    after, _ = hash_spots(counts.tocsr(), genes)
    assert np.flatnonzero(before != after).tolist() == [5]
    nearly_empty = sparse.csr_matrix((np.ones(3), ([0, 0, 0], genes[:3])), (1, counts.shape[1]))
    assert MIN_SHOWN > 3
    assert not hash_spots(nearly_empty, genes)[1].any()


def test_without_hashes_nothing_is_said(slide, trained):
    sg.pp.neighborhood_graph(slide)
    sg.pp.assess(slide, replace(trained, trained_spots=None))
    assert "training" not in slide.uns["sage_assessment"]["checks"].index


def test_files_keep_the_hashes(trained, tmp_path):
    file = trained.save(tmp_path / "model.safetensors", half=True)
    loaded = sg.models.load(file)
    np.testing.assert_array_equal(loaded.trained_spots, trained.trained_spots)
    np.testing.assert_array_equal(hashed_genes(loaded.gene_mean), hashed_genes(trained.gene_mean))
    tensors = load_file(file)
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        header = {"sagefm": opened.metadata()["sagefm"]}
    tensors["trained_spots"] = tensors["trained_spots"].to(torch.int32)
    save_file(tensors, file, metadata=header)
    with pytest.raises(ValueError, match="not a list of hashes"):
        sg.models.load(file)
