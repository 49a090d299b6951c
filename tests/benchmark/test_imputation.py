"""Evaluation of masked predictions, beside baselines, against plain loops."""

import anndata as ad
import literal
import numpy as np
import pandas as pd
import pytest

import sagefm as sg
from sagefm.models._masks import RandomMasks


def test_masks_follow_from_seed_and_spot_alone():
    masks = RandomMasks(500, 0.3, (1, 2))
    spots = np.array([7, 100_000, 3])
    assert masks(spots).float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert (masks(spots)[1] == masks(np.array([100_000]))[0]).all()
    assert (masks(spots) == RandomMasks(500, 0.3, (1, 2))(spots)).all()
    assert (masks(spots) != RandomMasks(500, 0.3, (1, 3))(spots)).any(1).all()
    every = masks(np.arange(2000)).float()
    assert every.mean(0).sub(0.3).abs().max() < 0.06  # each gene
    assert np.corrcoef(every[:-1].flatten(), every[1:].flatten())[0, 1] == pytest.approx(0, abs=0.01)


@pytest.mark.slow
def test_evaluation_is_the_plain_loop(model):
    """Every predictor, from a dense slide and numpy alone."""
    adata = sg.datasets.simulated_visium(n_rows=9, n_cols=9, n_genes=6000)
    sg.pp.neighborhood_graph(adata)
    before = set(adata.var), set(adata.uns)
    table = sg.benchmark.evaluate_imputation(adata, model, rng=3)
    assert (set(adata.var), set(adata.uns)) == before

    sg.pp.align_genes(adata)
    x = np.zeros((adata.n_obs, 14558), dtype=np.float32)
    index = adata.var["sage_gene"].to_numpy()
    x[:, index[index >= 0]] = np.log1p(adata.X.toarray()[:, index >= 0])
    mask = RandomMasks(14558, 0.3, (3, adata.n_obs))(np.arange(adata.n_obs)).numpy()
    neighbors = (adata.obsp["sage_connectivities"] @ x) / 14
    center = x * ~mask
    slide_mean = center.sum(0) / (~mask).sum(0)
    diffused = literal.diffusion_weights(center) @ x

    def scaled(mean):
        return mean * (center.sum(1) / (mean * ~mask).sum(1)).clip(0.2, 5)[:, None]

    expected = {
        "zeros": x * 0,
        "gene mean": np.broadcast_to(model.gene_mean, x.shape),
        "slide mean": np.broadcast_to(slide_mean, x.shape),
        "depth alone": scaled(np.broadcast_to(slide_mean, x.shape)),
        "neighbor mean": neighbors,
        "depth-scaled neighbor mean": scaled(neighbors),
        "depth-scaled diffusion": scaled(diffused),
    }
    for name, prediction in expected.items():
        plain = sg.benchmark.imputation_metrics(prediction, x, mask)
        assert table.loc[name].to_dict() == pytest.approx(plain.to_dict(), rel=1e-3, abs=1e-4, nan_ok=True), name
    assert list(table.index) == [model.name, *expected]
    genes = sg.benchmark.evaluate_imputation(adata, model, rng=3, by="gene")
    assert genes.loc[model.name].index.tolist() == list(model.vocabulary.symbols)
    often = genes.loc["depth alone"].query("detection > 0.3")
    assert often["r_beyond_depth"].mean() == pytest.approx(table.loc["depth alone", "r_beyond_depth"])
    classes = sg.benchmark.evaluate_imputation(adata, model, rng=3, by="detection")
    high = classes.loc[model.name].loc[["30%-60%", "60%-100%"]]
    mean = np.average(high["r_beyond_depth"], weights=high["n_genes"])
    assert mean == pytest.approx(table.loc[model.name, "r_beyond_depth"], abs=1e-6)
    with pytest.raises(ValueError, match="by="):
        sg.benchmark.evaluate_imputation(adata, model, by="spot")


@pytest.mark.slow
def test_evaluation_keeps_slides_apart(model):
    slides = [sg.datasets.simulated_visium(n_rows=8, n_cols=8, n_genes=6000, rng=i) for i in range(2)]
    for slide in slides:
        sg.pp.neighborhood_graph(slide)
    apart = sg.benchmark.evaluate_imputation(slides, model)
    both = ad.concat(slides, label="slide", index_unique="-", join="outer", merge="first")
    sg.pp.neighborhood_graph(both, library_key="slide")
    together = sg.benchmark.evaluate_imputation(both, model, library_key="slide")
    # The masks differ, so the figures agree only about.
    pd.testing.assert_series_equal(apart["r_within"], together["r_within"], atol=0.02)
    pd.testing.assert_series_equal(apart["attainable_r"], together["attainable_r"])
    assert (apart["n_spots"] == together["n_spots"]).all()
    with pytest.raises(KeyError, match="library_key='nothing'"):
        sg.benchmark.evaluate_imputation(both, model, library_key="nothing")
    with pytest.raises(ValueError, match="no section"):
        sg.benchmark.evaluate_imputation([], model)
    with pytest.raises(ValueError, match="mask_fraction"):
        sg.benchmark.evaluate_imputation(both, model, mask_fraction=0)


@pytest.mark.slow
def test_baselines_on_a_real_section(section, model):
    """What makes the neighbors' mean hard to beat is there, and depth adds to it."""
    adata = section("her2st_G1")
    sg.pp.neighborhood_graph(adata)
    table = sg.benchmark.evaluate_imputation(adata, model)
    names = ["zeros", "slide mean", "neighbor mean", "depth-scaled neighbor mean"]
    assert table.loc[names, "rmse"].is_monotonic_decreasing
    assert table.loc["depth-scaled neighbor mean", "r_within"] > 1.3 * table.loc["neighbor mean", "r_within"]


@pytest.mark.slow
def test_mini_knows_more_than_depth_and_neighbors_of_a_real_section(section):
    """Of a donor that training saw; on others see docs/evaluation."""
    adata = section("CRC_16")
    sg.pp.neighborhood_graph(adata)
    table = sg.benchmark.evaluate_imputation(adata, "sagefm-mini")
    assert table["r_beyond_depth"].idxmax() == "sagefm-mini"
    rivals = table.loc[["depth alone", "neighbor mean", "depth-scaled neighbor mean"]]
    assert table.loc["sagefm-mini", "rmse"] < rivals["rmse"].min()
    assert table.loc["depth alone", "r_within"] > table.loc["depth-scaled neighbor mean", "r_within"]
    assert table.loc["depth alone", "r_beyond_depth"] < table.loc["depth-scaled neighbor mean", "r_beyond_depth"]
    assert 0.1 < table.loc["sagefm-mini", "share_attained"] < 1


def test_comparison_is_the_plain_loop(slide, model):
    """The spatial mean and kNN, spot by spot, from dense arrays; the model from its own imputation."""
    from sagefm.tl._impute.request import gene_folds

    table = sg.benchmark.compare_imputation(slide, model, n_components=8, n_neighbors=6)
    sg.tl.impute(slide, None, model, reliability=False)
    known = np.flatnonzero(slide.var["sage_gene"] >= 0)
    truth = np.log1p(slide.X[:, known].toarray())
    everything = np.ones(truth.shape, dtype=bool)
    imputed = slide.layers["sage_imputed"][:, known]
    for metric, value in sg.benchmark.imputation_metrics(imputed, truth, everything).items():
        # The plain metrics don't know the depth that a fold leaves.
        if metric not in ("n_genes", "r_beyond_depth", "share_attained") and "attainable" not in metric:
            assert table.loc[model.name, metric] == pytest.approx(value, rel=1e-3, abs=1e-4), metric
    mean = slide.obsp["sage_connectivities"] @ truth / 14
    plain = sg.benchmark.imputation_metrics(mean, truth, everything)
    assert table.loc["neighbor mean", "rmse"] == pytest.approx(plain["rmse"], rel=1e-4)
    assert table.loc["neighbor mean", "r_within"] == pytest.approx(plain["r_within"], abs=1e-3)
    fold_of = gene_folds(len(model.vocabulary), 4)[slide.var["sage_gene"].to_numpy()[known]]
    nearest = np.empty_like(truth)
    import scanpy as sc

    for fold in range(4):
        shown = ad.AnnData(slide.X[:, known][:, fold_of != fold].copy())
        sc.pp.normalize_total(shown)
        sc.pp.log1p(shown)
        sc.pp.pca(shown, n_comps=8, random_state=0)
        x = shown.obsm["X_pca"]
        for spot in range(len(x)):
            distance = ((x - x[spot]) ** 2).sum(axis=1)
            distance[spot] = np.inf
            nearest[spot, fold_of == fold] = truth[np.argsort(distance)[:6]][:, fold_of == fold].mean(axis=0)
    found = sg.benchmark.imputation_metrics(nearest, truth, everything)
    assert table.loc["kNN in PCA", "rmse"] == pytest.approx(found["rmse"], rel=1e-3)
    assert table.loc["kNN in PCA", "r2_spot"] == pytest.approx(found["r2_spot"], abs=2e-3)


def test_smoothers_never_see_what_they_predict(slide):
    """What is one spot's alone can't be predicted there."""
    from sagefm.pp._diffusion import Diffusion, similar_components

    for n_steps in (1, 2, 3):
        similar = Diffusion.over_similar(similar_components(slide.X.log1p()), n_neighbors=8, n_steps=n_steps)
        weights = similar.mean(np.eye(slide.n_obs))
        np.testing.assert_allclose(np.diag(weights), 0, atol=1e-7)
        assert weights.min() > -1e-7
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def test_comparison_refusals(slide, model):
    with pytest.raises(ValueError, match="too few for n_components=500"):
        sg.benchmark.compare_imputation(slide, model, n_components=500)
    with pytest.raises(ValueError, match="no section"):
        sg.benchmark.compare_imputation([], model)


def test_spots_that_are_alike_dont_break_the_diffusion(slide, model):
    dense = slide.X.toarray()
    dense[30:60] = dense[30]
    slide.X = type(slide.X)(dense)
    table = sg.benchmark.compare_imputation(slide, model, n_components=5)
    assert np.isfinite(table.loc["diffusion", ["rmse", "r_within"]].astype(float)).all()
    assert table.loc["diffusion", "rmse"] < table.loc["zeros", "rmse"]
    slide.X = slide.X * 0
    with pytest.raises(ValueError, match="no counts of the model's genes"):
        sg.benchmark.compare_imputation(slide, model, n_components=5)
