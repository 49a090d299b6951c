"""Expression from histology: against scikit-learn by hand, planted effects, and spots that no fit has seen."""

import signal

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel

import sagefm as sg
from sagefm.histology import expression as _expression
from sagefm.histology import vit as _vit
from sagefm.histology.finetune import _TrainedEncoder, turn
from sagefm.models import Encoder
from sagefm.tl._points import standardize

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


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    shape = _vit.Shape(size=48, patch=16, width=64, depth=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _vit.build(shape)
    return Encoder("tiny", network.requires_grad_(False).eval()).save(
        tmp_path_factory.mktemp("vit") / "vit.safetensors"
    )


@pytest.fixture(scope="module")
def painted():
    adata = sg.datasets.simulated_visium(12, 8, n_genes=600, image=True, rng=1)
    adata.obs["half"] = np.where(adata.obs["array_row"] < 6, "upper", "lower")
    sg.pp.histology_patches(adata, size=48, microns_per_unit=1.0)
    sg.tl.histology_embed(adata)
    sg.tl.predict_expression(adata, 40, group_key="half")
    return adata


def test_a_point_at_a_spot_gets_its_prediction(painted):
    dense = sg.tl.superresolve_expression(painted, 50, min_tissue=0)
    place = pd.MultiIndex.from_arrays(dense.obsm["spatial"].round(3).T)
    spots = pd.MultiIndex.from_arrays(painted.obsm["spatial"].round(3).T)
    both = np.flatnonzero(spots.isin(place))
    assert len(both) >= 6, "the grid starts at the first spots' row, whose spots are 100 apart"
    points = place.get_indexer(spots[both])
    assert (dense.obs["nearest_spot"].iloc[points].to_numpy() == painted.obs_names[both]).all()
    np.testing.assert_allclose(dense.X[points], painted.obsm[KEY].iloc[both], atol=1e-4)


def test_aggregated_to_spots_it_agrees(painted):
    dense = sg.tl.superresolve_expression(painted, 25)
    assert dense.shape == (dense.n_obs, 40)
    assert dense.n_obs > 8 * painted.n_obs
    assert dense.X.dtype == np.float32
    near = np.linalg.norm(
        dense.obsm["spatial"] - painted.obsm["spatial"][painted.obs_names.get_indexer(dense.obs["nearest_spot"])],
        axis=1,
    )
    frame = pd.DataFrame(dense.X, columns=dense.var_names)[near < 30]
    mean = frame.groupby(dense.obs["nearest_spot"].to_numpy()[near < 30], observed=True).mean()
    spots = painted.obsm[KEY].loc[mean.index]
    varied = spots.columns[painted.var[f"{KEY}_reliability"][spots.columns] > 0.3]
    assert len(varied) > 5
    r = [pearsonr(mean[gene], spots[gene])[0] for gene in varied]
    assert np.median(r) > 0.9
    np.testing.assert_allclose(dense.var["reliability"], painted.var.loc[dense.var_names, f"{KEY}_reliability"])
    assert dense.uns["superresolved"]["params"]["stride"] == 25
    assert (dense.obs["histology_tissue"] >= 0.25).all()
    assert set(dense.uns["spatial"]) == set(painted.uns["spatial"])


def test_points_are_of_a_fit_that_has_not_seen_them(painted):
    """The upper half is predicted by what the lower one shows: a model of that half alone says the same."""
    alone = painted[painted.obs["half"] == "lower"].copy()
    upper = painted[painted.obs["half"] == "upper"].copy()
    depth = painted.uns[KEY]["params"]["depth"]
    target = _expression.read_expression(alone, list(painted.obsm[KEY].columns), None, depth)
    scale = painted.uns[KEY]["params"]["scale"]
    points = standardize(painted.obsm["X_histology"], np.full(painted.n_obs, "a"))
    points = points if scale == "slide" else painted.obsm["X_histology"]
    rows = (painted.obs["half"] == "lower").to_numpy()
    groups, lower = np.full(rows.sum(), "lower"), np.arange(rows.sum())
    fitted = _expression.RidgeRegressor().fit(points[rows], target.values, groups, lower)
    np.testing.assert_allclose(fitted(points[~rows]), upper.obsm[KEY], atol=1e-4)


def test_it_is_told_if_the_slide_has_changed(painted):
    changed = painted.copy()
    changed.X[:, :] = changed.X[np.random.default_rng(0).permutation(changed.n_obs)]
    with pytest.raises(ValueError, match="isn't what counts and features give now"):
        sg.tl.superresolve_expression(changed, 50)


def test_dense_map_from_a_reference(painted):
    query = painted[painted.obs["half"] == "upper"].copy()
    reference = painted[painted.obs["half"] == "lower"].copy()
    query.X[:] = 0
    sg.tl.predict_expression(query, 10, reference=reference)
    with pytest.raises(ValueError, match="pass it as reference"):
        sg.tl.superresolve_expression(query, 50)
    dense = sg.tl.superresolve_expression(query, 50, reference=reference)
    assert dense.n_vars == 10
    with pytest.raises(ValueError, match="without a reference: leave it out"):
        sg.tl.superresolve_expression(painted, 50, reference=reference)


def forget_the_unit(adata):
    adata.uns["histology"]["params"].pop("microns_per_unit")
    adata.uns["spatial"]["simulated"]["scalefactors"].pop("microns_per_pixel", None)


DENSE_WRONG = {
    "no prediction": (lambda a: a.uns.pop(KEY), {}, KeyError, "Run sg.tl.predict_expression"),
    "features of others": (lambda a: a.uns.pop("X_histology"), {}, ValueError, "isn't of sg.tl.histology_embed"),
    "no patches": (lambda a: a.uns.pop("histology"), {}, KeyError, "Run sg.pp.histology_patches"),
    "no stride": (lambda a: None, {"stride": 0}, ValueError, "stride"),
    "a tiny stride": (lambda a: None, {"stride": 0.01}, ValueError, "larger stride"),
    "glass": (lambda a: None, {"min_tissue": 1.1}, ValueError, "no point"),
    "no unit": (lambda a: forget_the_unit(a), {}, ValueError, "Pass microns_per_unit"),
}


@pytest.mark.parametrize("case", DENSE_WRONG)
def test_what_gives_no_dense_map(case, painted):
    change, options, error, message = DENSE_WRONG[case]
    adata = painted.copy()
    change(adata)
    with pytest.raises(error, match=message):
        sg.tl.superresolve_expression(adata, **{"stride": 50, **options})


def in_spatialdata(adata):
    pixels = adata.uns["spatial"]["simulated"]["images"]["hires"]
    image = Image2DModel.parse(np.moveaxis(pixels, 2, 0), dims=("c", "y", "x"))
    shapes = ShapesModel.parse(adata.obsm["spatial"], geometry=0, radius=20, index=adata.obs_names)
    table = ad.AnnData(adata.X.copy(), obs=adata.obs.copy(), var=adata.var[[]].copy())
    table.obs["region"], table.obs["spot"] = pd.Categorical(["spots"] * adata.n_obs), adata.obs_names.to_numpy()
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="spot")
    return SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table})


def test_dense_map_of_a_spatialdata(painted):
    sdata = in_spatialdata(painted)
    sg.pp.histology_patches(sdata, size=48, microns_per_unit=1.0)
    sg.tl.histology_embed(sdata)
    sg.tl.predict_expression(sdata, 10, group_key="half")
    dense = sg.tl.superresolve_expression(sdata, 50)
    assert sdata.tables["superresolved"] is dense
    shapes = sdata.shapes["superresolved_circles"]
    assert (shapes.radius == 25).all()
    np.testing.assert_allclose(np.column_stack([shapes.geometry.x, shapes.geometry.y]), dense.obsm["spatial"])
    sg.tl.superresolve_expression(sdata, 60)
    del sdata.tables["superresolved"]
    with pytest.raises(ValueError, match="isn't of this function"):
        sg.tl.superresolve_expression(sdata, 60)


FINETUNE = {"method": "finetune", "group_key": "half", "n_epochs": 6, "learning_rate": 1e-3, "device": "cpu"}


def test_fine_tuning_learns(painted, vit):
    adata = painted.copy()
    sg.tl.predict_expression(adata, 10, model=vit, batch_size=16, **FINETUNE)
    r = adata.uns[KEY]["scores"]["r"]
    assert r.max() > 0.3
    assert adata.uns[KEY]["params"]["method"] == "finetune"
    with pytest.raises(ValueError, match="aren't kept"):
        sg.tl.superresolve_expression(adata, 50)
    found = []
    for seed in (0, 0, 1):
        short = painted.copy()
        sg.tl.predict_expression(short, 3, model=vit, batch_size=16, rng=seed, **{**FINETUNE, "n_epochs": 1})
        found.append(short.obsm[KEY].to_numpy())
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


def test_fine_tuning_is_interrupted(painted, vit, monkeypatch):
    """Lightning would end the interpreter."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without one
    monkeypatch.setattr(_TrainedEncoder, "training_step", lambda *args: signal.raise_signal(signal.SIGINT))
    adata = painted.copy()
    with pytest.raises(KeyboardInterrupt):
        sg.tl.predict_expression(adata, 5, model=vit, key_added="tuned", **FINETUNE)
    assert "tuned" not in adata.uns


def test_fine_tuning_sees_no_held_out_counts(painted, vit):
    changed = painted.copy()
    rows = np.flatnonzero(changed.obs["half"] == "upper")
    changed.X[rows] = changed.X[np.random.default_rng(0).permutation(rows)]
    options = {**FINETUNE, "n_epochs": 1}
    before = painted.copy()
    genes = list(painted.obsm[KEY].columns[:3])
    for each in (before, changed):
        sg.tl.predict_expression(each, genes, model=vit, **options)
    np.testing.assert_array_equal(before.obsm[KEY].iloc[rows], changed.obsm[KEY].iloc[rows])
    others = np.setdiff1d(np.arange(changed.n_obs), rows)
    assert not np.allclose(before.obsm[KEY].iloc[others], changed.obsm[KEY].iloc[others], atol=1e-5)


def test_what_can_not_be_fine_tuned(painted, vit, monkeypatch):
    with pytest.raises(ValueError, match="texture can't be fine-tuned"):
        sg.tl.predict_expression(painted, 5, **FINETUNE)
    other = painted.copy()
    for recorded in ("of somebody else", {"params": "text"}):
        other.uns["X_histology"] = recorded
        with pytest.raises(ValueError, match="pass model"):
            sg.tl.predict_expression(other, 5, **FINETUNE)
    with pytest.raises(ValueError, match="learning_rate"):
        sg.tl.predict_expression(painted, 5, model=vit, **{**FINETUNE, "learning_rate": 0})
    with pytest.raises(ValueError, match="none of 'ridge'"):
        sg.tl.predict_expression(painted, 5, method="forest")
    with pytest.raises(RuntimeError, match="isn't finite"):
        sg.tl.predict_expression(painted, 5, model=vit, **{**FINETUNE, "learning_rate": 1e30})


def test_turns_and_mirrors():
    image = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).float()
    seen = {tuple(turn(image[:1], torch.tensor([kind])).ravel().tolist()) for kind in range(8)}
    assert len(seen) == 8
    for kind in range(4):
        turned = image
        for _ in range(kind):
            turned = turned.transpose(2, 3).flip(2)
        np.testing.assert_array_equal(turn(image, torch.tensor([kind, kind])), turned)
        np.testing.assert_array_equal(turn(image, torch.tensor([kind + 4, kind + 4])), turned.flip(3))


def test_joined_representations_weigh_the_same():
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.zeros((50, 2), dtype=np.float32))
    adata.obsm["a"], adata.obsm["b"] = 1000 * rng.normal(size=(50, 3)) + 7, rng.normal(size=(50, 40))
    sg.tl.join_representations(adata, ["a", "b"])
    joined = adata.obsm["X_joined"]
    assert joined.shape == (50, 43)
    squares = [((part[:, None] - part[None]) ** 2).sum(axis=2).mean() for part in (joined[:, :3], joined[:, 3:])]
    np.testing.assert_allclose(squares, 2, rtol=1e-4)
    expected = (adata.obsm["a"] - adata.obsm["a"].mean(axis=0)) / adata.obsm["a"].std(axis=0) / np.sqrt(3)
    np.testing.assert_allclose(joined[:, :3], expected, atol=1e-5)
    adata.obs["slide"] = ["x"] * 25 + ["y"] * 25
    sg.tl.join_representations(adata, ["a", "b"], library_key="slide")
    for rows in (slice(25), slice(25, None)):
        np.testing.assert_allclose(adata.obsm["X_joined"][rows].mean(axis=0), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("use_reps", "options", "error", "message"),
    [
        ("a", {}, TypeError, "list of names"),
        (["a"], {}, ValueError, "two representations"),
        (["a", "a"], {}, ValueError, "each once"),
        (["a", "c"], {}, KeyError, "'c' not in adata.obsm"),
        (["a", "b"], {"key_added": "b"}, ValueError, "overwrite what is joined"),
        (["a", "b"], {"library_key": "slide"}, KeyError, "slide"),
    ],
)
def test_what_can_not_be_joined(use_reps, options, error, message):
    adata = ad.AnnData(np.zeros((5, 2), dtype=np.float32))
    adata.obsm["a"] = adata.obsm["b"] = np.eye(5)
    with pytest.raises(error, match=message):
        sg.tl.join_representations(adata, use_reps, **options)
    assert "X_joined" not in adata.obsm


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
