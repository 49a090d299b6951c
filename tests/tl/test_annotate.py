"""Annotation: planted classes are found, and scores are those of spots held out."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier

import sagefm as sg
from sagefm.tl._labels import classifiers
from sagefm.tl._labels.classifiers import fit_confidence
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_groups_of_the_reference_count_in_no_score(log):
    reference, query = planted(), planted(groups="QA", seed=5)
    sg.tl.annotate(query, "label", reference=reference, library_key="donor")
    assert query.uns["sage_annotation"]["scores"].index.tolist() == ["overall", "Q"]
    assert "60 labelled spots" in log.text


@pytest.mark.slow
def test_labels_that_the_reference_lacks_are_counted_apart(log):
    reference, query = planted(), planted(groups="Q", seed=5, n=200)
    query.obs["label"] = query.obs["label"].astype(str).replace({"z": "new"})
    sg.tl.annotate(query, "label", reference=reference, library_key="donor")
    scores = query.uns["sage_annotation"]["scores"].loc["overall"]
    is_new = query.obs["label"] == "new"
    assert (scores["n_spots"], scores["n_lacking"]) == ((~is_new).sum(), is_new.sum())
    assert scores["accuracy"] > 0.95
    assert f"The reference lacks 'new', so the {is_new.sum()} spots" in log.text


@pytest.mark.slow
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
    sure = adata.obs["sage_annotation_confidence"] >= 0.9
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


def test_confidence_is_what_held_out_groups_show():
    """A classifier that is right in 0.6 of the spots where it says 0.99, and in 0.3 of those where it says 0.9."""
    rng = np.random.default_rng(0)
    top = np.repeat([0.99, 0.9], 2_000)
    right = rng.random(4_000) < np.repeat([0.6, 0.3], 2_000)
    learned = fit_confidence(np.stack([top, 1 - top], axis=1), right)
    assert learned(np.array([[0.99, 0.01], [0.1, 0.9]])) == pytest.approx([0.6, 0.3], abs=0.04)
    # More probable classes are less often right: then probability says nothing.
    upside_down = fit_confidence(np.stack([top, 1 - top], axis=1), ~right)
    assert upside_down(np.array([[0.99, 0.01], [0.1, 0.9]])) == pytest.approx((~right).mean())


def test_sure_spots_are_right_more_often_than_all(log):
    """Labels that the representation tells for some spots alone."""
    adata = planted(n=400)
    rng = np.random.default_rng(0)
    told = rng.random(adata.n_obs) < 0.4
    adata.obsm["X_sage"][~told] = rng.normal(size=adata.obsm["X_sage"][~told].shape)
    sg.tl.annotate(adata, "label", group_key="donor")
    scores = adata.uns["sage_annotation"]["scores"]
    assert (scores["accuracy_sure"] > scores["accuracy"] + 0.1).all()
    assert (scores["accuracy"] > scores["accuracy_unsure"]).all()
    assert scores.loc["overall", "majority"] == pytest.approx(
        adata.obs["label"].value_counts(normalize=True).max(), abs=0.1
    )


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
