"""Metrics against scipy and closed forms, and the evaluation against plain loops."""

from dataclasses import replace
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import sagefm as sg
from sagefm.benchmark._missingness import _critical
from sagefm.models._masks import RandomMasks
from sagefm.models._scores import RunningScores, summarize


@pytest.fixture(scope="module")
def model(tiny):
    """Random model that records a mean of each gene."""
    return replace(tiny, gene_mean=np.random.default_rng(0).random(14558, dtype=np.float32))


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    truth = np.log1p(rng.poisson(rng.gamma(1, 1, 40), (60, 40))).astype(np.float32)
    truth[:, 3] = 0
    prediction = (truth + rng.normal(0, 0.5, truth.shape)).astype(np.float32)
    prediction[:, 5] = 1
    mask = rng.random(truth.shape) < 0.4
    section = np.repeat(["a", "b", "c"], 20)
    return prediction, truth, mask, section


def gene_r(prediction, truth, mask):
    """Plain loop over genes: r, p, and whether the gene counts."""
    found = []
    for p, t, m in zip(prediction.T, truth.T, mask.T, strict=True):
        p, t = p[m], t[m]
        if not (t > 0).any():
            continue
        if np.ptp(p) == 0 or np.ptp(t) == 0:
            found.append((0.0, 1.0))
        else:
            found.append(tuple(stats.pearsonr(p, t)))
    return np.array(found)


def test_metrics_are_the_plain_ones(values):
    prediction, truth, mask, section = values
    found = sg.benchmark.imputation_metrics(prediction, truth, mask, section=section)
    r, pval = gene_r(*values[:3]).T
    assert found["rmse"] == pytest.approx(np.sqrt(((prediction - truth)[mask] ** 2).mean()), rel=1e-5)
    assert found["r_pooled"] == pytest.approx(r.mean(), abs=1e-5)
    assert found["r_pooled_median"] == pytest.approx(np.median(r), abs=1e-5)
    within = [gene_r(*(x[section == s] for x in values[:3]))[:, 0].mean() for s in "abc"]
    assert found["r_within"] == pytest.approx(np.mean(within), abs=1e-5)
    assert found["share_p05"] == (pval < 0.05).mean()
    assert found["share_padj05"] == (stats.false_discovery_control(pval) < 0.05).mean()
    assert found["share_r01"] == (r > 0.1).mean()
    assert found["share_r03"] == (r > 0.3).mean()
    spot = [1 - np.var((t - p)[m]) / np.var(t[m]) for p, t, m in zip(prediction, truth, mask, strict=True)]
    assert found["r2_spot"] == pytest.approx(np.mean(spot), abs=1e-5)
    assert found["r2_spot_median"] == pytest.approx(np.median(spot), abs=1e-5)
    columns = [(p[m], t[m]) for p, t, m in zip(prediction.T, truth.T, mask.T, strict=True) if np.ptp(t[m]) > 0]
    gene = [1 - ((t - p) ** 2).sum() / ((t - t.mean()) ** 2).sum() for p, t in columns]
    assert found["r2_gene"] == pytest.approx(np.mean(gene), abs=1e-5)
    assert found["n_genes"] == len(r) < 40
    assert found["n_spots"] == 60


def test_r2_of_a_spot_ignores_an_offset_and_that_of_a_gene_does_not(values):
    _, truth, mask, _ = values
    found = sg.benchmark.imputation_metrics(truth + 1, truth, mask)
    assert found["r2_spot"] == pytest.approx(1, abs=1e-5)
    assert found["r_pooled"] == pytest.approx(1, abs=1e-4)
    assert found["rmse"] == pytest.approx(1, abs=1e-5)
    assert found["r2_gene"] < 0


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 59), max_size=4))
def test_metrics_do_not_depend_on_blocks(values, cuts):
    tensors = [torch.from_numpy(array) for array in values[:3]]
    edges = [0, *sorted(set(cuts)), 60]
    whole, parts = RunningScores(40), RunningScores(40)
    whole.add(*tensors)
    for start, stop in pairwise(edges):
        parts.add(*(tensor[start:stop] for tensor in tensors))
    assert summarize([whole]) == pytest.approx(summarize([parts]), rel=1e-6)


def test_refusals():
    ones = np.ones((3, 4))
    with pytest.raises(ValueError, match="shapes"):
        sg.benchmark.imputation_metrics(ones, ones[:, :2], ones)
    with pytest.raises(ValueError, match="nothing to compare"):
        sg.benchmark.imputation_metrics(ones, ones, ones * 0)
    with pytest.raises(ValueError, match="section names 2"):
        sg.benchmark.imputation_metrics(ones, ones, ones, section=["a", "b"])


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
    ratio = center.sum(1) / (neighbors * ~mask).sum(1)
    slide_mean = center.sum(0) / (~mask).sum(0)
    expected = {
        "zeros": x * 0,
        "gene mean": np.broadcast_to(model.gene_mean, x.shape),
        "slide mean": np.broadcast_to(slide_mean, x.shape),
        "neighbor mean": neighbors,
        "depth-scaled neighbor mean": neighbors * ratio.clip(0.2, 5)[:, None],
    }
    for name, prediction in expected.items():
        plain = sg.benchmark.imputation_metrics(prediction, x, mask)
        assert table.loc[name].to_dict() == pytest.approx(plain.to_dict(), rel=1e-3, abs=1e-5), name
    assert list(table.index) == [model.name, *expected]


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
    assert (apart["n_spots"] == together["n_spots"]).all()
    with pytest.raises(KeyError, match="library_key='nothing'"):
        sg.benchmark.evaluate_imputation(both, model, library_key="nothing")
    with pytest.raises(ValueError, match="no section"):
        sg.benchmark.evaluate_imputation([], model)
    with pytest.raises(ValueError, match="mask_fraction"):
        sg.benchmark.evaluate_imputation(both, model, mask_fraction=0)


def test_baselines_on_a_real_section(section, model):
    """What makes the neighbours' mean hard to beat is there, and depth adds to it."""
    adata = section("her2st_G1")
    sg.pp.neighborhood_graph(adata)
    table = sg.benchmark.evaluate_imputation(adata, model)
    names = ["zeros", "slide mean", "neighbor mean", "depth-scaled neighbor mean"]
    assert table.loc[names, "rmse"].is_monotonic_decreasing
    assert table.loc["depth-scaled neighbor mean", "r_within"] > 1.3 * table.loc["neighbor mean", "r_within"]


def test_mini_beats_the_baselines_on_a_real_section(section):
    """Of a donor that training saw; on others see docs/evaluation."""
    adata = section("CRC_16")
    sg.pp.neighborhood_graph(adata)
    table = sg.benchmark.evaluate_imputation(adata, "sagefm-mini")
    others = table.drop("sagefm-mini")
    assert table.loc["sagefm-mini", "rmse"] < others["rmse"].min()
    assert table.loc["sagefm-mini", "r_within"] > others["r_within"].max()


@pytest.mark.parametrize("mask_by", ["slide", "spot"])
def test_missingness_is_the_plain_loop(model, mask_by):
    """Genes hidden in a dense slide before anything reads it."""
    adata = sg.datasets.simulated_visium(n_rows=9, n_cols=9, n_genes=6000)
    sg.pp.neighborhood_graph(adata)
    curve = sg.benchmark.missingness_curve(adata, model, fractions=[0.6, 0.2], mask_by=mask_by, rng=3)
    assert curve["fraction"].tolist() == [0.3, 0.2, 0.6] * 6
    sg.pp.align_genes(adata)
    x = np.zeros((adata.n_obs, 14558), dtype=np.float32)
    index = adata.var["sage_gene"].to_numpy()
    x[:, index[index >= 0]] = np.log1p(adata.X.toarray()[:, index >= 0])
    spots = np.arange(adata.n_obs) if mask_by == "spot" else np.zeros(adata.n_obs, dtype=int)
    degree = torch.full((adata.n_obs, 1), 14.0)
    for fraction in (0.2, 0.6):
        mask = RandomMasks(14558, fraction, (3, adata.n_obs))(spots).numpy()
        shown = x * ~mask
        around = (adata.obsp["sage_connectivities"] @ shown).astype(np.float32)
        prediction = model.canonical().forward(*map(torch.from_numpy, (shown, around)), degree, torch.from_numpy(mask))
        here = curve[curve["fraction"] == fraction].set_index("predictor")
        for name, predicted in {model.name: prediction.detach().numpy(), "neighbor mean": around / 14}.items():
            plain = sg.benchmark.imputation_metrics(predicted, x, mask)
            found = here.loc[name, ["rmse", "r2_spot", "r_within"]].astype(float).to_dict()
            assert found == pytest.approx(plain[list(found)].to_dict(), rel=1e-3, abs=1e-5), name
        if mask_by == "slide":
            assert here.loc["neighbor mean", "rmse"] == pytest.approx(here.loc["zeros", "rmse"])
    center = sg.benchmark.evaluate_imputation(adata, model, rng=3)
    found = curve[curve["task"] == "center"].set_index("predictor")
    assert found["rmse"].to_dict() == pytest.approx(center["rmse"].to_dict())


@pytest.mark.parametrize(
    ("r2", "expected"),
    [
        ([0.5, 0.3, 0.1], 0.3),  # half-way between 0.1 and 0.5
        ([0.3, 0.2, 0.1], 0.1),
        ([0.5, 0.5, 0.41], np.nan),
        ([0.5, 0.4, 0.0], 0.5),  # at the limit is not under it
    ],
)
def test_critical_share(r2, expected):
    """Reference 0.5, so that the limit is 0.4."""
    table = pd.DataFrame({"task": ["center"] + ["everywhere"] * 3, "fraction": [0.3, 0.1, 0.5, 0.9]})
    table["r2_spot"] = [0.5, *r2]
    assert _critical(table) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fractions": []}, "empty"),
        ({"fractions": [0.5, 1.0]}, "between 0 and 1"),
        ({"mask_by": "gene"}, "mask_by"),
        ({"training_fraction": 0}, "between 0 and 1"),
    ],
)
def test_missingness_refusals(slide, model, options, match):
    with pytest.raises(ValueError, match=match):
        sg.benchmark.missingness_curve(slide, model, **options)


def test_missingness_plot(slide, model, tmp_path):
    curve = sg.benchmark.missingness_curve(slide, model, fractions=[0.2, 0.8])
    ax = sg.pl.missingness_curve(curve, predictors=[model.name, "gene mean"], save=tmp_path / "curve.png")
    lines = {line.get_label(): line for line in ax.get_lines()}
    part = curve[(curve["predictor"] == model.name) & (curve["task"] == "everywhere")]
    assert lines[model.name].get_ydata().tolist() == part["r2_spot"].tolist()
    assert (tmp_path / "curve.png").exists()
    for bad in ({"metric": "speed"}, {"predictors": ["nobody"]}):
        with pytest.raises(KeyError, match="no "):
            sg.pl.missingness_curve(curve, **bad)


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
        if metric != "n_genes":
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


def test_smoothers_never_see_what_they_predict(slide, model):
    """A gene that is one spot's alone can't be predicted there."""
    from sagefm.benchmark._smoothers import _similar

    for name, weights in _similar(slide.X.log1p(), 10, 8, 3, 0):
        assert (weights.diagonal() == 0).all(), name
        assert (weights.data >= 0).all()
        assert (np.asarray(weights.sum(axis=1)) > 0).all()


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
