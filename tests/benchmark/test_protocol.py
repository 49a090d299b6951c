"""The protocol: representations, tasks and donors from a file of settings to a report."""

import json
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sagefm as sg
from sagefm.benchmark._protocol import tasks as _tasks
from sagefm.benchmark._protocol.folder import Folder
from sagefm.cli import main
from sagefm.tl._labels import classifiers
from sagefm.tl._labels.network import fit_network


@pytest.fixture(scope="session")
def folder_of_slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sections")
    for seed in range(3):
        adata = sg.datasets.simulated_visium(10, 10, n_genes=9000, rng=seed)
        adata.obs["donor"], adata.obs["tissue"] = f"donor{seed}", ["breast", "breast", "skin"][seed]
        domains = pd.get_dummies(adata.obs["domain"], dtype=float)
        adata.obsm["share"] = domains
        adata.write_h5ad(folder / f"slide{seed}.h5ad")
    return folder


def fit_briefly(points, target, **options):
    """Few epochs: what the protocol does with the fits is tested, not they."""
    return fit_network(points, target, **options | {"n_epochs": 3})


@pytest.mark.slow
def test_imputation_is_evaluated_on_request(folder_of_slides, tmp_path):
    entry = {"name": "mini", "model": "sagefm-mini"}
    settings = {"sections": str(folder_of_slides), "tasks": ["imputation"], "representations": [entry], "device": "cpu"}
    table = sg.benchmark.run_protocol(settings, tmp_path / "out")["imputation"]
    assert set(table["group"]) == {"donor0", "donor1", "donor2"}
    slide = ad.read_h5ad(folder_of_slides / "slide1.h5ad")
    sg.pp.neighborhood_graph(slide)
    plain = sg.benchmark.evaluate_imputation(slide, "sagefm-mini", device="cpu")
    found = table[table["group"] == "donor1"].set_index("predictor")
    for ours, theirs in {"mini": "sagefm-mini", "depth alone": "depth alone"}.items():
        for metric in ("rmse", "r_beyond_depth", "share_attained"):
            assert found.loc[ours, metric] == pytest.approx(plain.loc[theirs, metric], rel=1e-4, abs=1e-6)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "share attained" in page
    assert "depth-scaled diffusion" in page


@pytest.fixture
def config(folder_of_slides, tmp_path, monkeypatch):
    for module in ("benchmark._composition", "tl._labels.composition"):
        monkeypatch.setattr(f"sagefm.{module}.fit_network", fit_briefly)
    monkeypatch.setattr(classifiers, "N_TREES", 10)
    path = tmp_path / "config.toml"
    path.write_text(
        f"""
sections = "{folder_of_slides.as_posix()}"
label_key = "domain"
target_key = "share"
baseline = "PCA"
classifiers = ["forest"]
n_bootstraps = 1
n_repeats = 1
n_clusters = 4

[[representations]]
name = "mini"
model = "sagefm-mini"

[[representations]]
name = "PCA"
expression = "log1p"
pca = 10
neighbors = true
"""
    )
    return path


@pytest.fixture
def undrawn(monkeypatch):
    """Without figures, which take longer than all else where slides are small."""

    def stop():
        monkeypatch.setattr(Folder, "figure", lambda *_: None)

    return stop


@pytest.mark.slow
def test_protocol_runs_resumes_and_reports(config, tmp_path, capsys, monkeypatch, log, undrawn):
    out = tmp_path / "report"
    # Interrupted in the middle, then again: the same as in one go.
    calls = []
    compute = _tasks.evaluate_annotation

    def interrupted(*arguments, **settings):
        calls.append(arguments[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*arguments, **settings)

    monkeypatch.setattr(_tasks, "evaluate_annotation", interrupted)
    assert main(["evaluate", str(config), "-o", str(out)]) == 130
    assert not (out / "report.html").exists()
    assert "goes on from there" in log.text
    assert calls == ["label", "dominant", "label"]
    assert main(["evaluate", str(config), "-o", str(out)]) == 0
    assert calls == ["label", "dominant", "label", "label", "dominant"]
    assert "report.html" in capsys.readouterr().out
    tables = {path.stem: pd.read_csv(path) for path in (out / "results").iterdir()}
    names = {"annotation", "annotation_tests", "clustering", "clusters", "composition", "distances", "domains"}
    names |= {"cluster-proportions", "markers"}
    assert names <= set(tables)
    assert all(table["representation"].iloc[0] == "mini" for name, table in tables.items() if name[-5:] != "tests")
    assert set(tables["annotation"]["group"]) == {"donor0", "donor1", "donor2"}
    assert tables["annotation"].groupby("representation")["accuracy"].mean().min() > 0.5
    part = tmp_path / "part.toml"
    part.write_text('tasks = ["heterogeneity", "annotation"]\n' + config.read_text())
    undrawn()
    at_once = sg.benchmark.run_protocol(part, tmp_path / "at_once")
    for name in ("annotation", "annotation_tests", "distances"):
        pd.testing.assert_frame_equal(
            tables[name], at_once[name], rtol=1e-3, check_dtype=False
        )  # threads sum in any order

    page = (out / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page), "the report is one file"
    assert page.count("<img") >= 10
    for words in ("Annotation", "Composition", "Distances between samples", "not comparable", "mini"):
        assert words in page
    assert re.search(r"\(rank [12] of 2\)", page)
    record = json.loads((out / "protocol.json").read_text())
    assert record["config"]["seed"] == 0
    assert record["versions"]["sagefm"] == sg.__version__
    assert str(tmp_path) not in (out / "protocol.json").read_text()

    # Nothing is done twice, other settings aren't mixed in.
    before = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    sg.benchmark.run_protocol(config, out)
    assert before == {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    config.write_text(config.read_text().replace("n_bootstraps = 1", "n_bootstraps = 0"))
    with pytest.raises(FileExistsError, match="other settings"):
        sg.benchmark.run_protocol(config, out)
    config.write_text(config.read_text().replace("label_key", 'tasks = ["annotation"]\nlabel_key', 1))
    tables = sg.benchmark.run_protocol(config, out, overwrite=True)
    assert (tables["annotation"]["bootstrap"] == 0).all()
    assert "clustering" not in tables


def pca(**settings):
    return {"representations": [{"name": "PCA", "expression": "log1p", "pca": 5}], **settings}


@pytest.mark.slow
def test_a_folder_and_defaults(folder_of_slides, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sagefm.benchmark._protocol.config.default_representations", lambda model: [{"name": model, "model": model}]
    )
    assert main(["evaluate", str(folder_of_slides), "--model", "sagefm-mini", "-o", str(tmp_path / "out")]) == 0
    assert {path.stem for path in (tmp_path / "out" / "results").iterdir()} >= {"clustering", "heterogeneity"}


def test_without_donors_and_tissues_sections_stand_for_themselves(folder_of_slides, tmp_path, log):
    settings = pca(sections=str(folder_of_slides), group_key="patient", tissue_key="organ", tasks=["heterogeneity"])
    tables = sg.benchmark.run_protocol(settings, tmp_path / "out")
    assert set(tables["distances"]["kind_of"]) == {"group"}
    assert "slide0 has no 'patient' in obs: it counts as a group of its own" in log.text


def test_centroids_of_tissues_are_those_of_samples_where_these_are_the_same(folder_of_slides, tmp_path):
    settings = pca(sections=str(folder_of_slides), tissue_key="donor", tasks=["heterogeneity"])
    tables = sg.benchmark.run_protocol(settings, tmp_path / "out")
    samples, tissues = tables["heterogeneity"].iloc[0], tables["tissue-heterogeneity"].iloc[0]
    assert tissues["error_mean"] > 0
    assert tissues["error_mean"] == pytest.approx(samples["error_mean"])
    assert "Centroids of the 3 tissues" in (tmp_path / "out" / "report.html").read_text()


def test_default_representations_are_the_papers_and_the_baselines():
    from sagefm.benchmark._protocol.config import default_representations

    names = [entry["name"] for entry in default_representations("sage-fm-hest1k")]
    assert names == [
        "sage-fm-hest1k",
        *("raw PCA(200)", "raw", "log1p PCA(200)", "log1p", "log1p z-scored PCA(200)", "log1p z-scored"),
        "NichePCA",
    ]


def test_presets_are_the_papers_tasks(folder_of_slides):
    from sagefm.benchmark._protocol.config import read

    sections = {"sections": str(folder_of_slides), "test": ["slide2"], "seed": 7}
    oscc = read(sections, "oscc")
    assert [entry.name for entry in oscc.representations] == ["sage-fm-hest1k", "MOFA", "expression"]
    assert (oscc.tasks, oscc.n_folds, oscc.n_bootstraps, oscc.pooled, oscc.seed) == (("annotation",), 2, 30, True, 7)
    assert (oscc.merge["Keratin"], oscc.merge["Fold"]) == ("tumor", None)
    assert set(oscc.param_grid["forest"]) == {"n_estimators", "max_depth"}  # what the paper tuned
    assert set(oscc.param_grid["mlp"]) == {"hidden_layer_sizes", "max_iter"}
    gbm = read(sections | {"target_key": "share", "n_bootstraps": 3}, "gbm")
    assert (gbm.tasks, gbm.n_folds, gbm.n_bootstraps, gbm.group_key) == (("composition",), 4, 3, "sample")
    assert len(gbm.n_units) > 1
    assert read(sections, "clustering").tasks == ("clustering", "heterogeneity")
    with pytest.raises(ValueError, match="pooled scores the sections in test as one: set test"):
        read({"sections": str(folder_of_slides)}, "oscc")
    with pytest.raises(ValueError, match="preset='lung'"):
        read(sections, "lung")


@pytest.mark.slow
def test_a_preset_pools_the_test_and_compares_all_pairs(folder_of_slides, tmp_path, undrawn):
    undrawn()
    representations = [
        {"name": "mini", "model": "sagefm-nano"},
        {"name": "PCA", "expression": "log1p", "pca": 10},
        {"name": "more", "expression": "log1p", "pca": 20},
    ]
    settings = {"sections": str(folder_of_slides), "group_key": "donor", "test": ["slide1", "slide2"]}
    settings |= {"label_key": "domain", "target_key": "share", "merge": {}, "n_units": [4, 8]}
    settings |= {"representations": representations, "n_bootstraps": 2, "classifiers": ["forest"]}
    settings |= {"param_grid": {"forest": {"n_estimators": [5]}}, "tasks": ["annotation", "composition"]}
    tables = sg.benchmark.run_protocol(settings, tmp_path / "out", preset="oscc")
    for task in ("annotation", "dominant", "composition"):
        assert set(tables[task]["group"]) == {"pooled"}
    assert set(tables["annotation"]["settings"]) == {"n_estimators=5"}
    tests = tables["annotation_tests"]
    assert len(tests) == 3 * 5  # pairs of representations, metrics
    page = (tmp_path / "out" / "report.html").read_text()
    assert "slide1, slide2, held out together and scored as one" in page
    assert "Tests of representations against each other" in page
    assert "accuracy 0.81" in page  # the paper's, as the task is its own


def leak_by_split(sections, tmp_path):
    adata = ad.read_h5ad(sections / "slide0.h5ad")
    adata.obs["donor"] = "donor1"
    adata.X[0, 0] += 1
    adata.write_h5ad(tmp_path / "other.h5ad")
    files = [str(sections / f"slide{i}.h5ad") for i in (1, 2)] + [str(tmp_path / "other.h5ad")]
    return pca(sections=files, label_key="domain", tasks=["annotation"], train=["other"], test=["slide1"])


def leak_by_twin(sections, tmp_path):
    adata = ad.read_h5ad(sections / "slide0.h5ad")
    adata.obs["donor"] = "somebody else"
    adata = adata[::-1].copy()
    adata.X = adata.X.astype(np.float64).tocsc()
    adata.write_h5ad(tmp_path / "twin.h5ad")
    files = [str(sections / "slide0.h5ad"), str(tmp_path / "twin.h5ad")]
    return pca(sections=files, label_key="domain", tasks=["annotation"])


def leak_by_model(sections, tmp_path):
    from dataclasses import replace

    model = sg.models.load("sagefm-mini")
    card = {**model.card, "training": {"groups": ["donor1"], "sections": []}}
    path = replace(model, name="leaky", card=card).save(tmp_path / "leaky.safetensors", half=True)
    entry = {"name": "leaky", "model": str(path)}
    return {"sections": str(sections), "label_key": "domain", "tasks": ["annotation"], "representations": [entry]}


@pytest.mark.parametrize("leak", [leak_by_split, leak_by_twin, leak_by_model])
def test_splits_that_leak_are_refused(leak, folder_of_slides, tmp_path):
    with pytest.raises(ValueError, match="this split leaks"):
        sg.benchmark.run_protocol(leak(folder_of_slides, tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_that_has_seen_them_may_be_allowed_and_is_named(folder_of_slides, tmp_path, undrawn):
    undrawn()
    settings = leak_by_model(folder_of_slides, tmp_path) | {"classifiers": ["forest"], "n_bootstraps": 0}
    settings["representations"][0]["allow_seen"] = True
    sg.benchmark.run_protocol(settings, tmp_path / "out")
    assert "leaky may have been trained on sections that it is tried on" in (tmp_path / "out/report.html").read_text()


def test_other_slides_of_a_tested_donor_are_no_training_data(folder_of_slides, tmp_path):
    from sagefm.benchmark._protocol.collection import Collection
    from sagefm.benchmark._protocol.config import read
    from sagefm.benchmark._protocol.leakage import split

    adata = ad.read_h5ad(folder_of_slides / "slide0.h5ad")
    adata.obs["donor"] = "donor1"
    adata.X[0, 0] += 1
    adata.write_h5ad(tmp_path / "other.h5ad")
    files = [str(folder_of_slides / f"slide{i}.h5ad") for i in (1, 2)] + [str(tmp_path / "other.h5ad")]
    collection = Collection(read(pca(sections=files, label_key="domain", tasks=["annotation"], test=["slide1"])))
    rows, held_out = split(collection)
    assert held_out == ["donor1"]
    assert set(collection.table.obs["sample"][rows]) == {"slide1", "slide2"}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"color": "red"}, KeyError, "'color' is no setting"),
        ({"tasks": ["dancing"]}, ValueError, "dancing"),
        ({"tasks": ["annotation"]}, ValueError, "label_key"),
        ({"group_key": "nobody", "label_key": "domain", "tasks": ["annotation"]}, KeyError, "nobody"),
        ({"label_key": "nobody"}, KeyError, "nobody"),
        ({"exclude": ["slide9"]}, ValueError, "slide9"),
        ({"baseline": "none"}, ValueError, "baseline"),
        ({"representations": []}, ValueError, "one at least"),
        ({"representations": [{"name": "a"}]}, ValueError, "one of model, obsm"),
        ({"representations": [{"name": "a", "expression": "cpm"}]}, ValueError, "cpm"),
        ({"representations": [{"name": "a", "obsm": "X", "pca": 3}]}, ValueError, "go with expression"),
        ({"representations": [{"name": "a", "obsm": "X_none"}]}, KeyError, "X_none"),
        ({"representations": [{"name": "a", "obsm": "X", "k": 3}]}, KeyError, "'k' is no setting"),
        ({"n_bootstraps": "30"}, TypeError, "whole number"),
        ({"tasks": "clustering"}, TypeError, "list of names"),
        ({"exclude": "slide0"}, TypeError, "exclude has to be a list"),
        ({"title": 3}, TypeError, "has to be text"),
        ({"device": "tpu"}, ValueError, "tpu"),
        ({"n_units": ["8"]}, TypeError, "list of whole numbers"),
        ({"pooled": True}, ValueError, "set test"),
        ({"param_grid": {"forest": {"trees": [1]}}}, ValueError, "trees"),
        ({"merge": "abc"}, TypeError, "table of labels"),
        ({"representations": [{"name": "a", "obsm": "X", "allow_seen": "false"}]}, TypeError, "true or false"),
        ({"sections": "nowhere.h5ad"}, FileNotFoundError, "nowhere"),
        ({"label_key": "domain", "tasks": ["annotation"], "test": ["slide7"]}, ValueError, "slide7"),
    ],
)
def test_wrong_settings_say_what_is_wrong(change, error, words, folder_of_slides, tmp_path):
    with pytest.raises(error, match=words):
        sg.benchmark.run_protocol(pca(sections=str(folder_of_slides)) | change, tmp_path / "out")


def test_an_error_in_the_settings_blocks_no_folder(folder_of_slides, tmp_path, undrawn):
    undrawn()
    wrong = pca(sections=str(folder_of_slides), label_key="domain", tasks=["annotation"], test=["dorno1"])
    right = wrong | {"test": ["donor1"], "classifiers": ["forest"], "n_bootstraps": 0}
    with pytest.raises(ValueError, match="dorno1"):
        sg.benchmark.run_protocol(wrong, tmp_path / "out")
    tables = sg.benchmark.run_protocol(right, tmp_path / "out")
    assert tables["annotation"]["group"].tolist() == ["donor1"]


def test_names_that_look_alike_or_like_nothing_stay_apart(folder_of_slides, tmp_path):
    names = ["PCA 5", "PCA-5", "pca 5", "NA", "1", "\u03b1/{x}"]
    settings = {
        "sections": str(folder_of_slides),
        "representations": [{"name": name, "expression": "log1p", "pca": 5 + i} for i, name in enumerate(names)],
        "tasks": ["clustering"],
        "label_key": "domain",
        "n_repeats": 1,
    }
    tables = sg.benchmark.run_protocol(settings, tmp_path / "out")
    assert list(dict.fromkeys(tables["clustering"]["representation"])) == names
    silhouettes = tables["domains"].groupby("representation")["silhouette"].mean()
    assert silhouettes.nunique() == len(names)


@pytest.mark.slow
def test_a_changed_section_is_seen(folder_of_slides, tmp_path, undrawn):
    undrawn()
    for i in range(3):
        adata = ad.read_h5ad(folder_of_slides / f"slide{i}.h5ad")
        adata.obsm["R"] = np.random.default_rng(i).normal(size=(adata.n_obs, 3))
        adata.write_zarr(tmp_path / "in" / f"s{i}.zarr")
    settings = {
        "sections": str(tmp_path / "in"),
        "representations": [{"name": "R", "obsm": "R"}],
        "tasks": ["clustering"],
        "n_repeats": 1,
    }
    sg.benchmark.run_protocol(settings, tmp_path / "out")
    adata.obsm["R"] = adata.obsm["R"] + 1
    adata.write_zarr(tmp_path / "in" / "s2.zarr")
    with pytest.raises(FileExistsError, match="other settings, files"):
        sg.benchmark.run_protocol(settings, tmp_path / "out")


@pytest.mark.parametrize("n_sections", [1, 2])
def test_few_sections_are_clustered_and_no_more(n_sections, folder_of_slides, tmp_path, log, undrawn):
    undrawn()
    files = [str(folder_of_slides / f"slide{i}.h5ad") for i in range(n_sections)]
    settings = pca(sections=files, label_key="domain", tasks=["clustering", "heterogeneity"], n_repeats=1)
    tables = sg.benchmark.run_protocol(settings, tmp_path / "out")
    assert "domains" in tables
    assert "distances" not in tables
    assert "need three or more" in log.text


def test_a_folder_of_somebody_else_is_left_alone(folder_of_slides, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds no run"):
        sg.benchmark.run_protocol(pca(sections=str(folder_of_slides)), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()
