"""The engine against the literal pipeline: one complete PyG graph per spot, at published size, on real sections."""

from copy import deepcopy
from dataclasses import replace

import literal
import numpy as np
import pytest
import torch
from helpers import random_model

import sagefm as sg
from sagefm.models._vocabulary import hest1k
from sagefm.tl._impute.request import gene_folds

N_SPOTS = 60  # of each slide; the literal side takes about 10 ms a spot
N_PATCH = 200  # spots of a section, from its middle
TOLERANCE = 1e-5  # of the largest value

SECTIONS = ["her2st_G2", "CRC_16", "JEF_eevee_breast"]
SLIDES = ["simulated", *(pytest.param(name, marks=pytest.mark.sections) for name in SECTIONS)]


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.fixture
def prepared(request):
    """Slide with graph and genes, and what the literal pipeline needs of it."""
    name = request.param
    if name == "simulated":
        adata = sg.datasets.simulated_visium(12, 14, n_genes=11_000, rng=2)
    else:
        adata = request.getfixturevalue("section")(name)
        from_middle = np.linalg.norm(adata.obsm["spatial"] - np.median(adata.obsm["spatial"], axis=0), axis=1)
        adata = adata[np.sort(np.argsort(from_middle, kind="stable")[:N_PATCH])].copy()
    sg.pp.neighborhood_graph(adata)
    sg.pp.align_genes(adata)
    dense = literal.dense_log1p(adata, hest1k().symbols, adata.var["sage_gene"].to_numpy())
    spots = np.sort(np.random.default_rng(0).choice(adata.n_obs, N_SPOTS, replace=False))
    neighborhoods = [literal.neighborhoods_of(adata.obsp["sage_connectivities"])[i] for i in spots]
    return adata, dense, spots, neighborhoods


@pytest.fixture
def model(request):
    return request.getfixturevalue(request.param)


MODELS = [pytest.param("published_size", marks=pytest.mark.slow), "sage"]


@pytest.mark.parametrize("model", MODELS, indirect=True)
@pytest.mark.parametrize("prepared", SLIDES, indirect=True)
def test_embedding(prepared, model):
    adata, dense, spots, neighborhoods = prepared
    sg.tl.sage_embed(adata, model, device="cpu")
    expected = literal.run(model.network, dense, neighborhoods)
    assert error(adata.obsm["X_sage"][spots], expected) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["center", "everywhere"])
@pytest.mark.parametrize("model", MODELS, indirect=True)
@pytest.mark.parametrize("prepared", SLIDES[:3], indirect=True)
def test_masked_predictions(prepared, model, mask):
    adata, dense, spots, neighborhoods = prepared
    sg.tl.impute(adata, None, model, mask=mask, device="cpu")
    index = adata.var["sage_gene"].to_numpy()
    found = adata.layers["sage_imputed"][spots]
    assert np.isnan(found[:, index < 0]).all()
    fold_of = gene_folds(len(hest1k()), 4)
    for fold in range(2):  # each costs a literal pass
        masked = fold_of == fold
        expected = literal.run(model.network, dense, neighborhoods, what="predict", **{f"{mask}_mask": masked})
        columns = np.flatnonzero((index >= 0) & masked[index])
        assert len(columns) > 2000
        assert error(found[:, columns], expected[:, index[columns]]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("prepared", SLIDES[1:2], indirect=True)
def test_predictions_of_absent_genes(prepared, published_size):
    """Genes that the slide lacks are predicted with nothing masked."""
    adata, dense, spots, neighborhoods = prepared
    absent = adata.uns["sage_genes"]["missing"]
    assert len(absent) > 1000
    sg.tl.impute(adata, absent, published_size, device="cpu")
    expected = literal.run(published_size.network, dense, neighborhoods, what="predict")
    found = adata.obsm["sage_imputed"]
    assert found.columns.tolist() == absent
    assert error(found.to_numpy()[spots], expected[:, hest1k().find_symbols(absent)]) < TOLERANCE
    assert "sage_imputed" not in adata.layers


@pytest.mark.parametrize("prepared", SLIDES[:2], indirect=True)
def test_the_mean_in_training_stands_for_what_no_spot_shows(prepared, sage):
    """Absent genes, and genes masked in all spots, by a model that reads its genes in other spots."""
    adata, dense, spots, neighborhoods = prepared
    typical = np.random.default_rng(0).exponential(0.3, len(hest1k())).astype(np.float32)
    model, index = replace(sage, gene_mean=typical), adata.var["sage_gene"].to_numpy()
    lacking = ~np.isin(np.arange(len(hest1k())), index)
    absent = adata.uns["sage_genes"]["missing"]
    sg.tl.impute(adata, absent, model, device="cpu", reliability=False)
    expected = literal.of_unseen(sage.network, dense, neighborhoods, lacking, typical)
    columns = np.searchsorted(np.flatnonzero(lacking), hest1k().find_symbols(absent))
    assert error(adata.obsm["sage_imputed"].to_numpy()[spots], expected[:, columns]) < TOLERANCE

    sg.tl.impute(adata, None, model, mask="everywhere", device="cpu", reliability=False)
    unseen = (gene_folds(len(hest1k()), 4) == 1) | lacking
    expected = literal.of_unseen(sage.network, dense, neighborhoods, unseen, typical)
    columns = np.flatnonzero((index >= 0) & unseen[index])
    places = np.searchsorted(np.flatnonzero(unseen), index[columns])
    assert error(adata.layers["sage_imputed"][spots][:, columns], expected[:, places]) < TOLERANCE


@pytest.mark.slow
def test_whole_pipeline_on_a_section(section, published_size):
    """Nothing shared: the literal side finds its own neighbors and its own genes."""
    adata = section("her2st_G2")
    known = hest1k().find_symbols(adata.var_names) >= 0
    adata = adata[:, known].copy()  # by symbol alone, as the literal side reads it
    sg.pp.neighborhood_graph(adata)
    sg.tl.sage_embed(adata, published_size, device="cpu")
    neighborhoods = literal.nearest_spots(adata.obsm["spatial"])[:N_SPOTS]
    expected = literal.run(published_size.network, literal.dense_log1p(adata, hest1k().symbols), neighborhoods)
    assert error(adata.obsm["X_sage"][:N_SPOTS], expected) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "sage"], indirect=True)
def test_irregular_graph(slide, model):
    """A user's graph: every spot is one of a complete graph of its own size; weights and diagonal don't count."""
    import squidpy as sq

    sq.gr.spatial_neighbors(slide, n_rings=1, coord_type="grid", n_neighs=6)
    graph = slide.obsp["spatial_connectivities"]
    graph.data[graph.indptr[5] : graph.indptr[6]] = 0  # a spot by itself
    graph.eliminate_zeros()
    assert len(np.unique(np.diff(graph.indptr))) > 1
    sg.tl.sage_embed(slide, model, connectivity_key="spatial", device="cpu")
    dense = literal.dense_log1p(slide, hest1k().symbols)
    expected = literal.run(model.network, dense, literal.neighborhoods_of(graph), batch_size=1)
    assert error(slide.obsm["X_sage"], expected) < TOLERANCE

    weighted = (graph * 0.3).tolil()
    weighted.setdiag(5.0)
    slide.obsp["mine_connectivities"] = weighted.tocsr()
    sg.tl.sage_embed(slide, model, connectivity_key="mine_connectivities", key_added="X_mine", device="cpu")
    np.testing.assert_array_equal(slide.obsm["X_mine"], slide.obsm["X_sage"])


def test_nodes_are_equal_after_the_first_layer(tiny):
    """The collapse: on a complete graph the published network gives every node one state."""
    x = torch.rand(15, len(hest1k()))
    states = tiny.network.embed(x, literal.complete_edges(15))
    assert (states - states[0]).abs().max() < 1e-6 * states.abs().max()


@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_networks_of_other_depths(slide, n_layers, tmp_path):
    """The architecture search tries four and five convolutions; the paper's text doesn't rule out others."""
    model = random_model((9, 8, 7, 6)[:n_layers])
    torch.save({"model_state_dict": model.weights.state_dict()}, tmp_path / "checkpoint.pt")
    loaded = sg.models.load(tmp_path / "checkpoint.pt")
    assert loaded.hidden == model.hidden
    sg.tl.sage_embed(slide, loaded, device="cpu")
    neighborhoods = literal.neighborhoods_of(slide.obsp["sage_connectivities"])[:20]
    expected = literal.run(model.network, literal.dense_log1p(slide, hest1k().symbols), neighborhoods)
    assert error(slide.obsm["X_sage"][:20], expected) < TOLERANCE


def test_sage_spelled_out(sage):
    """The GraphSAGE network at one spot, in the words of its definition."""
    rng = np.random.default_rng(0)
    x = rng.poisson(0.5, size=(15, len(hest1k()))).astype(np.float32)
    masked = rng.random(x.shape[1]) < 0.3
    x[0, masked] = 0
    alike = rng.random(x.shape, dtype=np.float32)
    parts = (torch.from_numpy(part) for part in (masked, alike))
    found = sage.network(torch.from_numpy(x), literal.complete_edges(15), *parts)[0]

    weights = {name: tensor.numpy().astype(float) for name, tensor in sage.network.state_dict().items()}
    mean = x[1:].mean(axis=0)
    h = x[0] @ weights["conv.lin_r.weight"].T + mean @ weights["conv.lin_l.weight"].T + weights["conv.lin_l.bias"]
    for i in range(2):
        h = np.where(h > 0, h, 0.01 * h) @ weights[f"linear.{i}.weight"].T + weights[f"linear.{i}.bias"]
    depth = np.sqrt(np.clip(x[0, ~masked].sum() / mean[~masked].sum(), 0.2, 5))
    output = h @ weights["fc_gene.weight"].T + weights["fc_gene.bias"] + weights["gain"] * depth * mean
    output += weights["similar_gain"] * alike[0]
    np.testing.assert_allclose(found, np.maximum(output, 0), atol=1e-4)


@pytest.mark.parametrize("model", ["tiny", "sage"], indirect=True)
def test_training_form_has_the_literal_gradients(model):
    """The differentiable canonical form is the same function of the weights as the graph network."""
    network = deepcopy(model.network).requires_grad_(True)
    x = torch.rand(15, len(hest1k()), generator=torch.Generator().manual_seed(0))
    masked = torch.rand(1, len(hest1k()), generator=torch.Generator().manual_seed(1)) < 0.3
    x[0, masked[0]] = 0
    alike = torch.rand(15, len(hest1k()), generator=torch.Generator().manual_seed(2))
    extra = {"masked": masked, "similar": alike} if network.architecture == "sage" else {}
    network(x, literal.complete_edges(15), **extra)[0].square().mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    neighbors = x[1:].sum(0, keepdim=True)
    network.canonical().forward(x[:1], neighbors, torch.tensor(14.0), masked, alike[:1]).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max(), name
