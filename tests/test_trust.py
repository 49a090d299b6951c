"""Intervals, priors, the calibration they rest on, and the trust card: against plain loops and on shifted slides."""

import json
from dataclasses import replace

import anndata as ad
import literal
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from conftest import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import sagefm as sg
from sagefm.models._calibration import EDGES, Calibration, ends, misfit, nearest, spread
from sagefm.models._vocabulary import hest1k
from sagefm.pp._neighbors import lattice_of
from sagefm.tl._impute.reliability import spatial_blocks
from sagefm.train import _calibrate
from sagefm.train._calibrate import CAUTION, _stump, combine, find_limits
from sagefm.train._left_out import LACKING, MIDDLES, SampledSection, _absent, _ranked, measure, quantiles

SYMBOLS = hest1k().symbols
N = len(SYMBOLS)


# Intervals


@given(
    st.lists(st.floats(0, 6, width=32), min_size=1, max_size=20),
    st.integers(0, 500),
    st.floats(0, 8, width=32),
)
def test_a_value_is_inside_just_where_its_misfit_is_within_reach(predictions, count, reach):
    p, t = np.array(predictions, dtype=float), np.log1p(count)
    lower, upper = ends(p, reach * spread(p))
    inside = (t >= lower - 1e-4) & (t <= upper + 1e-4)
    score = misfit(p, np.full(len(p), t))
    clear = abs(score - reach) > 1e-3  # rounding decides in between
    assert (inside == (score <= reach))[clear].all()


@given(st.floats(0, 6), st.floats(0, 10))
def test_ends_are_whole_counts_around_the_prediction(prediction, reach):
    lower, upper = np.expm1(ends(np.array([prediction]), np.array([reach])))
    assert abs(lower - np.rint(lower)).item() < 1e-6 * (1 + lower)
    assert abs(upper - np.rint(upper)).item() < 1e-6 * (1 + upper)
    assert lower <= np.expm1(prediction) + 1e-3
    assert upper >= np.floor(np.expm1(prediction)) - 1e-3


@pytest.fixture(scope="module")
def large():
    adata = sg.datasets.simulated_visium(26, 24, n_genes=9000, rng=3)
    sg.pp.neighborhood_graph(adata)
    return adata


def absent_gene(adata):
    return next(symbol for symbol in SYMBOLS[100:] if symbol not in adata.var_names)


def frequent(adata, n):
    share = np.asarray((adata.X > 0).mean(axis=0)).ravel()
    known = hest1k().find_symbols(adata.var_names) >= 0
    return adata.var_names[np.argsort(-share * known)[:n]].tolist()


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_intervals_of_measured_genes_cover(large, sage, level):
    adata, genes = large.copy(), frequent(large, 40)
    sg.tl.impute(adata, genes, sage, intervals=level)
    lower, upper = adata.obsm["sage_imputed_lower"], adata.obsm["sage_imputed_upper"]
    truth = np.log1p(adata.to_df())[lower.columns]
    inside = ((truth >= lower - 1e-4) & (truth <= upper + 1e-4)).mean()
    table = adata.uns["sage_imputed"]["intervals"]
    np.testing.assert_allclose(table["coverage"], inside, atol=1e-9)
    np.testing.assert_allclose(table["width"], (upper - lower).mean(), rtol=1e-4)
    assert table["coverage"].mean() > level - 0.02
    assert (table["source"] == "slide").all()
    assert (table["level"] == level).all()


def test_an_interval_is_split_conformal(large, sage):
    """One gene by hand: sorted misfits of the other tiles, the k-th of them."""
    adata, gene = large.copy(), frequent(large, 3)[2]
    sg.tl.impute(adata, gene, sage, intervals=0.9)
    p = sc.get.obs_df(adata, [gene], layer="sage_imputed")[gene].to_numpy(dtype=float)
    t = np.log1p(sc.get.obs_df(adata, [gene])[gene].to_numpy())
    part = spatial_blocks(adata, adata.obsp["sage_connectivities"]) % 5
    for spot in (0, 99, 300, adata.n_obs - 1):
        others = sorted(misfit(p, t)[part != part[spot]])
        reach = others[int(np.ceil(0.9 * (len(others) + 1))) - 1] * spread(p[spot])
        lower, upper = ends(p[[spot]], np.array([reach]))
        assert adata.obsm["sage_imputed_lower"][gene].iloc[spot] == pytest.approx(lower.item(), abs=1e-5)
        assert adata.obsm["sage_imputed_upper"][gene].iloc[spot] == pytest.approx(upper.item(), abs=1e-5)


def test_intervals_of_a_wrong_model_are_wide(large, sage):
    """Coverage holds however bad the model is; width tells."""
    found = {}
    for model in ("sagefm-mini", sage):
        adata = large.copy()
        sg.tl.impute(adata, frequent(large, 20), model, intervals=0.9)
        found[model] = adata.uns["sage_imputed"]["intervals"]
        assert found[model]["coverage"].mean() > 0.88
    assert found[sage]["width"].mean() > 1.5 * found["sagefm-mini"]["width"].mean()


def test_too_few_spots_for_a_level_give_no_upper_end(slide, sage):
    sg.tl.impute(slide, "KRT8", sage, intervals=0.999)
    assert np.isinf(slide.obsm["sage_imputed_upper"].to_numpy()).all()
    assert (slide.obsm["sage_imputed_lower"].to_numpy() == 0).all()


def test_a_later_call_takes_intervals_away(slide, sage):
    sg.tl.impute(slide, "KRT8", sage, intervals=0.8)
    sg.tl.impute(slide, "KRT8", sage)
    assert "sage_imputed_lower" not in slide.obsm
    assert "intervals" not in slide.uns["sage_imputed"]


@pytest.mark.parametrize(
    ("genes", "options", "error", "match"),
    [
        (None, {"intervals": 0.9}, ValueError, "name them"),
        ("KRT8", {"intervals": 1.0}, ValueError, "between 0 and 1"),
        ("KRT8", {"intervals": "wide"}, TypeError, "has to be a share"),
        ("KRT8", {"intervals": True}, TypeError, "has to be a share"),
        ("absent", {"intervals": 0.9}, ValueError, "carries no calibration.*sg.train.calibrate"),
    ],
)
def test_interval_refusals(slide, sage, genes, options, error, match):
    before = slide.copy()
    genes = absent_gene(slide) if genes == "absent" else genes
    with pytest.raises(error, match=match):
        sg.tl.impute(slide, genes, sage, **options)
    assert slide.obsm.keys() == before.obsm.keys()
    assert slide.layers.keys() == before.layers.keys()
    assert slide.uns.keys() == before.uns.keys()


def test_a_key_of_the_users_is_kept(slide, sage):
    slide.obsm["mine_lower"] = np.zeros((slide.n_obs, 2))
    with pytest.raises(ValueError, match="mine_lower.*Choose another key_added"):
        sg.tl.impute(slide, "KRT8", sage, intervals=0.9, key_added="mine")


def test_a_slide_of_one_tile_is_too_small(sage):
    tiny_slide = sg.datasets.simulated_visium(6, 6, n_genes=9000)
    sg.pp.neighborhood_graph(tiny_slide)
    with pytest.raises(ValueError, match="too few for intervals"):
        sg.tl.impute(tiny_slide, "KRT8", sage, intervals=0.8)


# The calibration


def calibration(**changes):
    """A calibration whose every number is known."""
    rng = np.random.default_rng(0)
    quantile = np.sort(rng.random((2, len(EDGES) + 1, 50)), axis=2) * 3
    ranks = np.clip(rng.random((2, 2, N)), 0.8, 1)
    ranks[:, :, 7] = np.nan
    values = {
        "donors": ["a", "b", "c"],
        "lattices": ["hexagonal"],
        "lacking": [0.2, 0.6],
        "levels": [0.8, 0.9],
        "limits": {
            "lacking": {"care": 0.5, "outside": 0.8, "above": 1.0},
            "depth": {"care": 1000.0, "outside": 100.0, "above": 0.0},
            "deepest": {"care": 1e6, "above": 1.0},
            "distance": {"care": 0.2, "outside": 0.4, "above": 1.0},
            "far": {"care": 0.05, "outside": 0.5, "above": 1.0},
        },
        "prior_r": rng.random((2, N)),
        "prior_sd": rng.random(N),
        "n_donors": np.full(N, 3.0),
        "errors": quantile,
        "ranks": ranks,
        "centroids": rng.random((4, N)),
        "count_share": np.full(N, 1 / N),
    }
    values |= changes
    return Calibration(**{k: v.astype(np.float32) if isinstance(v, np.ndarray) else v for k, v in values.items()})


def test_reference_survives_its_file(tmp_path, sage):
    model = replace(sage, calibration=calibration())
    read = sg.models.load(model.save(tmp_path / "m.safetensors", half=True)).calibration
    for key, value in vars(model.calibration).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(getattr(read, key), value, rtol=2e-3, atol=1e-6)
        else:
            assert getattr(read, key) == value


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: replace(r, prior_sd=r.prior_sd[:-1]), "prior_sd has shape"),
        (lambda r: replace(r, errors=r.errors[:1]), "errors has shape"),
    ],
)
def test_a_damaged_reference_is_refused(tmp_path, sage, change, match):
    path = replace(sage, calibration=change(calibration())).save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=match):
        sg.models.load(path)


def test_a_reference_without_header_is_refused(tmp_path, sage):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = replace(sage, calibration=calibration()).save(tmp_path / "m.safetensors")
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["sagefm"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    del header["reference"]
    save_file(tensors, path, metadata={"sagefm": json.dumps(header)})
    with pytest.raises(ValueError, match=r"reference\."):
        sg.models.load(path)


@pytest.mark.parametrize(
    ("lacking", "weights"), [(0.0, (1, 0)), (0.2, (1, 0)), (0.3, (0.75, 0.25)), (0.6, (0, 1)), (0.9, (0, 1))]
)
def test_priors_lie_between_what_was_tried(lacking, weights):
    known = calibration()
    np.testing.assert_allclose(known.prior(lacking), np.tensordot(weights, known.prior_r, 1), rtol=1e-5)


def test_reach_of_absent_genes_by_hand():
    known, genes = calibration(), np.array([5, 7, 100])
    p = np.array([[0.0, 0.0, 0.3], [0.03, 0.2, 2.2]], dtype=np.float32)
    found = known.reach(p, genes, 0.4, 0.9)
    errors, ranks = known.errors.mean(axis=0), known.ranks[:, 1].mean(axis=0)
    for spot, column in np.ndindex(p.shape):
        rank = ranks[genes[column]]
        if np.isnan(rank):
            assert np.isnan(found[spot, column])
            continue
        at = sum(p[spot, column] >= edge for edge in EDGES)
        expected = errors[at, min(int(np.ceil(rank * 50)), 49)] * spread(np.float64(p[spot, column]))
        assert found[spot, column] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"known at \[0.8, 0.9\], not at 0.85"):
        known.reach(p, genes, 0.4, 0.85)


def test_absent_genes_get_priors_and_intervals(slide, sage):
    model = replace(sage, calibration=calibration())
    absent = absent_gene(slide)
    number = SYMBOLS.index(absent)
    sg.tl.impute(slide, ["KRT8", absent], model, intervals=0.9)
    lacking = 1 - slide.uns["sage_genes"]["coverage"]
    prior = slide.uns["sage_imputed"]["prior"]
    assert prior.index.tolist() == [absent]
    assert prior.loc[absent, "r"] == pytest.approx(model.calibration.prior(lacking)[number])
    assert prior.loc[absent, "r_sd"] == pytest.approx(model.calibration.prior_sd[number])
    p = slide.obsm["sage_imputed"][[absent]].to_numpy()
    lower, upper = ends(p.astype(float), model.calibration.reach(p, np.array([number]), lacking, 0.9))
    np.testing.assert_allclose(slide.obsm["sage_imputed_lower"][[absent]], lower, atol=1e-5)
    np.testing.assert_allclose(slide.obsm["sage_imputed_upper"][[absent]], upper, rtol=1e-5, atol=1e-5)
    table = slide.uns["sage_imputed"]["intervals"]
    assert table["source"].tolist() == ["slide", "left-out donors"]
    assert np.isnan(table.loc[absent, "coverage"])
    with pytest.raises(ValueError, match=r"known at \[0.8, 0.9\], not at 0.5"):
        sg.tl.impute(slide, absent, model, intervals=0.5)


def test_results_can_be_written(slide, sage, tmp_path):
    model = replace(sage, calibration=calibration())
    sg.tl.impute(slide, ["KRT8", absent_gene(slide)], model, intervals=0.9)
    sg.pp.assess(slide, model)
    slide.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert read.uns["sage_assessment"]["verdict"] == slide.uns["sage_assessment"]["verdict"]
    pd.testing.assert_frame_equal(
        read.uns["sage_assessment"]["checks"], slide.uns["sage_assessment"]["checks"], check_names=False
    )
    assert sg.pl.assessment(read) is not None
    assert sg.pl.imputation(read, "KRT8", return_fig=True) is not None


# Calibration


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


def test_absent_genes_are_hidden_everywhere(corpus, small):
    """Each gene's prediction is that of the literal graph with the gene, and enough others, 0 in every spot."""
    section = SampledSection.read(corpus, "s1", 12, 0)
    order = np.random.default_rng(0).permutation(section.genes)
    r, predictions, errors = _absent(small.canonical(), section, order, 0.8)
    n_hidden = len(order) - round(0.2 * N)
    dense = section.log_counts.toarray()
    for start in (0, n_hidden, n_hidden * ((len(order) - 1) // n_hidden)):
        hidden = np.take(order, np.arange(start, start + n_hidden), mode="wrap")
        shown = dense.copy()
        shown[:, hidden] = 0
        assert (shown.any(axis=0).sum()) <= 0.2 * N + 1
        scored = order[start : start + n_hidden]
        around = [[spot, *section.graph[spot].indices] for spot in section.rows[:3]]
        found = literal.run(small.network, dense, around, what="predict", everywhere_mask=hidden)
        np.testing.assert_allclose(predictions[:3, scored], found[:, scored], atol=1e-5)
    gene = order[3]
    t, p = dense[section.rows, gene], predictions[:, gene].astype(float)
    np.testing.assert_allclose(errors[:, gene], misfit(p, t), rtol=1e-4, atol=1e-6)
    varied = np.flatnonzero(np.isfinite(r) & (dense[section.rows].std(axis=0) > 0) & (predictions.std(axis=0) > 1e-3))
    for gene in varied[:20]:
        expected = np.corrcoef(dense[section.rows, gene], predictions[:, gene])[0, 1]
        assert r[gene] == pytest.approx(expected, abs=1e-3)


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


def trial(group, shift, depth=1000.0, lacking=0.1, distance=0.1, ahead=True, useful=True):
    gain = 0.1 if ahead else -0.01
    return {
        "group": group,
        "section": group,
        "shift": shift,
        "depth": depth,
        "lacking": lacking,
        "distance": distance,
        "rmse": 0.3 - gain,
        "baseline_rmse": 0.3,
        "r_within": 0.25 if useful else 0.1,
        "baseline_r_within": 0.2,
        "r2_spot": 0.2 + gain if useful else -0.1,
        "baseline_r2_spot": 0.2,
    }


def test_limits_part_what_is_ahead_from_what_is_not():
    trials = []
    for group, distance in (("a", 0.1), ("b", 0.15), ("c", 0.2), ("d", 0.5)):
        near = distance < 0.3
        trials.append(trial(group, "depth", distance=distance, ahead=near))
        if not near:  # behind from the start, so it says nothing of missing genes
            trials += [trial(group, "lacking", lacking=0.3, distance=distance, ahead=False)] * 4
            continue
        for depth in (800.0, 400.0, 100.0, 10.0):
            trials.append(
                trial(group, "depth", depth, distance=distance, ahead=near and depth > 200, useful=depth > 50)
            )
        for lacking in (0.3, 0.5, 0.7, 0.9):
            shifted = trial(group, "lacking", lacking=lacking, distance=distance, ahead=lacking < 0.6)
            trials.append(shifted | ({"r_within": 0.19} if lacking > 0.8 else {}))
    limits = find_limits(pd.DataFrame(trials))
    assert limits["distance"]["care"] == pytest.approx(0.35)
    assert limits["distance"]["outside"] == 0.5  # nothing further was tried
    assert limits["depth"]["care"] == pytest.approx(200, rel=1e-3)
    assert limits["depth"]["outside"] == pytest.approx(np.sqrt(100 * 10), rel=1e-3)
    assert limits["lacking"]["care"] == pytest.approx(0.6)
    assert limits["lacking"]["outside"] == pytest.approx(0.8)


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


# The card


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def known_slide():
    """A slide that the model below was as good as trained on."""
    adata = sg.datasets.simulated_visium(30, 28, rng=5)
    sg.pp.neighborhood_graph(adata)
    return adata


@pytest.fixture(scope="module")
def judge(known_slide, sage):
    """Model whose calibration is made from that slide, with limits that are known."""
    adata = known_slide.copy()
    sg.pp.align_genes(adata)
    index = adata.var["sage_gene"].to_numpy()
    dense = np.zeros((adata.n_obs, N), dtype=np.float32)
    dense[:, index[index >= 0]] = np.log1p(adata.X[:, np.flatnonzero(index >= 0)].toarray())
    means = (dense + adata.obsp["sage_connectivities"] @ dense) / 15
    counts = np.zeros(N)
    counts[index[index >= 0]] = np.asarray(adata.X[:, np.flatnonzero(index >= 0)].sum(axis=0)).ravel()
    depth = float(np.median(np.expm1(dense).sum(axis=1)))
    limits = calibration().limits | {"depth": {"care": depth / 2, "outside": depth / 10, "above": 0.0}}
    limits["deepest"] = {"care": depth * 3, "above": 1.0}
    return replace(
        sage,
        calibration=calibration(centroids=unit(means[::20]), count_share=counts / counts.sum(), limits=limits),
    )


def card(adata, model, **options):
    sg.pp.assess(adata, model, **options)
    return adata.uns["sage_assessment"]


def thinned(adata, share):
    adata.X = sparse.csr_matrix(adata.X)
    adata.X.data = np.random.default_rng(0).binomial(adata.X.data.astype(int), share).astype(np.float32)
    return adata


def scattered(adata):
    adata = adata[np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:40])].copy()
    sg.pp.neighborhood_graph(adata, "visium")
    return adata


def renamed(adata):
    adata.var_names = np.random.default_rng(0).permutation(adata.var_names)
    return adata


def mouse(adata):
    adata.var_names = [name.capitalize() for name in adata.var_names]
    adata.var = adata.var[[]]
    return adata


def irregular(adata):
    adata.obsm["spatial"] = np.random.default_rng(0).random((adata.n_obs, 2)) * 1000
    sg.pp.neighborhood_graph(adata, "knn")
    return adata


SHIFTS = {
    "as it is": (lambda a: a, "fine", None),
    "half the genes less": (lambda a: a[:, ::3].copy(), "with care", "genes"),
    "a panel": (lambda a: a[:, ::9].copy(), "outside what the model knows", "genes"),
    "shallow": (lambda a: thinned(a, 0.25), "with care", "depth"),
    "all but empty": (lambda a: thinned(a, 0.03), "outside what the model knows", "depth"),
    "deep": (lambda a: a.__setattr__("X", a.X * 5) or a, "with care", "depth"),
    "genes exchanged": (renamed, "outside what the model knows", "expression"),
    "mouse": (mouse, "outside what the model knows", "genes"),
    "irregular": (irregular, "with care", "lattice"),
    "scattered": (scattered, "outside what the model knows", "neighbors"),
}


@pytest.mark.parametrize(("shift", "verdict", "because"), SHIFTS.values(), ids=SHIFTS)
def test_shifts_are_seen(known_slide, judge, shift, verdict, because):
    adata = shift(known_slide.copy())
    found = card(adata, judge)
    assert found["verdict"] == verdict
    if because is not None:
        assert found["checks"].loc[because, "verdict"] == verdict
    else:
        assert (found["checks"]["verdict"] == "fine").all()
    assert found["text"].splitlines()[0].endswith(verdict)


def test_card_says_what_it_measured(known_slide, judge):
    found = card(known_slide.copy(), judge)
    checks = found["checks"]
    adata = known_slide.copy()
    sg.pp.align_genes(adata)
    known = adata.var["sage_gene"].to_numpy() >= 0
    assert checks.loc["genes", "value"] == pytest.approx(1 - adata.uns["sage_genes"]["coverage"])
    total = np.median(np.asarray(adata.X[:, np.flatnonzero(known)].sum(axis=1)))
    assert checks.loc["depth", "value"] == pytest.approx(total, rel=1e-3)
    assert checks.loc["neighbors", "value"] == known_slide.obs["sage_far_neighbors"].mean()
    dense = np.zeros((adata.n_obs, N), dtype=np.float32)
    dense[:, adata.var["sage_gene"][known]] = np.log1p(adata.X[:, np.flatnonzero(known)].toarray())
    means = (dense + adata.obsp["sage_connectivities"] @ dense) / 15
    genes = np.sort(adata.var["sage_gene"][known])
    cosine = unit(means[:, genes]) @ unit(judge.calibration.centroids[:, genes]).T
    assert checks.loc["expression", "value"] == pytest.approx(np.median(1 - cosine.max(axis=1)), abs=0.005)
    prior = judge.calibration.prior(checks.loc["genes", "value"])
    assert found["expected_r"] == pytest.approx(prior[np.setdiff1d(np.arange(N), genes)].mean(), rel=1e-4)
    assert "VEGFA" in found["markers_unknown"]
    assert not set(found["markers_unknown"]) & set(SYMBOLS)
    assert not set(found["markers_missing"]) & set(adata.var_names)


def test_a_panel_is_compared_at_the_depth_it_would_have(known_slide, judge):
    whole, half = card(known_slide.copy(), judge), card(known_slide[:, ::2].copy(), judge)
    assert half["checks"].loc["depth", "value"] == pytest.approx(whole["checks"].loc["depth", "value"], rel=0.1)


def two_slides(good, bad):
    both = ad.concat([good, bad], keys=["good", "bad"], label="slide", index_unique="-")
    sg.pp.neighborhood_graph(both, library_key="slide")
    return both


def test_the_worst_of_several_slides_counts(known_slide, judge):
    good, bad = known_slide.copy(), thinned(known_slide[:200].copy(), 0.02)
    found = card(two_slides(good, bad), judge)
    assert found["verdict"] == "outside what the model knows"
    assert found["checks"].loc["depth", "text"].endswith("(slide 'bad', the worst of 2)")
    alone = card(known_slide.copy(), judge)["checks"]["value"]
    both = card(two_slides(good, known_slide.copy()), judge)["checks"]["value"]
    np.testing.assert_allclose(alone, both, atol=5e-3)


def test_the_worse_of_two_fine_slides_is_named(known_slide, judge):
    shallower = thinned(known_slide[:100].copy(), 0.8)
    for first, second in ((known_slide.copy(), shallower), (shallower, known_slide.copy())):
        both = two_slides(first, second)
        text = card(both, judge)["checks"].loc["depth", "text"]
        assert ("'good'" in text) == (first is shallower)


def test_slides_may_be_in_different_units(known_slide, judge):
    other = known_slide.copy()
    other.obsm["spatial"] = other.obsm["spatial"] * 100
    both = ad.concat([known_slide, other], keys=["a", "b"], label="slide", index_unique="-")
    sg.pp.neighborhood_graph(both, "knn", library_key="slide")
    assert card(both, judge)["checks"].loc["neighbors", "value"] == both.obs["sage_far_neighbors"].mean() == 0


def test_graphs_unlike_training_are_taken_with_care(known_slide, judge):
    import squidpy as sq

    adata = known_slide.copy()
    sq.gr.spatial_neighbors(adata, coord_type="grid", n_neighs=6)
    found = card(adata, judge, connectivity_key="spatial")
    assert found["verdict"] == found["checks"].loc["neighbors", "verdict"] == "with care"
    assert "where training had 14" in found["checks"].loc["neighbors", "text"]


def test_what_cant_be_looked_at_is_no_reason_for_trust(known_slide, judge):
    adata = known_slide.copy()
    del adata.obsp["sage_distances"]
    found = card(adata, judge)
    assert found["checks"].loc["lattice", "verdict"] == "unknown"
    assert found["verdict"] == "with care"


def test_distances_with_a_diagonal(known_slide, judge):
    from sklearn.neighbors import kneighbors_graph

    adata = known_slide.copy()
    xy = adata.obsm["spatial"]
    adata.obsp["my_distances"] = kneighbors_graph(xy, 15, mode="distance", include_self=True)
    adata.obsp["my_connectivities"] = kneighbors_graph(xy, 15, include_self=True)
    found = card(adata, judge, connectivity_key="my")
    assert found["checks"].loc["neighbors", "value"] < 0.05
    assert found["checks"].loc["lattice", "text"].startswith("hexagonal")


@pytest.mark.parametrize("broken", ["x", {"params": None}, {}])
def test_odd_records_of_the_graph(known_slide, judge, broken):
    adata = known_slide.copy()
    adata.uns["sage_neighbors"] = broken
    assert card(adata, judge)["verdict"] == "fine"


def test_an_empty_slide_is_refused(known_slide, judge):
    with pytest.raises(ValueError, match="no spots"):
        sg.pp.assess(known_slide[:0].copy(), judge)


def test_a_card_can_name_anything(known_slide, judge, tmp_path):
    adata = known_slide.copy()
    sg.pp.assess(adata, replace(judge, name="a$b_{$<c>"), save=tmp_path / "card.html")
    sg.pl.assessment(adata, save=tmp_path / "card.png")
    assert "a$b_{$&lt;c&gt;" in (tmp_path / "card.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "above", "field"),
    [(0.1, True, 0), (0.3, True, 0), (0.5, True, 2), (0.5, False, 0), (0.1, False, 2)],
)
def test_place_of_a_value_where_both_limits_are_one(value, above, field):
    from sagefm.pl._assessment import _position

    assert field <= _position(value, 0.4, 0.4, above) <= field + 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda xy: xy.__setitem__((3, 0), np.nan), "coordinates: .*is not finite .*for 1 spots"),
        (lambda xy: xy.__setitem__(slice(None), 1.0), "same coordinates"),
    ],
)
def test_intervals_need_places(slide, sage, change, match):
    slide.obsm["spatial"] = slide.obsm["spatial"].astype(float)
    change(slide.obsm["spatial"])
    with pytest.raises(ValueError, match=match):
        sg.tl.impute(slide, "KRT8", sage, intervals=0.9)
    assert "sage_imputed" not in slide.layers


def test_levels_of_any_number_type(slide, sage):
    model = replace(sage, calibration=calibration())
    sg.tl.impute(slide, ["KRT8", absent_gene(slide)], model, intervals=np.float32(0.9))
    assert slide.uns["sage_imputed"]["intervals"]["level"].to_numpy() == pytest.approx([0.9, 0.9])


def test_assessing_changes_nothing_else(known_slide, judge, tmp_path):
    adata = known_slide[:, ::9].copy()
    before = adata.copy()
    sg.pp.assess(adata, judge, save=tmp_path / "card.html")
    sg.pp.assess(adata, judge, save=tmp_path / "card.txt")
    assert list(adata.var) == list(before.var)
    assert adata.uns.keys() - before.uns.keys() == {"sage_assessment"}
    assert (tmp_path / "card.txt").read_text().strip() == adata.uns["sage_assessment"]["text"].strip()
    page = (tmp_path / "card.html").read_text()
    assert "outside what the model knows" in page
    assert page.count("<tr>") == len(adata.uns["sage_assessment"]["checks"])


def test_without_a_reference_there_is_no_verdict(known_slide, sage):
    found = card(known_slide.copy(), sage)
    assert found["verdict"] == "unknown"
    assert (found["checks"]["verdict"] == "unknown").all()
    assert np.isnan(found["expected_r"])
    assert "carries no calibration" in found["text"]


def test_translated_genes_are_taken_with_care(known_slide, judge):
    adata = mouse(known_slide.copy())
    sg.pp.align_genes(adata, orthologs=dict(zip(adata.var_names, known_slide.var_names, strict=True)))
    found = card(adata, judge)
    assert found["checks"].loc["species", "verdict"] == "with care"
    assert found["verdict"] == "with care"


@pytest.mark.parametrize(
    ("change", "options", "error", "match"),
    [
        (lambda a: a.obsp.clear(), {}, KeyError, "sg.pp.neighborhood_graph"),
        (lambda a: None, {"save": "card.pdf"}, ValueError, r"\.html or \.txt"),
        (lambda a: None, {"layer": "raw"}, KeyError, "layer 'raw'"),
        (lambda a: a.X.__setattr__("data", a.X.data + 0.5), {}, ValueError, "no counts"),
        (lambda a: a.uns.__setitem__("mine", 1), {"key_added": "mine"}, ValueError, "exists"),
    ],
)
def test_assess_refusals(known_slide, judge, change, options, error, match):
    adata = known_slide.copy()
    change(adata)
    keys = set(adata.uns)
    with pytest.raises(error, match=match):
        sg.pp.assess(adata, judge, **options)
    assert set(adata.uns) == keys


def test_order_of_spots_and_genes_doesnt_matter(known_slide, judge):
    rng = np.random.default_rng(0)
    other = known_slide[rng.permutation(known_slide.n_obs), rng.permutation(known_slide.n_vars)].copy()
    sg.pp.neighborhood_graph(other)
    a, b = card(known_slide.copy(), judge)["checks"], card(other, judge)["checks"]
    np.testing.assert_allclose(a["value"], b["value"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (lambda i, j: (i, j), "square"),
        (lambda i, j: (i + 0.5 * (j % 2), j * np.sqrt(3) / 2), "hexagonal"),
        (lambda i, j: tuple(np.random.default_rng((i, j)).random(2) * 20), "irregular"),
    ],
)
def test_lattices(points, expected):
    from sklearn.neighbors import NearestNeighbors

    x = np.array([points(i, j) for i in range(20) for j in range(20)], dtype=float)
    distances = NearestNeighbors(n_neighbors=7).fit(x).kneighbors(x)[0][:, 1:]
    assert lattice_of(distances)[0] == expected


def test_nearest_is_a_cosine_distance():
    a, b = np.array([[3.0, 0, 0], [1, 1, 0]]), np.array([[1.0, 0, 0], [0, 0, 2]])
    np.testing.assert_allclose(nearest(a, b), [0, 1 - 1 / np.sqrt(2)], atol=1e-6)


REAL = {
    "her2st_G2": "fine",
    "CRC_16": "with care",
    "PDAC_A_ST1_legacy": "with care",
    "stMCCC_ccRCC_500spots": "outside what the model knows",
    "DLPFC_Br8325_ant_5000g": "outside what the model knows",
    "HCC1_2000g": "outside what the model knows",
}


@pytest.mark.parametrize(("name", "verdict"), REAL.items())
def test_verdicts_on_real_sections(section, name, verdict):
    adata = section(name)
    sg.pp.neighborhood_graph(adata)
    assert card(adata, "sagefm-mini")["verdict"] == verdict


def test_nothing_is_predicted(known_slide, judge):
    """So a network that can't run is no hindrance."""
    broken = replace(judge, weights=torch.nn.Module())
    assert card(known_slide.copy(), broken)["verdict"] == "fine"
