"""Similar spots as context of the decoder, against a dense literal version."""

import anndata as ad
import literal
import numpy as np
import pytest
import torch
from references import SYMBOLS
from scipy import sparse

import sagefm as sg
from sagefm.pp._diffusion import Diffusion, similar_components
from sagefm.tl._impute.request import gene_folds


def expected_imputation(model, adata, fold):
    dense = literal.dense_log1p(adata, SYMBOLS)
    masked = gene_folds(len(SYMBOLS), 4) == fold
    neighborhoods = literal.neighborhoods_of(adata.obsp["sage_connectivities"])
    predicted = literal.run(model.network, dense, neighborhoods, what="predict", center_mask=masked)
    return predicted, np.flatnonzero(masked)


def two_slides(slide):
    both = ad.concat({"a": slide[:60].copy(), "b": slide[60:].copy()}, label="slide", index_unique="-")
    sg.pp.neighborhood_graph(both, library_key="slide")
    return both


def genes_of(adata, masked):
    index = np.array([SYMBOLS.index(name) if name in SYMBOLS else -1 for name in adata.var_names])
    columns = np.flatnonzero(np.isin(index, masked))
    return columns, index[columns]


def test_imputation_reads_the_similar_spots_of_each_slide(slide, sage):
    """Two slides in one object: each as by itself."""
    both = two_slides(slide)
    sg.tl.impute(both, None, sage, reliability=False)
    for name in ("a", "b"):
        one = both[both.obs["slide"] == name].copy()
        sg.pp.neighborhood_graph(one)
        predicted, masked = expected_imputation(sage, one, fold=1)
        columns, genes = genes_of(one, masked)
        found = one.layers["sage_imputed"][:, columns]
        np.testing.assert_allclose(found, predicted[:, genes], atol=1e-5 * np.abs(predicted).max())


def test_few_spots_and_an_option_take_the_neighbors(slide, sage):
    """Fewer than 50 spots have no similar ones worth the name; the literal side knows the rule."""
    few = slide[:45].copy()
    sg.pp.neighborhood_graph(few)
    sg.tl.impute(few, None, sage, reliability=False)
    predicted, masked = expected_imputation(sage, few, fold=0)
    columns, genes = genes_of(few, masked)
    np.testing.assert_allclose(few.layers["sage_imputed"][:, columns], predicted[:, genes], atol=1e-4)
    first = few.layers["sage_imputed"]
    sg.tl.impute(few, None, sage, reliability=False, similar=False)
    np.testing.assert_array_equal(few.layers["sage_imputed"], first)
    assert few.uns["sage_imputed"]["params"]["similar"] is False
    sg.tl.impute(slide, None, sage, reliability=False)
    first = slide.layers["sage_imputed"]
    sg.tl.impute(slide, None, sage, reliability=False, similar=False)
    assert np.nanmax(np.abs(slide.layers["sage_imputed"] - first)) > 0.01


def test_nothing_hidden_is_seen(slide, sage):
    """Another value of a spot's masked gene changes neither its prediction nor what is alike."""
    fold_of = gene_folds(len(SYMBOLS), 4)
    sg.tl.impute(slide, None, sage, reliability=False)
    before = slide.layers["sage_imputed"].copy()
    columns, _ = genes_of(slide, np.flatnonzero(fold_of == 2))
    changed = slide.X.tolil()
    changed[17, columns] = 50
    slide.X = changed.tocsr()
    sg.tl.impute(slide, None, sage, reliability=False)
    after = slide.layers["sage_imputed"]
    np.testing.assert_allclose(after[17, columns], before[17, columns], atol=1e-5)
    assert np.abs(after[:, columns] - before[:, columns]).max() > 0.01  # others see it


def test_a_gain_of_one_is_diffusion_times_depth(slide, sage):
    """With all other weights 0 the model is the strongest plain baseline."""
    network = sg.models.SAGE(len(SYMBOLS), (4, 4)).requires_grad_(False).eval()
    for name, parameter in network.named_parameters():
        parameter.fill_(float(name == "similar_gain"))
    model = sg.models.Model("only similar spots", network, sage.vocabulary)
    table = sg.benchmark.compare_imputation(slide, model)
    found, expected = (table.loc[name].to_numpy() for name in (model.name, "depth-scaled diffusion"))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_reliability_of_diffusion_is_the_same_with_and_without_the_term(slide, sage, tiny):
    columns = ["diffusion_r", "diffusion_r_beyond_depth"]
    genes = slide.var_names[:40].tolist()
    tables = []
    for model, similar in ((sage, True), (sage, False), (tiny, True)):
        sg.tl.impute(slide, genes, model, reliability="diffusion", missing="skip", similar=similar)
        tables.append(slide.uns["sage_imputed"]["reliability"][columns].to_numpy())
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-5)
    np.testing.assert_allclose(tables[0], tables[2], atol=1e-5)


@pytest.mark.parametrize("n_obs", [60, 200])
def test_components_of_few_spots_are_scanpys(n_obs):
    """The products of spots and the genes give the same distances."""
    import scanpy as sc

    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(2.0, (n_obs, 400)).astype(np.float32))
    slide = ad.AnnData(counts.copy())
    sc.pp.normalize_total(slide)
    sc.pp.log1p(slide)
    sc.pp.pca(slide, n_comps=20)
    found = similar_components(counts.log1p(), 20)
    np.testing.assert_allclose(np.abs(found), np.abs(slide.obsm["X_pca"]), atol=1e-2)


def test_components_found_on_some_spots_hold_for_all(monkeypatch):
    """On large slides: what is near by all components is near by those of a sample."""
    from sagefm.pp import _diffusion

    slide = sg.datasets.simulated_visium(20, 20, n_genes=8_000, rng=3)
    log_counts = sparse.csr_matrix(slide.X).log1p()
    domain = slide.obs["domain"].to_numpy()

    def purity():
        weights = Diffusion.over_similar(similar_components(log_counts, 20), n_steps=1).mean(np.eye(slide.n_obs))
        return (weights * (domain[:, None] == domain)).sum() / weights.sum()

    whole = purity()
    monkeypatch.setattr(_diffusion, "FEW_SPOTS", 100)
    monkeypatch.setattr(_diffusion, "MANY_SPOTS", 150)
    assert purity() == pytest.approx(whole, abs=0.05)
    assert whole > 0.6


def test_a_large_slide_has_similar_spots_too():
    """More spots than scanpy compares exactly unless it is told to."""
    rng = np.random.default_rng(0)
    group = rng.integers(300, size=9_000)
    components = (rng.normal(size=(300, 10))[group] * 20 + rng.normal(size=(9_000, 10))).astype(np.float32)
    mean = Diffusion.over_similar(components).mean(np.eye(300)[group])
    assert mean[np.arange(9_000), group].mean() > 0.99


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4])
def test_diffusion_is_the_power_of_its_step_without_the_spot_itself(n_steps):
    rng = np.random.default_rng(1)
    step = sparse.random(2_500, 2_500, 0.01, "csr", np.float32, rng) + sparse.identity(2_500, np.float32, "csr")
    step = sparse.csr_matrix(step.multiply(1 / step.sum(axis=1)))
    values = rng.random((2_500, 3))
    weights = np.linalg.matrix_power(step.toarray().astype(float), n_steps)
    np.fill_diagonal(weights, 0)
    expected = weights @ values / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(Diffusion(step, n_steps).mean(values), expected, rtol=1e-4, atol=1e-6)


def test_perturbation_keeps_the_context(slide, sage):
    """The term shifts predictions under a clamp as it does without."""
    pairs = [("CXCL12", "CXCR4")]
    changes = []
    for gain in (0.0, 1.0):
        weights = sage.network.state_dict() | {"similar_gain": torch.full((len(SYMBOLS),), gain)}
        network = sg.models.SAGE(len(SYMBOLS), sage.hidden).requires_grad_(False).eval()
        network.load_state_dict(weights)
        network.fc_gene.bias.add_(100.0)  # no ReLU in the way
        model = sg.models.Model("shifted", network, sage.vocabulary)
        sg.tl.perturb_lr(slide, pairs, model, n_controls=0, store_spots=True)
        changes.append(slide.obsm["perturb_lr"].to_numpy())
    np.testing.assert_allclose(*changes, atol=1e-4)
    assert np.abs(changes[0]).max() > 1e-3
