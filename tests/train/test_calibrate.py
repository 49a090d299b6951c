"""Calibration: errors of genes left out, quantiles and limits against plain loops."""

from dataclasses import replace

import literal
import numpy as np
import pandas as pd
import pytest
from helpers import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from references import N

import sagefm as sg
from sagefm._depth import DepthSpline, pearson_beyond_depth
from sagefm.models._calibration import EDGES, misfit
from sagefm.train import _calibrate
from sagefm.train._calibrate import CAUTION, _stump, combine, find_limits
from sagefm.train._left_out import LACKING, MIDDLES, SampledSection, _absent, _ranked, measure, quantiles


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    slides = {}
    for i in range(4):
        slide = sg.datasets.simulated_visium(9, 9 + i, n_genes=6000, rng=i)
        slide.obs["donor"] = f"donor{i}"
        slides[f"s{i}"] = slide
    return sg.train.prepare_corpus(slides, tmp_path_factory.mktemp("corpus") / "corpus.zarr", split={})


@pytest.fixture(scope="module")
def small():
    return random_model((8, 6), sg.models.SAGE)


@pytest.mark.slow
def test_absent_genes_are_hidden_everywhere(corpus, small):
    """Each gene's prediction is that of the literal graph with the gene, and enough others, 0 in every spot."""
    section = SampledSection.read(corpus, "s1", 12, 0)
    order, typical = np.random.default_rng(0).permutation(section.genes), np.linspace(0, 1, N, dtype=np.float32)
    model = replace(small, gene_mean=typical)
    r, beyond, predictions, errors = _absent(model.canonical(), section, order, 0.8)
    n_hidden = len(order) - round(0.2 * N)
    dense = section.log_counts.toarray()
    for start in (0, n_hidden, n_hidden * ((len(order) - 1) // n_hidden)):
        hidden = np.take(order, np.arange(start, start + n_hidden), mode="wrap")
        shown = dense.copy()
        shown[:, hidden] = 0
        assert (shown.any(axis=0).sum()) <= 0.2 * N + 1
        scored = order[start : start + n_hidden]
        around = [[spot, *section.graph[spot].indices] for spot in section.rows[:3]]
        unseen = ~np.isin(np.arange(N), section.genes) | np.isin(np.arange(N), hidden)
        found = literal.of_unseen(small.network, dense, around, unseen, typical)
        scored_there = np.searchsorted(np.flatnonzero(unseen), scored)
        np.testing.assert_allclose(predictions[:3, scored], found[:, scored_there], atol=1e-5)
    gene = order[3]
    t, p = dense[section.rows, gene], predictions[:, gene].astype(float)
    np.testing.assert_allclose(errors[:, gene], misfit(p, t), rtol=1e-4, atol=1e-6)
    varied = np.flatnonzero(np.isfinite(r) & (dense[section.rows].std(axis=0) > 0) & (predictions.std(axis=0) > 1e-3))
    for gene in varied[:20]:
        expected = np.corrcoef(dense[section.rows, gene], predictions[:, gene])[0, 1]
        assert r[gene] == pytest.approx(expected, abs=1e-3)
    # The depth is that of the genes that were shown.
    at = int(np.flatnonzero(order == gene)[0]) // n_hidden * n_hidden
    hidden = np.take(order, np.arange(at, at + n_hidden), mode="wrap")
    depth = np.expm1(np.delete(dense[section.rows], hidden, axis=1)).sum(axis=1, dtype=float)
    both = (array[:, [gene]].astype(float) for array in (predictions, dense[section.rows]))
    assert beyond[gene] == pytest.approx(
        pearson_beyond_depth(*both, DepthSpline(depth)(depth))[0], abs=1e-6, nan_ok=True
    )


def test_thinning_takes_counts_away_by_chance(corpus):
    section = SampledSection.read(corpus, "s0", 50, 0)
    thinned = section.thinned(0.25, np.random.default_rng(0))
    assert thinned.totals().sum() == pytest.approx(0.25 * section.totals().sum(), rel=0.02)
    whole = np.expm1(thinned.log_counts.data)
    np.testing.assert_allclose(whole, np.rint(whole), atol=1e-3)
    assert (thinned.log_counts > section.log_counts).nnz == 0


def test_ranks_are_among_errors_of_one_class():
    rng = np.random.default_rng(0)
    predictions = rng.choice([0.001, 0.6], (2000, 3)).astype(np.float32)
    errors = rng.random((2000, 3)).astype(np.float32) * np.array([1, 1, 3], dtype=np.float32)
    errors[:, 1] = np.nan
    by_class, ranks = _ranked(predictions, errors)
    for value in (0.001, 0.6):
        members = errors[(predictions == value) & np.isfinite(errors)]
        np.testing.assert_allclose(by_class[np.digitize(value, EDGES)], np.quantile(members, MIDDLES), atol=0.03)
    assert np.isnan(by_class[3]).all()
    assert np.isnan(ranks[:, 1]).all()
    assert (ranks[:, 2] > ranks[:, 0]).mean() > 0.9


def test_quantiles_are_those_of_what_is_there():
    values = np.random.default_rng(0).random((5000, 2)).astype(np.float32)
    values[::2, 1] = np.nan
    np.testing.assert_allclose(quantiles(values)[:, 1], np.quantile(values[1::2, 1], MIDDLES), atol=0.01)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=15))
def test_limit_costs_least(trials):
    value, bad = np.array([v for v, _ in trials], dtype=float), np.array([b for _, b in trials])
    limit = _stump(value, bad)

    def cost(at):
        return CAUTION * (bad & (value <= at)).sum() + (~bad & (value > at)).sum()

    candidates = [-1.0, *value, *(value + 0.5)]
    if bad.any() and len(set(value)) == len(value):
        below = limit - 1e-6 if limit == value.min() and cost(limit) > min(map(cost, candidates)) else limit
        assert cost(below) == min(map(cost, candidates))
    elif not bad.any():
        assert limit == value.max()


def trial(group, shift, depth=1000.0, lacking=0.1, distance=0.1, useful=True):
    return {
        "group": group,
        "section": group,
        "shift": shift,
        "depth": depth,
        "lacking": lacking,
        "distance": distance,
        "rmse": 0.3,
        "baseline_rmse": 0.3,
        "r_beyond_depth": 0.25 if useful else 0.01,
        "baseline_r_beyond_depth": 0.2,
        "depth_r": 0.0,
    }


def test_limits_part_where_the_model_says_something_from_where_it_does_not():
    trials = []
    for group, distance in (("a", 0.1), ("b", 0.15), ("c", 0.2), ("d", 0.5)):
        is_near = distance < 0.3
        trials.append(trial(group, "depth", distance=distance, useful=is_near))
        for depth in (800.0, 400.0, 100.0, 10.0):
            trials.append(trial(group, "depth", depth, distance=distance, useful=depth > 50))
        for lacking in (0.3, 0.5, 0.7, 0.9):
            trials.append(trial(group, "lacking", lacking=lacking, distance=distance, useful=lacking < 0.8))
    limits = find_limits(pd.DataFrame(trials))
    assert limits["distance"] == {"care": pytest.approx(0.35), "outside": 0.5, "above": 1.0}
    assert limits["depth"]["care"] == pytest.approx(np.sqrt(100 * 10), rel=1e-3)
    assert limits["depth"]["outside"] == pytest.approx(10)  # nothing shallower was tried
    assert limits["lacking"] == {"care": pytest.approx(0.8), "outside": 0.9, "above": 1.0}


@pytest.mark.slow
def test_calibrate(corpus, small, tmp_path, monkeypatch):
    left_out = {f"donor{i}": small for i in range(3)}
    parts = []
    monkeypatch.setattr(
        _calibrate, "measure", lambda *args, **options: parts.append(measure(*args, **options)) or parts[-1]
    )
    model = sg.train.calibrate(small, corpus, left_out)
    known = model.calibration
    assert known.donors == list(left_out)
    assert known.lattices == ["hexagonal"]
    measured = np.zeros(N, dtype=bool)
    for name in corpus.sections.index[:3]:
        measured |= corpus.read(name).var["measured"].to_numpy()
    assert np.isfinite(known.ranks[0, 0])[measured].all()
    assert np.isnan(known.ranks[0, 0])[~measured].all()
    assert (known.ranks[:, :, measured] >= np.array(known.levels)[None, :, None] - 1e-6).all()
    assert (np.diff(known.errors, axis=2) >= -1e-6).all()
    assert known.count_share.sum() == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(np.linalg.norm(known.centroids, axis=1), 1, rtol=1e-4)
    r = np.stack([part.r for part in parts])
    gene = np.flatnonzero(np.isfinite(r).all(axis=(0, 1)))[0]
    np.testing.assert_allclose(known.prior_r[:, gene], r[:, :, gene].mean(axis=0), rtol=1e-5)
    assert known.n_donors[gene] == 3
    assert known.limits == combine(corpus, parts).limits
    assert len(known.lacking) == len(LACKING)
    read = sg.models.load(model.save(tmp_path / "m.safetensors"))
    slide = sg.datasets.simulated_visium(10, 10, n_genes=6000, rng=9)
    sg.pp.neighborhood_graph(slide)
    sg.pp.assess(slide, read)
    # As near to training as its own sections are to each other.
    assert slide.uns["sage_assessment"]["checks"].loc["expression", "value"] < 0.3


def test_calibration_refusals(corpus, small):
    with pytest.raises(ValueError, match="no group 'nobody'"):
        sg.train.calibrate(small, corpus, {"nobody": small, "donor0": small, "donor1": small})
    with pytest.raises(ValueError, match="at least 3"):
        sg.train.calibrate(small, corpus, {"donor0": small})
    with pytest.raises(TypeError, match="has to map groups"):
        sg.train.calibrate(small, corpus, ["donor0", "donor1", "donor2"])
    knows = replace(small, card={"training": {"groups": ["donor1"]}})
    with pytest.raises(ValueError, match="trained on 'donor1'"):
        sg.train.calibrate(small, corpus, {"donor0": small, "donor1": knows, "donor2": small})
