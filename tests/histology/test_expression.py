"""Expression predicted from images, against scikit-learn, and in the protocol."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

import sagefm as sg
from sagefm.histology import expression as _expression

KEY = "histology_expression"


def planted(n_spots=240, n_genes=30, n_features=6, n_sections=4, signal=1.0, seed=0):
    """Counts whose logarithm is linear in features, in sections that have none of it in common but that."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n_spots, n_features))
    weights = rng.normal(size=(n_features, n_genes)) * signal / np.sqrt(n_features)
    rate = np.exp(3 + features @ weights)
    counts = rng.poisson(rate / rate.sum(axis=1, keepdims=True) * 5000)
    adata = ad.AnnData(counts.astype(np.float32))
    adata.var_names = [f"G{i}" for i in range(n_genes)]
    adata.obs["section"] = [f"s{i % n_sections}" for i in range(n_spots)]
    adata.obs["donor"] = [f"d{i % n_sections // 2}" for i in range(n_spots)]
    adata.obsm["X_histology"] = features.astype(np.float32)
    return adata


def by_hand(adata, genes, key):
    """The same by scikit-learn and scanpy, with loops over sections and penalties."""
    plain = ad.AnnData(adata.X.copy(), obs=adata.obs.copy(), var=adata.var.copy())
    sc.pp.normalize_total(plain, target_sum=float(np.median(plain.X.sum(axis=1))))
    sc.pp.log1p(plain)
    truth = np.array(plain[:, genes].X, dtype=float)
    x, groups = adata.obsm["X_histology"].astype(float), adata.obs[key].to_numpy()
    found = np.zeros_like(truth)

    def predict(train, test, penalty):
        # Features are standardised on all that is learned from, before anything of it is held out.
        return Ridge(penalty).fit(scaled[train], truth[train]).predict(scaled[test])

    for name in np.unique(groups):
        test, train = groups == name, groups != name
        scaled = StandardScaler().fit(x[train]).transform(x)
        errors = []
        for penalty in _expression.PENALTIES:
            inner = [
                ((truth[groups == other] - predict(train & (groups != other), groups == other, penalty)) ** 2).mean()
                for other in np.unique(groups[train])
            ]
            errors.append(np.mean(inner))
        found[test] = predict(train, test, _expression.PENALTIES[int(np.argmin(errors))])
    return np.maximum(found, 0), truth


def test_like_scikit_learn_by_hand():
    adata = planted()
    genes = ["G3", "G0", "G17"]
    sg.tl.predict_expression(adata, genes, library_key="section", scale="none")
    expected, truth = by_hand(adata, genes, "section")
    assert adata.obsm[KEY].columns.tolist() == genes
    np.testing.assert_allclose(adata.obsm[KEY], expected, atol=1e-4)
    scores = adata.uns[KEY]["scores"]
    for gene in range(3):
        by_section = [
            pearsonr(truth[rows, gene], expected[rows, gene])[0]
            for rows in (adata.obs["section"] == name for name in ["s0", "s1", "s2", "s3"])
        ]
        np.testing.assert_allclose(scores.filter(like="r_").iloc[gene], by_section, atol=1e-4)
        np.testing.assert_allclose(scores["r"].iloc[gene], np.mean(by_section), atol=1e-4)
        elsewhere = np.zeros(len(truth))
        for name in adata.obs["section"].unique():
            rows = (adata.obs["section"] == name).to_numpy()
            elsewhere[rows] = truth[~rows, gene].mean()
        r2 = 1 - ((truth[:, gene] - expected[:, gene]) ** 2).sum() / ((truth[:, gene] - elsewhere) ** 2).sum()
        np.testing.assert_allclose(scores["r2"].iloc[gene], r2, atol=1e-3)
    reliability = adata.var[f"{KEY}_reliability"]
    np.testing.assert_allclose(reliability[genes], scores["r"])
    assert reliability.drop(genes).isna().all()


@pytest.mark.slow
def test_planted_expression_is_found_and_noise_is_not():
    adata = planted(signal=1.0)
    sg.tl.predict_expression(adata, 20, library_key="section")
    assert adata.uns[KEY]["scores"]["r"].median() > 0.8
    noise = planted(signal=0.0)
    sg.tl.predict_expression(noise, 20, library_key="section")
    assert abs(noise.uns[KEY]["scores"]["r"].median()) < 0.1
    assert noise.uns[KEY]["scores"]["r2"].median() < 0.02


def test_the_most_expressed_genes_are_taken():
    adata = planted()
    sg.tl.predict_expression(adata, 7, library_key="section")
    shares = (adata.X / adata.X.sum(axis=1, keepdims=True)).sum(axis=0)
    assert set(adata.obsm[KEY].columns) == set(adata.var_names[np.argsort(-shares)[:7]])


@pytest.mark.parametrize(("key", "held"), [("section", "s1"), ("donor", "d1")])
def test_no_spot_is_predicted_from_its_own_group(key, held):
    """What is counted in a group is nothing to that group's predictions."""
    adata = planted()
    changed = adata.copy()
    rows = np.flatnonzero(adata.obs[key] == held)
    changed.X[rows] = changed.X[np.random.default_rng(0).permutation(rows)]
    options = {"library_key": "section", "group_key": key, "scale": "none"}
    for each in (adata, changed):
        sg.tl.predict_expression(each, ["G1", "G2"], **options)
    before, after = adata.obsm[KEY].to_numpy(), changed.obsm[KEY].to_numpy()
    np.testing.assert_array_equal(before[rows], after[rows])
    others = np.setdiff1d(np.arange(adata.n_obs), rows)
    assert not np.allclose(before[others], after[others], atol=1e-4)


def test_staining_is_taken_where_that_helps():
    adata = planted()
    section = adata.obs["section"].astype("category").cat.codes.to_numpy()
    adata.obsm["X_histology"] += (5 * section**2)[:, None]
    sg.tl.predict_expression(adata, 20, library_key="section")
    assert adata.uns[KEY]["params"]["scale"] == "slide"
    assert adata.uns[KEY]["scores"]["r"].median() > 0.8


def test_a_slide_without_counts_is_predicted_from_a_reference(log, monkeypatch):
    adata = planted()
    reference, query = (adata[adata.obs["section"].isin(names)].copy() for names in (["s0", "s1", "s2"], ["s3"]))
    truth = query.copy()
    query.X = np.zeros_like(query.X)
    sg.tl.predict_expression(query, 10, reference=reference, library_key="section", scale="none")
    assert query.uns[KEY]["params"]["scored_on"] == "reference"
    assert list(query.uns[KEY]["scores"].columns) == ["r", "r2", "r_s0", "r_s1", "r_s2"]
    fits, fit = [], _expression.RidgeRegressor.fit
    monkeypatch.setattr(_expression.RidgeRegressor, "fit", lambda *args: fits.append(1) or fit(*args))
    sg.tl.predict_expression(truth, 10, reference=reference, library_key="section", scale="none")
    assert len(fits) == 1, "nothing hangs on groups of the reference that are held out"
    assert truth.uns[KEY]["params"]["scored_on"] == "adata"
    assert truth.uns[KEY]["scores"]["r"].median() > 0.7
    pd.testing.assert_frame_equal(truth.obsm[KEY], query.obsm[KEY])
    # Spots of the reference itself don't count.
    assert "the reference has too" not in log.text
    sg.tl.predict_expression(reference, 10, reference=adata, library_key="section", scale="none")
    assert "are of groups that the reference has too (s0, s1, s2)" in log.text
    assert reference.uns[KEY]["params"]["scored_on"] == "reference"


def test_groups_of_any_name_can_be_saved(tmp_path):
    adata = planted()
    adata.obs["section"] = adata.obs["section"].str.replace("s", "donor/")
    sg.tl.predict_expression(adata, 5, library_key="section")
    assert "r_donor|0" in adata.uns[KEY]["scores"]
    adata.write_h5ad(tmp_path / "slide.h5ad")
    read = ad.read_h5ad(tmp_path / "slide.h5ad")
    pd.testing.assert_frame_equal(read.uns[KEY]["scores"], adata.uns[KEY]["scores"])


def test_nothing_to_score(log):
    adata = planted()
    one, other = (adata[adata.obs["section"] == name].copy() for name in ("s0", "s1"))
    other.X[:] = 0
    sg.tl.predict_expression(other, 5, reference=one)
    assert "how good the prediction is can't be told" in log.text
    assert "scores" not in other.uns[KEY]
    assert other.var[f"{KEY}_reliability"].isna().all()


WRONG = {
    "one section": (lambda a: None, {}, ValueError, "all spots are of one group"),
    "no features": (lambda a: a.obsm.clear(), {"library_key": "section"}, KeyError, "Run sg.tl.histology_embed"),
    "no such gene": (lambda a: None, {"genes": ["G0", "TP53"]}, KeyError, "'TP53' not in"),
    "a gene twice": (lambda a: None, {"genes": ["G0", "G0"]}, ValueError, "each once"),
    "a single name": (lambda a: None, {"genes": "G0"}, TypeError, "genes=\\['G0'\\]"),
    "no genes": (lambda a: None, {"genes": 0}, ValueError, "genes"),
    "too many": (lambda a: None, {"genes": 31}, ValueError, "has counts of 30 genes only"),
    "no counts": (lambda a: a.X.fill(0), {"genes": ["G0"]}, ValueError, "no counts to learn from"),
    "no raw counts": (lambda a: a.X.__iadd__(0.5), {"genes": ["G0"]}, ValueError, "raw counts"),
    "no such column": (lambda a: None, {"library_key": "batch"}, KeyError, "batch"),
    "a key of others": (lambda a: a.obsm.update(x=a.X), {"key_added": "x"}, ValueError, "wasn't written by"),
    "an odd scale": (lambda a: None, {"scale": "max"}, ValueError, "none of 'auto'"),
    "names twice": (lambda a: setattr(a, "var_names", ["G"] * 30), {"genes": 5}, ValueError, "not unique"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused(case):
    change, options, error, message = WRONG[case]
    adata = planted()
    change(adata)
    if case != "one section":
        options = {"library_key": "section", **options}
    before = (set(adata.obsm), set(adata.uns), set(adata.var))
    with pytest.raises(error, match=message):
        sg.tl.predict_expression(adata, **{"genes": 5, **options})
    assert (set(adata.obsm), set(adata.uns), set(adata.var)) == before


@pytest.mark.slow
def test_histology_expression_and_both_in_the_protocol(tmp_path):
    """Clusters and labels from the image, from counts, and from both, where donors are held out."""
    for number in range(3):
        adata = sg.datasets.simulated_visium(8, 7, n_genes=8000, image=True, rng=number)
        adata.obs["donor"] = f"d{number}"
        sg.pp.neighborhood_graph(adata)
        sg.tl.sage_embed(adata, "sagefm-mini", device="cpu")
        sg.pp.histology_patches(adata, size=48)
        sg.tl.histology_embed(adata)
        sg.tl.join_representations(adata)
        adata.write_h5ad(tmp_path / f"section{number}.h5ad")
    keys = ["X_sage", "X_histology", "X_joined"]
    config = {
        "sections": str(tmp_path),
        "label_key": "domain",
        "tasks": ["annotation"],
        "classifiers": ["forest"],
        "n_bootstraps": 1,
        "n_repeats": 1,
        "n_clusters": 4,
        "representations": [{"name": key, "obsm": key} for key in keys],
    }
    sg.benchmark.run_protocol(config, tmp_path / "report")
    annotation = pd.read_csv(tmp_path / "report" / "results" / "annotation.csv")
    overall = annotation.groupby("representation")["accuracy"].mean()
    assert set(overall.index) == set(keys)
    assert overall["X_histology"] > 0.8, "the planted textures"
    assert overall["X_joined"] > overall["X_sage"] - 0.02
