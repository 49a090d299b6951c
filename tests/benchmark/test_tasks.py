"""Evaluation of clusters, distances, annotation and composition: by hand and on what was planted."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cosine

import sagefm as sg


def blobs(seed=0, n=40, groups="ABC"):
    """Three classes in each of three donors; ``good`` tells the classes apart, ``bad`` nothing."""
    generator = np.random.default_rng(seed)
    label = np.tile(np.repeat([0, 1, 2], n), len(groups))
    adata = ad.AnnData(generator.poisson(2.0, (len(label), 30)).astype(np.float32))
    adata.obs["label"] = pd.Categorical.from_codes(label, ["x", "y", "z"])
    adata.obs["donor"] = np.repeat(list(groups), 3 * n)
    adata.obsm["good"] = np.eye(3)[label] + generator.normal(0, 0.05, (len(label), 3))
    adata.obsm["bad"] = generator.normal(0, 1, (len(label), 3))
    return adata


def test_clusters_agree_with_what_was_planted():
    table = sg.benchmark.evaluate_clustering(blobs(), ["good", "bad"], "label", n_repeats=2).set_index("representation")
    assert table.loc["good", "ari"] == 1
    assert table.loc["good", "nmi"] == pytest.approx(1)
    assert table.loc["good", "silhouette"] > 0.8
    assert abs(table.loc["bad", "ari"]) < 0.1
    assert table["n_clusters"].tolist() == [3, 3]


def test_clusters_within_slides():
    adata = blobs()
    adata.obs.loc[adata.obs["donor"] == "B", "label"] = np.nan
    adata.obs.loc[(adata.obs["donor"] == "C") & (adata.obs["label"] == "z"), "label"] = "y"
    table = sg.benchmark.evaluate_clustering(adata, "good", "label", within="donor", n_repeats=1)
    assert table["part"].tolist() == ["A", "C"]
    assert table["n_clusters"].tolist() == [3, 2]
    with pytest.raises(ValueError, match="one value only"):
        sg.benchmark.evaluate_clustering(adata[adata.obs["donor"] == "B"].copy(), "good", "label")


def test_distances_between_samples_by_hand():
    adata = blobs(groups="ABCD")
    adata.obs["tissue"] = adata.obs["donor"].map({"A": "one", "B": "one", "C": "two", "D": "two"})
    pairs = sg.benchmark.centroid_distances(adata, ["good", "bad"], "donor", kind_key="tissue")
    assert len(pairs) == 3 * 12
    bad = pairs[pairs["representation"] == "bad"].set_index(["sample", "other"])
    centers = {name: adata.obsm["bad"][adata.obs["donor"] == name].mean(axis=0) for name in "ABCD"}
    log = np.log1p(adata.X)
    bases = {name: log[adata.obs["donor"] == name].mean(axis=0) for name in "ABCD"}
    expected = {pair: cosine(centers[pair[0]], centers[pair[1]]) for pair in bad.index}
    base = {pair: cosine(bases[pair[0]], bases[pair[1]]) for pair in bad.index}

    def scaled(values):
        values = np.array(list(values.values()))
        return (values - values.min()) / np.ptp(values)

    np.testing.assert_allclose(bad["distance"], list(expected.values()), atol=1e-9)
    np.testing.assert_allclose(bad["scaled"], scaled(expected), atol=1e-9)
    np.testing.assert_allclose(bad["error"], np.abs(scaled(expected) - scaled(base)), atol=1e-4)
    assert sorted(bad.loc["A", "rank"]) == [1, 2, 3]
    assert bad.loc["A", "distance"].idxmin() == bad.loc["A", "rank"].idxmin()
    summary = sg.benchmark.summarize_distances(pairs)
    same = [("A", "B"), ("B", "A"), ("C", "D"), ("D", "C")]
    assert summary.loc["bad", "same_kind_rank"] == pytest.approx(np.mean([bad.loc[pair, "rank"] for pair in same]))
    assert summary.loc["bad", "chance_rank"] == 2
    rho = stats.spearmanr(bad["distance"], bad["base_scaled"])[0]
    assert summary.loc["bad", "spearman"] == pytest.approx(rho)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 100), st.integers(0, 1000))
def test_distances_know_no_size_and_no_order(factor, seed):
    adata = blobs(seed % 7, n=5)
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    other = adata[order].copy()
    other.obsm["bad"] = other.obsm["bad"] * factor
    first, second = (sg.benchmark.centroid_distances(part, "bad", "donor", base_rep="good") for part in (adata, other))
    np.testing.assert_allclose(first["scaled"], second["scaled"], atol=1e-6)
    np.testing.assert_allclose(first["error"], second["error"], atol=1e-6)


def test_a_sample_of_two_tissues_is_refused():
    adata = blobs()
    with pytest.raises(ValueError, match="'A'.* 3 values"):
        sg.benchmark.centroid_distances(adata, "good", "donor", kind_key="label")


def test_held_out_donors_have_no_say_in_the_choice():
    adata = blobs()
    arguments = {"classifier": "forest", "n_bootstraps": 2, "test_groups": ["B"]}
    first = sg.benchmark.evaluate_annotation(adata, "label", "good", **arguments)
    assert first["bootstrap"].tolist() == [0, 1, 2]
    assert (first["accuracy"] > 0.95).all()
    labels = adata.obs["label"].astype(str)
    held_out = adata.obs["donor"] == "B"
    adata.obs["label"] = labels.where(~held_out, labels.map({"x": "y", "y": "z", "z": "x"}))
    second = sg.benchmark.evaluate_annotation(adata, "label", "good", **arguments)
    assert (second["accuracy"] < 0.05).all()
    assert (first[["scale", "settings"]] == second[["scale", "settings"]]).all(axis=None)


def test_embeddings_by_held_out_group():
    adata = blobs()
    for group in "ABC":
        adata.obsm[f"own {group}"] = adata.obsm["good" if group == "B" else "bad"]
    table = sg.benchmark.evaluate_annotation(adata, "label", "own {group}", classifier="forest", n_bootstraps=0)
    accuracy = table.set_index("group")["accuracy"]
    assert accuracy["B"] > 0.95
    assert accuracy[["A", "C"]].max() < 0.6


def test_signed_rank_tests_are_scipys():
    generator = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([["new", "old"], list("ABCDEF"), range(4)])
    scores = index.to_frame(index=False, name=["representation", "group", "bootstrap"]).assign(classifier="forest")
    scores["accuracy"] = generator.random(len(scores))
    (row,) = sg.benchmark.compare_representations(scores, "old", metrics=["accuracy"]).to_dict(orient="records")
    wide = scores.pivot(index=["group", "bootstrap"], columns="representation", values="accuracy")
    whole, drawn = wide[wide.index.get_level_values(1) == 0], wide[wide.index.get_level_values(1) > 0]
    assert row["pval_groups"] == pytest.approx(stats.wilcoxon(whole["new"], whole["old"]).pvalue)
    assert row["pval_bootstraps"] == pytest.approx(stats.wilcoxon(drawn["new"], drawn["old"]).pvalue)
    assert row["difference"] == pytest.approx((whole["new"] - whole["old"]).mean())
    assert row["n_ahead"] == (whole["new"] > whole["old"]).sum()


def test_settings_come_from_the_grid_and_from_as_many_folds(monkeypatch):
    from sagefm.tl._labels import classifiers

    adata, asked, folds = blobs(groups="ABCD"), [], classifiers.folds
    monkeypatch.setattr(classifiers, "folds", lambda groups, n: asked.append(n) or folds(groups, n))
    # Stumps can't tell three classes apart.
    grid = {"forest": {"max_depth": [1, 4], "n_estimators": [1]}}
    options = {"classifier": "forest", "n_bootstraps": 0, "scale": "none", "test_groups": ["A"]}
    (row,) = sg.benchmark.evaluate_annotation(adata, "label", "good", param_grid=grid, n_folds=2, **options).to_dict(
        orient="records"
    )
    assert row["settings"] == "max_depth=4, n_estimators=1"
    assert asked == [2]
    with pytest.raises(ValueError, match="param_grid of 'forest'.*trees"):
        sg.benchmark.evaluate_annotation(adata, "label", "good", param_grid={"forest": {"trees": [1]}}, **options)
    with pytest.raises(ValueError, match="param_grid='tree'"):
        sg.benchmark.evaluate_annotation(adata, "label", "good", param_grid={"tree": {}}, **options)


def test_all_pairs_are_compared_without_a_baseline():
    index = pd.MultiIndex.from_product([["a", "b", "c"], list("ABC"), range(2)])
    scores = index.to_frame(index=False, name=["representation", "group", "bootstrap"]).assign(classifier="forest")
    scores["accuracy"] = np.random.default_rng(0).random(len(scores))
    table = sg.benchmark.compare_representations(scores, metrics="accuracy")
    assert table[["representation", "baseline"]].to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    one = sg.benchmark.compare_representations(scores, "c", metrics="accuracy")
    pd.testing.assert_frame_equal(table[1:].reset_index(drop=True), one)


@pytest.mark.slow
def test_units_are_chosen_where_groups_are_held_out():
    adata = blobs(groups="ABCD")
    adata.obsm["share"] = pd.get_dummies(adata.obs["label"], dtype=float)
    options = {"n_layers": 2, "n_epochs": 15, "scale": "none", "test_groups": ["A", "B"], "pooled": True}
    both = sg.benchmark.evaluate_composition(adata, "share", "good", n_units=[1, 64], n_folds=2, **options)
    assert both["group"].tolist() == ["pooled", "pooled"]
    assert both["n_units"].iloc[1] == 64
    one = sg.benchmark.evaluate_composition(adata, "share", "good", n_units=64, **options)
    assert both["bce"].tolist() == pytest.approx(one["bce"].tolist())
    few = sg.benchmark.evaluate_composition(adata, "share", "good", n_units=1, **options)
    assert few["bce"].iloc[1] > both["bce"].iloc[1]


@pytest.mark.slow
def test_composition_of_held_out_donors_beats_their_mean():
    adata = blobs()
    adata.obsm["share"] = pd.get_dummies(adata.obs["label"], dtype=float)
    table = sg.benchmark.evaluate_composition(adata, "share", ["good", "bad"], n_layers=2, n_epochs=20)
    bce = table.groupby(["representation", "n_layers"])["bce"].mean()
    assert bce["good", 2] < 0.5 * bce["good", 0]
    assert bce["bad", 2] > 0.8 * bce["bad", 0]
    assert table.loc[(table["representation"] == "good") & (table["n_layers"] == 2), "accuracy"].min() > 0.95


@pytest.mark.slow
def test_several_tested_groups_are_held_out_together():
    adata = blobs(groups="ABCD")
    # Only D knows what z is; if D were fitted on while B is scored, B's z would be found.
    adata.obs["label"] = adata.obs["label"].astype(str)
    adata.obs.loc[adata.obs["donor"].isin(["A", "C"]) & (adata.obs["label"] == "z"), "label"] = np.nan
    arguments = {"classifier": "forest", "n_bootstraps": 0}
    table = sg.benchmark.evaluate_annotation(adata, "label", "good", test_groups=["B", "D"], **arguments)
    assert table["group"].tolist() == ["B", "D"]
    np.testing.assert_allclose(table["accuracy"], 2 / 3, atol=0.05)
    in_turn = sg.benchmark.evaluate_annotation(adata, "label", "good", **arguments).set_index("group")
    assert in_turn.loc["B", "accuracy"] > 0.95


def test_pooled_groups_are_scored_as_one():
    """The paper's test: 30 fits on draws, scored on the spots of all held-out sections together."""
    adata = blobs(groups="ABCD")
    arguments = {"classifier": "forest", "n_bootstraps": 3, "test_groups": ["B", "D"]}
    by_group = sg.benchmark.evaluate_annotation(adata, "label", ["good", "bad"], **arguments)
    table = sg.benchmark.evaluate_annotation(adata, "label", ["good", "bad"], pooled=True, **arguments)
    assert set(table["group"]) == {"pooled"}
    assert table["n_spots"].iloc[0] == (adata.obs["donor"].isin(["B", "D"])).sum()
    weighted = by_group.assign(right=by_group["accuracy"] * by_group["n_spots"])
    sums = weighted.groupby(["representation", "bootstrap"])[["right", "n_spots"]].sum()
    expected = sums["right"] / sums["n_spots"]
    found = table.set_index(["representation", "bootstrap"])["accuracy"]
    pd.testing.assert_series_equal(found.sort_index(), expected.sort_index(), check_names=False)
    test = sg.benchmark.compare_representations(table, "bad", metrics=["accuracy"]).iloc[0]
    draws = found[found.index.get_level_values("bootstrap") > 0]
    assert test["pval_bootstraps"] == pytest.approx(stats.wilcoxon(draws["good"], draws["bad"]).pvalue)
    with pytest.raises(ValueError, match="name these groups"):
        sg.benchmark.evaluate_annotation(adata, "label", "good", pooled=True)


def test_slides_that_cross_donors_are_refused():
    adata = blobs()
    adata.obs["batch"] = "one"
    with pytest.raises(ValueError, match="reach into training"):
        sg.benchmark.evaluate_annotation(adata, "label", "good", library_key="batch", n_bootstraps=0)
