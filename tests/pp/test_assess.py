"""The trust card: on shifted slides, real sections and odd records."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
from references import SYMBOLS, N, calibration, irregular, thinned

import sagefm as sg
from sagefm.pp._assess import trial


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def known_slide():
    """A slide that the model below was as good as trained on."""
    adata = sg.datasets.simulated_visium(30, 28, rng=5)
    sg.pp.neighborhood_graph(adata)
    return adata


@pytest.fixture(autouse=True)
def predicted_well(monkeypatch):
    """The other checks are looked at, with a model of random weights; test_trial.py looks at this one."""
    monkeypatch.setattr(trial, "judge", lambda tried: "fine")


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


@pytest.mark.slow
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
    beyond = judge.calibration.prior_given_depth(checks.loc["genes", "value"])
    assert found["expected_r_beyond_depth"] == pytest.approx(beyond[np.setdiff1d(np.arange(N), genes)].mean(), rel=1e-4)
    assert "VEGFA" in found["markers_unknown"]
    assert not set(found["markers_unknown"]) & set(SYMBOLS)
    assert not set(found["markers_missing"]) & set(adata.var_names)


@pytest.mark.slow
def test_a_panel_is_compared_at_the_depth_it_would_have(known_slide, judge):
    whole, half = card(known_slide.copy(), judge), card(known_slide[:, ::2].copy(), judge)
    assert half["checks"].loc["depth", "value"] == pytest.approx(whole["checks"].loc["depth", "value"], rel=0.1)


def two_slides(good, bad):
    both = ad.concat([good, bad], keys=["good", "bad"], label="slide", index_unique="-")
    sg.pp.neighborhood_graph(both, library_key="slide")
    return both


@pytest.mark.slow
def test_the_worst_of_several_slides_counts(known_slide, judge):
    good, bad = known_slide.copy(), thinned(known_slide[:200].copy(), 0.02)
    found = card(two_slides(good, bad), judge)
    assert found["verdict"] == "outside what the model knows"
    assert "(slide 'bad', the worst of 2)" in found["checks"].loc["depth", "text"]
    for name, slide in (("good", good), ("bad", bad)):
        sg.pp.neighborhood_graph(slide)
        alone, of_slide = card(slide, judge), found["slides"].loc[name]
        assert of_slide["verdict"] == alone["verdict"]
        for check in ("depth", "neighbors", "lattice", "expression"):
            assert of_slide[f"{check}_verdict"] == alone["checks"].loc[check, "verdict"]
            assert of_slide[f"{check}_value"] == pytest.approx(alone["checks"].loc[check, "value"], abs=5e-3)
    assert f"{found['slides'].loc['bad', 'verdict'].capitalize()}: 'bad'." in found["text"]
    alone = card(known_slide.copy(), judge)["checks"]["value"]
    both = card(two_slides(good, known_slide.copy()), judge)["checks"]["value"]
    np.testing.assert_allclose(alone, both, atol=5e-3)


@pytest.mark.slow
def test_the_worse_of_two_fine_slides_is_named(known_slide, judge):
    shallower = thinned(known_slide[:100].copy(), 0.8)
    for first, second in ((known_slide.copy(), shallower), (shallower, known_slide.copy())):
        both = two_slides(first, second)
        text = card(both, judge)["checks"].loc["depth", "text"]
        assert ("'good'" in text) == (first is shallower)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["x", {"params": None}, {}])
def test_odd_records_of_the_graph(known_slide, judge, broken):
    adata = known_slide.copy()
    adata.uns["sage_neighbors"] = broken
    assert card(adata, judge)["verdict"] == "fine"


def test_an_empty_slide_is_refused(known_slide, judge):
    with pytest.raises(ValueError, match="no spots"):
        sg.pp.assess(known_slide[:0].copy(), judge)


@pytest.mark.slow
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


def test_without_a_calibration_the_slide_alone_can_tell(known_slide, sage, monkeypatch):
    found = card(known_slide.copy(), sage)
    assert found["verdict"] == "with care"
    assert (found["checks"]["verdict"].drop("prediction") == "unknown").all()
    assert np.isnan(found["expected_r"])
    assert "carries no calibration" in found["text"]
    monkeypatch.undo()
    assert card(known_slide.copy(), sage)["verdict"] == "outside what the model knows"  # its weights are random


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
        (lambda a: a.X.__setattr__("data", a.X.data + 0.5), {}, ValueError, "not counts"),
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


@pytest.mark.slow
def test_order_of_spots_and_genes_doesnt_matter(known_slide, judge):
    rng = np.random.default_rng(0)
    other = known_slide[rng.permutation(known_slide.n_obs), rng.permutation(known_slide.n_vars)].copy()
    sg.pp.neighborhood_graph(other)
    a, b = card(known_slide.copy(), judge)["checks"], card(other, judge)["checks"]
    np.testing.assert_allclose(a["value"], b["value"], rtol=1e-3, atol=1e-3)


REAL = {
    "her2st_G2": "fine",
    "CRC_16": "with care",  # it was trained on it
    "PDAC_A_ST1_legacy": "fine",
    "stMCCC_ccRCC_500spots": "outside what the model knows",
    "DLPFC_Br8325_ant_5000g": "outside what the model knows",
    "HCC1_2000g": "outside what the model knows",
}


@pytest.mark.parametrize(("name", "verdict"), REAL.items())
def test_verdicts_on_real_sections(section, monkeypatch, name, verdict):
    monkeypatch.undo()  # these are tried
    adata = section(name)
    sg.pp.neighborhood_graph(adata)
    assert card(adata, "sagefm-mini")["verdict"] == verdict
