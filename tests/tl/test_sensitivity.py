"""Sensitivities are gradients."""

from dataclasses import replace

import literal
import numpy as np
import pytest
import torch
from perturbation import SYMBOLS, awake, gene

import sagefm as sg


@pytest.mark.parametrize("family", ["tiny", "sage"])
@pytest.mark.parametrize("mask", ["all", "none"])
@pytest.mark.parametrize("wrt", ["neighbors", "center"])
def test_sensitivity_is_the_gradient(slide, family, mask, wrt, request):
    model = awake(request.getfixturevalue(family))
    genes, targets = ["CXCL12", "COL1A1", "CD74"], ["CXCR4", "COL1A1"]
    sg.tl.gene_sensitivity(slide, genes, targets, model=model, mask=mask, wrt=wrt, store_spots=True)
    spots = slide.obsm["gene_sensitivity"].to_numpy().reshape(slide.n_obs, 3, 2)
    assert slide.uns["gene_sensitivity"]["results"].to_numpy() == pytest.approx(spots.mean(0), abs=1e-6)
    dense = torch.from_numpy(literal.dense_log1p(slide, SYMBOLS))
    graph = slide.obsp["sage_connectivities"]
    index, read = [gene(name) for name in genes], [gene(name) for name in targets]
    masked = np.array(read if mask == "all" else [], dtype=int)
    alike = literal.similar_mean(dense.numpy(), masked, literal.neighborhoods_of(graph))
    for spot in (0, 50, 109):
        neighbors = dense[graph.indices[graph.indptr[spot] : graph.indptr[spot + 1]]]

        def predict(values, spot=spot, neighbors=neighbors):
            center, around = dense[spot].clone(), neighbors.clone()
            if wrt == "neighbors":  # all of them move together
                around[:, index] += values - neighbors[:, index].mean(0)
            else:
                center[index] = values
            observed = dense[spot].clone()
            if mask == "all":
                center[read], observed[read] = 0, 0
            x = torch.cat([center[None], around])
            batch = literal.Data(x=x, edge_index=literal.complete_edges(len(x)), ptr=torch.tensor([0, len(x)]))
            depth = similar = None
            if model.architecture == "sage":
                seen = np.concatenate([observed[None].numpy(), neighbors.numpy()])
                depth = torch.tensor([literal._depth(seen, masked)])
                similar = torch.from_numpy(alike[[spot]])
            return literal.predict_center(model.network, batch, depth, similar)[0, read]

        at = neighbors[:, index].mean(0) if wrt == "neighbors" else dense[spot, index]
        expected = torch.autograd.functional.jacobian(predict, at).T
        assert spots[spot] == pytest.approx(expected.numpy(), abs=1e-5)
    assert np.abs(spots).max() > 1e-4


@pytest.mark.parametrize("wrt", ["neighbors", "center"])
def test_sensitivity_of_a_gene_that_no_spot_shows(slide, sage, wrt):
    """Its mean in training, which stands for the means over other spots, doesn't move with them."""
    missing = next(symbol for symbol in SYMBOLS if symbol not in slide.var_names)
    typical = np.full(len(SYMBOLS), 0.5, dtype=np.float32)
    model = replace(sage, gene_mean=typical)
    sg.tl.gene_sensitivity(slide, ["CXCL12", missing], [missing], model=model, wrt=wrt, mask="none", store_spots=True)
    spots = slide.obsm["gene_sensitivity"].to_numpy()
    dense, graph = literal.dense_log1p(slide, SYMBOLS), slide.obsp["sage_connectivities"]
    index, target = [gene("CXCL12"), gene(missing)], gene(missing)
    network = sage.network
    for spot in (0, 50):
        x = torch.from_numpy(dense[[spot, *graph[spot].indices]])
        ratio = np.clip(dense[spot].sum() / typical[np.isin(SYMBOLS, slide.var_names)].sum(), 0.2, 5)
        own = float(ratio * 0.5) * (network.gain + network.similar_gain)[target]

        def predict(values, x=x, own=own):
            moved = x.clone()
            rows = slice(1, None) if wrt == "neighbors" else slice(1)
            moved[rows, index] += values
            z = network.embed(moved, literal.complete_edges(len(moved)))[:1]
            return torch.relu(network.fc_gene(z)[0, target] + own)

        expected = torch.autograd.functional.jacobian(predict, torch.zeros(2))
        assert spots[spot] == pytest.approx(expected.numpy(), abs=1e-5)
    assert np.abs(spots).max() > 1e-4


def test_sensitivity_predicts_a_small_perturbation(slide, sage):
    """Finite differences, through perturb_lr's own path: the highest level is a little above what was observed."""
    sg.tl.gene_sensitivity(slide, ["CXCL12"], ["CXCR4"], model=sage, store_spots=True)
    slope = slide.obsm["gene_sensitivity"].iloc[:, 0].to_numpy()
    dense = literal.dense_log1p(slide, SYMBOLS)
    neighborhoods = literal.neighborhoods_of(slide.obsp["sage_connectivities"])
    mean = slide.obsp["sage_connectivities"] @ dense[:, gene("CXCL12")] / 14
    masked, step = np.array([gene("CXCR4")]), 1e-2
    for spot in (3, 60):
        up, down = (
            literal.perturbed(
                sage.network,
                dense,
                [neighborhoods[spot]],
                {gene("CXCL12"): np.float32(mean[spot] + sign * step)},
                masked,
            )[0, gene("CXCR4")]
            for sign in (1, -1)
        )
        assert (up - down) / (2 * step) == pytest.approx(slope[spot], abs=2e-3)
