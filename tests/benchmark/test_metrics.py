"""Metrics, against plain formulas."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

import sagefm as sg
from sagefm._depth import DepthSpline, attainable, attainable_by_fold, pearson_beyond_depth
from sagefm.models._scores import RunningScores, Summary
from sagefm.tl._impute.request import gene_folds


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


def test_beyond_depth_is_a_regression_for_each_gene_of_each_section():
    """On the spots where a gene is masked, the depth without what is masked."""
    rng = np.random.default_rng(3)
    truth = np.log1p(rng.poisson(rng.gamma(2, 1, (300, 40)) * rng.gamma(3, 1, (300, 1)))).astype(np.float32)
    prediction = (truth + rng.normal(0, 1, truth.shape)).astype(np.float32)
    prediction[:, 5] = 1
    mask, section = rng.random(truth.shape) < 0.4, np.repeat(["a", "b"], 150)
    found = sg.benchmark.imputation_metrics(prediction, truth, mask, section=section)
    expected, best = [], []
    for name in "ab":
        here = section == name
        t, m = truth[here].astype(float), mask[here]
        depth = (np.expm1(t) * ~m).sum(axis=1)
        basis = DepthSpline(depth)(depth)
        r = [
            float(pearson_beyond_depth(p[k, None], y[k, None], basis[k])[0])
            for p, y, k in zip(prediction[here].T.astype(float), t.T, m.T, strict=True)
        ]
        assert r[5] == 0
        expected.append(np.mean(r))
        best.append(np.nanmean(attainable_by_fold(sparse.csr_matrix(t), gene_folds(40, 4)).r_beyond_depth))
    assert found["r_beyond_depth"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert found["attainable_r"] == pytest.approx(np.mean(best), abs=1e-6)
    assert found["share_attained"] == pytest.approx(np.mean(expected) / np.mean(best), abs=1e-6)
    depth = rng.integers(20, 900, 300)
    given = sg.benchmark.imputation_metrics(prediction, truth, np.ones_like(mask), depth=depth)
    basis = DepthSpline(depth)(depth)
    r = pearson_beyond_depth(prediction.astype(float), truth.astype(float), basis)
    assert given["r_beyond_depth"] == pytest.approx(r.mean(), abs=1e-6)
    assert given["attainable_r"] == pytest.approx(attainable(sparse.csr_matrix(truth), basis).r_beyond_depth.mean())
    hidden = sg.benchmark.imputation_metrics(prediction, truth, np.ones_like(mask))
    assert np.isnan(hidden["r_beyond_depth"])  # nothing tells the depth
    with pytest.raises(ValueError, match="depth has shape"):
        sg.benchmark.imputation_metrics(prediction, truth, mask, depth=depth[:5])


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
    depth = np.random.default_rng(1).integers(5, 500, 60).astype(float)
    tensors.append(torch.from_numpy(DepthSpline(depth)(depth)))
    whole, parts = RunningScores(40), RunningScores(40)
    whole.add(*tensors)
    for start, stop in pairwise(edges):
        parts.add(*(tensor[start:stop] for tensor in tensors))
    found = []
    for scores in (whole, parts):
        summary = Summary(40)
        summary.add(scores)
        found.append(summary.metrics())
    assert found[0] == pytest.approx(found[1], rel=1e-6, nan_ok=True)


def test_refusals():
    ones = np.ones((3, 4))
    with pytest.raises(ValueError, match="shapes"):
        sg.benchmark.imputation_metrics(ones, ones[:, :2], ones)
    with pytest.raises(ValueError, match="nothing to compare"):
        sg.benchmark.imputation_metrics(ones, ones, ones * 0)
    with pytest.raises(ValueError, match="section names 2"):
        sg.benchmark.imputation_metrics(ones, ones, ones, section=["a", "b"])
