"""The float32 engine against a literal forward pass in float64, and extreme counts."""

import catalogue
import literal
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import sagefm as sg
from sagefm.models._vocabulary import Vocabulary
from sagefm.tl._impute.request import gene_folds

TOLERANCE = 1e-5  # of the largest value
N_SPOTS = 40


def random_slide(rng, n_genes, n_lacking, density, depth):
    """Counts of any shape on any graph: 1 to 20 neighbors a spot, islands among them."""
    names = [f"G{i}" for i in range(n_genes)]
    measured = np.sort(rng.permutation(n_genes)[: n_genes - n_lacking])
    rate = rng.lognormal(np.log(depth), 1.5, (N_SPOTS, len(measured)))
    counts = rng.poisson(rate) * (rng.random(rate.shape) < density)
    adata = AnnData(sparse.csr_matrix(counts.astype(np.float32)), var=pd.DataFrame(index=np.array(names)[measured]))
    graph = np.zeros((N_SPOTS, N_SPOTS))
    for spot, n in enumerate(rng.integers(1, 21, N_SPOTS)):
        others = np.setdiff1d(np.arange(N_SPOTS), spot)
        graph[spot, rng.choice(others, n, replace=False)] = 1
    adata.obsp["sage_connectivities"] = sparse.csr_matrix(graph)
    return adata, Vocabulary("random", tuple(names)), measured


def random_network(rng, n_genes):
    """Either family, of random depth and width, with every parameter random."""
    torch.manual_seed(int(rng.integers(2**31)))
    if rng.random() < 0.5:
        network = sg.models.GCN(n_genes, tuple(int(width) for width in rng.integers(2, 40, 5)))
    else:
        widths = tuple(int(width) for width in rng.integers(2, 40, rng.integers(1, 5)))
        network = sg.models.SAGE(n_genes, widths)
    network.requires_grad_(False).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias") or name.endswith("gain"):
            parameter.normal_(std=0.3)
    return network


def doubled(network, n_genes):
    """The same network in float64."""
    reference = type(network)(n_genes, network.hidden).requires_grad_(False).eval()
    reference.load_state_dict(network.state_dict())
    return reference.double()


def in_float64(adata, vocabulary):
    """log1p counts of the vocabulary, dense, never in less than float64."""
    dense = np.zeros((adata.n_obs, len(vocabulary)))
    dense[:, vocabulary.find_symbols(adata.var_names)] = adata.X.toarray().astype(np.float64)
    return np.log1p(dense)


def error(found, expected):
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 20))])
def test_random_configurations(seed):
    rng = np.random.default_rng(seed)
    n_genes = int(rng.integers(40, 400))
    n_lacking = int(rng.integers(1, n_genes // 3))
    depth = 10.0 ** rng.uniform(-1, 4)
    adata, vocabulary, measured = random_slide(rng, n_genes, n_lacking, rng.uniform(0.05, 1), depth)
    model = sg.models.Model("random", random_network(rng, n_genes), vocabulary)
    neighborhoods = literal.neighborhoods_of(adata.obsp["sage_connectivities"])
    dense = in_float64(adata, vocabulary)
    reference = doubled(model.network, n_genes)

    batch_size = int(rng.integers(1, 60))
    sg.tl.sage_embed(adata, model, device="cpu", batch_size=batch_size)
    assert error(adata.obsm["X_sage"], literal.run(reference, dense, neighborhoods)) < TOLERANCE

    n_folds = int(rng.integers(2, 6))
    absent = [vocabulary.symbols[gene] for gene in np.setdiff1d(np.arange(n_genes), measured)]
    options = {"n_folds": n_folds, "reliability": False, "device": "cpu", "batch_size": batch_size}
    sg.tl.impute(adata, [*adata.var_names, *absent], model, **options)
    fold_of = gene_folds(n_genes, n_folds)
    for fold in range(n_folds):
        masked = fold_of == fold
        expected = literal.run(reference, dense, neighborhoods, what="predict", center_mask=masked)
        columns = np.flatnonzero(masked[measured])
        assert error(adata.layers["sage_imputed"][:, columns], expected[:, measured[columns]]) < TOLERANCE
    unmasked = literal.run(reference, dense, neighborhoods, what="predict")
    expected = unmasked[:, vocabulary.find_symbols(absent)]
    assert error(adata.obsm["sage_imputed"][absent].to_numpy(), expected) < TOLERANCE


EXTREMES = [0.0, 1.0, 255.0, 65_535.0, 2.0**24, 2.0**31]  # larger ones are refused


@pytest.fixture(scope="module")
def kit():
    return catalogue.make_kit(catalogue.plain_slide())


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.sampled_from(EXTREMES), min_size=5, max_size=40),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**16),
)
def test_no_gap_comes_from_finite_counts(kit, values, dtype, seed):
    rng = np.random.default_rng(seed)
    adata = catalogue.plain_slide()
    counts = adata.X.toarray().astype(dtype)
    counts[rng.integers(0, 110, len(values)), rng.integers(0, 300, len(values))] = values
    counts[rng.integers(0, 110)] = rng.choice(values)  # a spot of one value
    adata.X = sparse.csr_matrix(counts)
    sg.pp.neighborhood_graph(adata)
    sg.tl.sage_embed(adata, kit.model, device="cpu")
    sg.tl.impute(adata, ["KRT8", "COL1A1", kit.absent], kit.model, device="cpu")
    sg.tl.perturb_lr(adata, catalogue.PAIRS, kit.model, n_controls=0, device="cpu")
    sg.tl.gene_sensitivity(adata, ["KRT8"], ["DCN"], model=kit.model, device="cpu")
    columns = adata.var_names.get_indexer(["KRT8", "COL1A1"])
    for found in (
        adata.obsm["X_sage"],
        adata.layers["sage_imputed"][:, columns],
        adata.obsm["sage_imputed"].to_numpy(),
        adata.uns["gene_sensitivity"]["results"].to_numpy(),
        adata.uns["perturb_lr"]["results"]["effect"].to_numpy(),
    ):
        assert np.isfinite(found.astype(float)).all()


def test_predictions_of_extreme_counts_match_the_reference():
    """A spot of two billion counts a gene among spots of a few."""
    rng = np.random.default_rng(3)
    adata, vocabulary, _ = random_slide(rng, 60, 5, 0.5, 3.0)
    adata.X[0] = 2.0**31
    adata.X[1] = 2.0**24
    network = random_network(rng, 60)
    model = sg.models.Model("random", network, vocabulary)
    sg.tl.sage_embed(adata, model, device="cpu")
    neighborhoods = literal.neighborhoods_of(adata.obsp["sage_connectivities"])
    expected = literal.run(doubled(network, 60), in_float64(adata, vocabulary), neighborhoods)
    assert error(adata.obsm["X_sage"], expected) < TOLERANCE
