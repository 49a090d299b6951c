"""The objective, and the basis of the niche."""

from dataclasses import replace

import literal
import numpy as np
import pytest
import torch

import sagefm as sg
from sagefm.train._module import MaskedCenter, masked_squared_error
from sagefm.train._niche import Niche
from sagefm.train._stream import Stream

RECIPE = replace(sg.train.PRESETS["mini"], hidden=(12, 8), batch_size=40, max_epochs=2, learning_rate=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "similar"), [(sg.models.GCN, 0.0), (sg.models.SAGE, 0.0), (sg.models.SAGE, 1.0)]
)
def test_step_trains_what_the_literal_step_trains(corpus, architecture, similar):
    """Loss and gradients of a batch against one complete PyG graph a spot, masks as the stream drew them."""
    torch.manual_seed(0)
    is_sage = architecture is sg.models.SAGE
    network = architecture(14558, (12, 8) if is_sage else (12, 8, 8, 8, 10)).eval()
    if is_sage:
        with torch.no_grad():
            network.gain.normal_(0.5, 0.1)
            network.similar_gain.normal_(0.5, 0.1)
    adata = corpus.read("s2")
    x = np.log1p(adata.X.toarray().astype(np.float32))
    neighborhoods = literal.neighborhoods_of(adata.obsp["sage_connectivities"])
    ((_, spots),) = Stream(corpus, "validate", batch_size=1000, mask_fraction=0.3, similar=similar, shuffle=False)

    total = torch.zeros(())
    for center, graph in enumerate(literal.ego_graphs(x, neighborhoods)):
        mask = spots.mask[center]
        graph.x[0, mask] = 0
        extra = {"masked": mask[None], "similar": spots.similar[[center]]} if is_sage else {}
        prediction = network(graph.x, graph.edge_index, **extra)[0]
        total = total + ((prediction - torch.from_numpy(x[center])) ** 2)[mask].sum()
    expected_loss = total / spots.mask.sum()
    expected_loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}

    network.zero_grad()
    module = MaskedCenter(network, corpus, RECIPE)
    loss = masked_squared_error(module(spots)[0], spots.center, spots.mask) / spots.mask.sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    for name, parameter in network.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max(), name


@pytest.mark.parametrize(
    ("architecture", "hidden"), [(sg.models.GCN, (12, 8, 8, 8, 10)), (sg.models.SAGE, (12, 8)), (sg.models.SAGE, (12,))]
)
def test_another_basis_predicts_the_same(architecture, hidden):
    torch.manual_seed(0)
    network = architecture(14558, hidden).eval().requires_grad_(False)
    x = torch.rand(15, 14558)
    edges = literal.complete_edges(15)
    matrix = torch.rand(hidden[-1], hidden[-1]) + torch.eye(hidden[-1])
    prediction, embedding = network(x, edges), network.embed(x, edges)
    network.change_basis(matrix)
    torch.testing.assert_close(network.embed(x, edges), embedding @ matrix, atol=1e-4, rtol=0)
    torch.testing.assert_close(network(x, edges), prediction, atol=1e-4, rtol=0)


def test_basis_keeps_the_distances_of_the_niche(corpus):
    niche = Niche.fit(corpus, 20)
    z = torch.randn(50, 20)
    turned, mapped = torch.pdist(z @ niche.basis()), torch.pdist(z @ niche.map.weight.T)
    assert (turned / mapped).detach().numpy() == pytest.approx(1, abs=0.05)


def test_niche_tells_domains_apart_and_not_depth(corpus, slides):
    niche = Niche.fit(corpus, 20)
    ((_, spots),) = Stream(corpus, "validate", batch_size=1000, mask_fraction=0.3, shuffle=False)
    target = niche.target(spots)
    # The mean of 15 equal spots and of ones half as deep.
    counts = torch.expm1(spots.center)
    deep, thin = (spots._replace(center=x, neighbor_sum=14 * x) for x in (counts.log1p(), (counts / 2).log1p()))
    assert torch.allclose(niche.target(deep), niche.target(thin), atol=1e-3)
    domain = slides["s2"].obs["domain"][corpus.read("s2").obs_names]
    means = np.stack([target[(domain == name).to_numpy()].mean(0) for name in domain.unique()])
    assert means.std(0).max() > 0.3 * target.std(0).max()
