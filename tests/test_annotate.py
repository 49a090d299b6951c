"""Annotation, composition and clusters' genes, against planted truth, scikit-learn and scipy."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.ensemble import RandomForestClassifier

import sagefm as sg
from sagefm.tl._labels import classifiers
from sagefm.tl._labels.composition import score_composition
from sagefm.tl._labels.labels import score_labels
from sagefm.tl._points import standardize


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch):
    monkeypatch.setattr(classifiers, "N_TREES", 20)


def planted(shift=0.0, n=60, groups="ABCD", seed=0, n_classes=3):
    """Classes a unit apart along one axis, slides ``shift`` apart along all; counts that nothing depends on."""
    generator = np.random.default_rng(seed)
    parts, labels, slides = [], [], []
    for name in groups:
        label = generator.integers(n_classes, size=n)
        points = generator.normal(0, 0.15, (n, 4)) + shift * generator.normal(0, 1, 4)
        points[:, 0] += label
        parts.append(points), labels.append(label), slides.append([name] * n)
    adata = ad.AnnData(np.ones((n * len(groups), 2), dtype=np.float32))
    adata.obsm["X_sage"] = np.concatenate(parts).astype(np.float32)
    adata.obs["label"] = pd.Categorical.from_codes(np.concatenate(labels), ["x", "y", "z", "w"][:n_classes])
    adata.obs["donor"] = np.concatenate(slides)
    return adata


def test_standardize_is_by_slide():
    points = np.array([[1.0, 5.0], [3.0, 5.0], [10.0, 0.0], [30.0, 2.0]])
    found = standardize(points, np.array(["a", "a", "b", "b"]))
    np.testing.assert_allclose(found, [[-1, 0], [1, 0], [-1, -1], [1, 1]], atol=1e-6)


def test_scores_of_labels():
    truth, predicted = np.array(list("aaab")), np.array(list("aabc"))
    # a: precision 1, recall 2/3, F1 0.8; b and c: 0. Macro over the three that occur.
    assert score_labels(truth, predicted) == pytest.approx(
        {"accuracy": 0.5, "f1_macro": 0.8 / 3, "f1_micro": 0.5, "recall_macro": 2 / 9, "precision_macro": 1 / 3}
    )


@pytest.mark.parametrize("classifier", ["forest", "mlp"])
def test_planted_classes_are_found_and_slides_told_apart_only_where_it_helps(classifier):
    near, far = planted(), planted(shift=5.0)
    for adata in (near, far):
        sg.tl.annotate(adata, "label", group_key="donor", library_key="donor", classifier=classifier)
        assert adata.uns["sage_annotation"]["scores"].loc["overall", "accuracy"] > 0.8
    assert far.uns["sage_annotation"]["params"]["scale"] == "slide"
    raw = planted(shift=5.0)
    sg.tl.annotate(raw, "label", group_key="donor", library_key="donor", classifier=classifier, scale="none")
    assert raw.uns["sage_annotation"]["scores"].loc["overall", "accuracy"] < 0.7


def test_labelled_spots_are_predicted_by_a_classifier_that_never_saw_their_group():
    adata = planted()
    generator = np.random.default_rng(3)
    adata.obs["label"] = generator.choice(["x", "y"], adata.n_obs)  # nothing to learn, all to remember
    sg.tl.annotate(adata, "label", group_key="donor")
    scores = adata.uns["sage_annotation"]["scores"]
    assert 0.3 < scores.loc["overall", "accuracy"] < 0.7
    best = adata.obsm["sage_annotation"].idxmax(axis=1)
    assert (best == adata.obs["label"]).mean() == pytest.approx(scores.loc["overall", "accuracy"])
    assert scores.index.tolist() == ["overall", "A", "B", "C", "D"]


def test_reference_gives_what_scikit_learn_gives():
    reference, query = planted(), planted(groups="Q", seed=5)
    query.obs["other"] = query.obs.pop("label")
    sg.tl.annotate(query, "label", reference=reference, group_key=None, library_key="donor", scale="none", rng=1)
    params = query.uns["sage_annotation"]["params"]
    # Nothing is known of the query: what can be told is how well the reference's own slides are predicted.
    assert params["scored_on"] == "reference"
    assert query.uns["sage_annotation"]["scores"].index.tolist() == ["overall", "A", "B", "C", "D"]
    forest = RandomForestClassifier(
        20, min_samples_leaf=int(params["settings"]["min_samples_leaf"]), random_state=params["seed"]
    ).fit(reference.obsm["X_sage"], reference.obs["label"].astype(str))
    expected = forest.predict_proba(query.obsm["X_sage"])
    np.testing.assert_allclose(query.obsm["sage_annotation"], expected)
    assert (query.obs["sage_annotation"].astype(str) == query.obs["other"].astype(str)).mean() > 0.9
    assert reference.uns == {}


def test_reference_and_labels_in_adata_give_scores():
    reference, query = planted(), planted(groups="QR", seed=5)
    sg.tl.annotate(query, "label", reference=reference, library_key="donor")
    scores = query.uns["sage_annotation"]["scores"]
    assert scores.index.tolist() == ["overall", "Q", "R"]
    assert scores.loc["overall", "accuracy"] > 0.9


def test_groups_of_the_reference_count_in_no_score(log):
    reference, query = planted(), planted(groups="QA", seed=5)
    sg.tl.annotate(query, "label", reference=reference, library_key="donor")
    assert query.uns["sage_annotation"]["scores"].index.tolist() == ["overall", "Q"]
    assert "60 labelled spots" in log.text


def test_labels_that_the_reference_lacks_count_as_missed():
    reference, query = planted(), planted(groups="Q", seed=5, n=200)
    query.obs["label"] = query.obs["label"].astype(str).replace({"z": "new"})
    sg.tl.annotate(query, "label", reference=reference, library_key="donor")
    scores = query.uns["sage_annotation"]["scores"].loc["overall"]
    assert scores["n_spots"] == 200
    assert scores["accuracy"] == pytest.approx((query.obs["label"] != "new").mean(), abs=0.03)


def test_a_group_named_overall_keeps_its_row():
    adata = planted()
    adata.obs["donor"] = adata.obs["donor"].replace({"A": "overall"})
    sg.tl.annotate(adata, "label", group_key="donor")
    assert adata.uns["sage_annotation"]["scores"].index.tolist() == ["overall", "B", "C", "D", "overall"]


def test_unsure_merge_and_missing_labels(tmp_path):
    adata = planted(n_classes=4)
    labels = adata.obs["label"].astype(object)
    labels[:7] = None
    adata.obs["label"] = labels
    sg.tl.annotate(adata, "label", group_key="donor", merge={"x": "xy", "y": "xy", "w": None}, min_probability=0.9)
    found = adata.obsm["sage_annotation"]
    assert found.columns.tolist() == ["xy", "z"]
    np.testing.assert_allclose(found.sum(axis=1), 1)
    sure = found.max(axis=1) >= 0.9
    assert ((adata.obs["sage_annotation"] == "unsure") == ~sure).all()
    known = adata.obs["label"].isin(["x", "y", "z"])
    scores = adata.uns["sage_annotation"]["scores"]
    assert scores.loc["overall", "n_spots"] == known.sum()
    assert scores.loc["overall", "share_sure"] == pytest.approx(sure[known].mean())
    truth = adata.obs["label"].map({"x": "xy", "y": "xy", "z": "z"})
    right = found.idxmax(axis=1) == truth
    assert scores.loc["overall", "accuracy_sure"] == pytest.approx(right[known & sure].mean())
    adata.obs["label"] = adata.obs["label"].astype("category")
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert ad.read_h5ad(tmp_path / "a.h5ad").uns["sage_annotation"]["scores"].shape == scores.shape


def test_one_group_has_no_scores_and_says_so(log, tmp_path):
    adata = planted(groups="A")
    sg.tl.annotate(adata, "label")
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert "scores" not in adata.uns["sage_annotation"]
    assert "Nothing is held out" in log.text


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"label_key": "nothing"}, KeyError, "nothing"),
        ({"label_key": "label", "use_rep": "X_none"}, KeyError, "X_none"),
        ({"label_key": "label", "classifier": "svm"}, ValueError, "svm"),
        ({"label_key": "label", "scale": "rows"}, ValueError, "rows"),
        ({"label_key": "label", "min_probability": 1.5}, ValueError, "min_probability"),
        ({"label_key": "label", "group_key": "nobody"}, KeyError, "nobody"),
        ({"label_key": "label", "merge": {"other": "x"}}, ValueError, "none of the labels"),
        ({"label_key": "label", "merge": {"x": "one", "y": "one", "z": "one"}}, ValueError, "two or more"),
        ({"label_key": "label", "merge": {"x": "unsure"}}, ValueError, "unsure"),
        ({"label_key": "label", "merge": {"x": "a/b"}}, ValueError, "can't be saved"),
        ({"label_key": "label", "merge": {"x": 1}}, TypeError, "got 1"),
        ({"label_key": "label", "key_added": "label"}, ValueError, "label"),
    ],
)
def test_wrong_arguments_leave_adata_as_it_was(arguments, error, words):
    adata = planted()
    with pytest.raises(error, match=words):
        sg.tl.annotate(adata, **arguments)
    assert "sage_annotation" not in adata.obs
    assert "sage_annotation" not in adata.obsm
    assert not adata.uns


def test_embeddings_of_two_models_are_refused():
    reference, query = planted(), planted(seed=1)
    for adata, model in ((reference, "one"), (query, "two")):
        adata.uns["X_sage"] = {"params": {"function": "tl.sage_embed", "model": model}}
    with pytest.raises(ValueError, match="same model"):
        sg.tl.annotate(query, "label", reference=reference)


def compositions(seed=0, n=150):
    generator = np.random.default_rng(seed)
    adata = ad.AnnData(np.ones((2 * n, 2), dtype=np.float32))
    points = generator.normal(0, 1, (2 * n, 5)).astype(np.float32)
    adata.obsm["X_sage"] = points
    adata.obsm["share"] = pd.DataFrame(
        1 / (1 + np.exp(-2 * points[:, :3])), index=adata.obs_names, columns=["p", "q", "r"]
    )
    adata.obs["donor"] = np.repeat(["A", "B"], n)
    return adata


@pytest.mark.parametrize("n_layers", [2, 3])
def test_planted_likelihoods_are_found(n_layers):
    adata = compositions()
    adata.obsm["share"].iloc[::10] = np.nan
    sg.tl.composition(adata, "share", group_key="donor", n_layers=n_layers)
    found, truth = adata.obsm["sage_composition"], adata.obsm["share"]
    known = truth.notna().all(axis=1)
    assert found.columns.tolist() == ["p", "q", "r"]
    assert ((found >= 0) & (found <= 1)).all(axis=None)
    scores = adata.uns["sage_composition"]["scores"].loc["overall"]
    by_class = [stats.pearsonr(found.loc[known, name], truth.loc[known, name])[0] for name in truth]
    by_rank = [stats.spearmanr(found.loc[known, name], truth.loc[known, name])[0] for name in truth]
    assert min(by_class) > 0.9
    assert scores["pearson_mean"] == pytest.approx(np.mean(by_class))
    assert scores["spearman_median"] == pytest.approx(np.median(by_rank))
    p, t = found[known].to_numpy(), truth[known].to_numpy()
    assert scores["bce"] == pytest.approx(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(), rel=1e-5)
    best = score_labels(t.argmax(axis=1), p.argmax(axis=1))
    assert scores["f1_macro"] == pytest.approx(best["f1_macro"])


def test_nothing_held_out_says_so_and_takes_what_tells_no_slides_apart(log):
    adata = compositions()
    adata.obs["donor"] = "A"
    sg.tl.composition(adata, "share", group_key="donor", n_epochs=1)
    assert adata.uns["sage_composition"]["params"]["scale"] == "slide"
    assert "scores" not in adata.uns["sage_composition"]
    assert "no score can be given" in log.text


def test_composition_repeats_itself_and_leaves_torch_as_it_was():
    import torch

    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, again = compositions(), compositions()
    for adata in (first, again):
        sg.tl.composition(adata, "share", group_key="donor", n_epochs=3)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first.obsm["sage_composition"], again.obsm["sage_composition"])


def test_constant_likelihoods_correlate_with_nothing():
    truth = np.full((10, 3), 0.2)
    scores = score_composition(truth, np.random.default_rng(0).random((10, 3)))
    assert scores["pearson_mean"] == 0
    assert scores["spearman_spot_mean"] == 0


def test_composition_from_a_reference():
    reference, query = compositions(), compositions(seed=1)
    truth = query.obsm.pop("share")
    sg.tl.composition(query, "share", reference=reference, group_key="donor", scale="none")
    assert np.corrcoef(query.obsm["sage_composition"]["p"], truth["p"])[0, 1] > 0.9
    assert query.uns["sage_composition"]["params"]["scored_on"] == "reference"


@pytest.mark.parametrize("bad", [-0.1, 1.2])
def test_no_likelihoods_are_refused(bad):
    adata = compositions()
    adata.obsm["share"].iloc[0, 0] = bad
    with pytest.raises(ValueError, match="between 0 and 1"):
        sg.tl.composition(adata, "share")
    assert "sage_composition" not in adata.obsm


def test_planted_markers_lead(slide):
    sg.tl.cluster_markers(slide, "domain")
    results = slide.uns["sage_cluster_markers"]["results"]
    truth = slide.uns["truth"]["markers"]
    for domain in slide.obs["domain"].unique():
        found = results[results["cluster"] == domain]
        expected = set(truth.loc[truth["domain"] == domain, "gene"])
        assert len(expected & set(found["gene"].head(20))) >= 15
        assert (np.diff(found["score"]) <= 0).all()
    # One gene against scipy; scanpy doesn't correct for ties, scipy's z without ties and continuity is the same.
    gene, domain = truth["gene"].iloc[0], truth["domain"].iloc[0]
    counts = slide.X.toarray()
    x = np.log1p(counts / counts.sum(1, keepdims=True) * np.median(counts.sum(1)))[:, slide.var_names.get_loc(gene)]
    inside = (slide.obs["domain"] == domain).to_numpy()
    n, m = inside.sum(), (~inside).sum()
    u = stats.rankdata(x)[inside].sum() - n * (n + 1) / 2
    z = (u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)
    row = results[(results["cluster"] == domain) & (results["gene"] == gene)].iloc[0]
    assert row["score"] == pytest.approx(z, rel=1e-3)
    assert row["share_in"] == pytest.approx((x[inside] > 0).mean())


def test_clusters_of_one_spot_and_genes_of_one_name(slide, log):
    slide.obs["one"] = np.where(np.arange(slide.n_obs) == 3, "alone", np.where(np.arange(slide.n_obs) < 50, "a", "b"))
    slide.var_names = ["TWIN", "TWIN", *slide.var_names[2:]]
    sg.tl.cluster_markers(slide, "one", min_spots=0)
    results = slide.uns["sage_cluster_markers"]["results"]
    assert set(results["cluster"]) == {"a", "b"}
    assert len(results) == 2 * slide.n_vars
    assert "'alone'" in log.text


def test_cluster_proportions_by_hand():
    adata = ad.AnnData(np.ones((8, 1), dtype=np.float32))
    adata.obs["sage_cluster"] = pd.Categorical(list("00001111"))
    adata.obs["tissue"] = list("aaabbbbb")
    sg.tl.cluster_proportions(adata, "tissue")
    results = adata.uns["sage_cluster_proportions"]["results"].set_index(["cluster", "group"])
    assert results["n_spots"].to_dict() == {("0", "a"): 3, ("0", "b"): 1, ("1", "a"): 0, ("1", "b"): 4}
    row = results.loc[("0", "a")]
    assert row["share"] == 0.75
    assert row["log2_enrichment"] == pytest.approx(np.log2(3.5 / (4 * 3 / 8 + 0.5)))
    assert row["pval"] == pytest.approx(stats.fisher_exact([[3, 1], [0, 4]]).pvalue)


def test_clusters_have_to_be_there(slide):
    with pytest.raises(KeyError, match=r"sg\.tl\.cluster\(adata\)"):
        sg.tl.cluster_markers(slide)
    with pytest.raises(KeyError, match="nowhere"):
        sg.tl.cluster_proportions(slide, "nowhere", "domain")
