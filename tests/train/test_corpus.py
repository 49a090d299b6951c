"""Corpora: what they hold, split and refuse."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sagefm as sg
from sagefm.models._vocabulary import hest1k
from sagefm.train._corpus import Corpus


def test_corpus_holds_the_counts_and_the_graph(slides, corpus):
    assert repr(corpus).startswith("Corpus(")
    assert corpus.names("train") == ["s0", "s1", "s3", "s4"]
    assert corpus.names("validate") == ["s2"]
    slide = slides["s1"]
    stored = Corpus.open(corpus.path).read("s1")
    assert list(stored.var_names) == list(hest1k().symbols)
    same = stored[slide.obs_names, slide.var_names]
    assert (same.X != slide.X).nnz == 0
    assert stored.X.dtype == np.uint16
    assert stored.X.sum() == slide.X.sum()
    assert list(stored.var_names[stored.var["measured"]]) == [s for s in hest1k().symbols if s in slide.var_names]
    graph = slide.copy()
    sg.pp.neighborhood_graph(graph)
    assert (same.obsp["sage_connectivities"] != graph.obsp["sage_connectivities"]).nnz == 0
    trained = [
        slide.to_df().reindex(columns=hest1k().symbols, fill_value=0) for n, slide in slides.items() if n != "s2"
    ]
    np.testing.assert_allclose(corpus.gene_mean(), np.log1p(pd.concat(trained).to_numpy()).mean(0), atol=1e-4)


def test_corpus_is_compact(corpus):
    stored = sum(file.stat().st_size for file in corpus.path.rglob("X/**/*") if file.is_file())
    assert stored / corpus.sections["n_values"].sum() < 4


def test_sections_evaluate_as_they_are(corpus, tiny):
    table = sg.benchmark.evaluate_imputation(corpus.iter_sections("validate"), tiny)
    assert table.loc["neighbor mean", "n_spots"] == corpus.sections.loc["s2", "n_spots"]


@pytest.mark.slow
def test_every_container(slides, corpus, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    slides["s0"].write_h5ad(tmp_path / "s0.h5ad")
    slides["s1"].write_zarr(tmp_path / "s1.zarr")
    spatialdata.SpatialData(tables={"table": slides["s2"].copy()}).write(tmp_path / "s2.zarr")
    both = ad.concat(
        [slides["s3"], slides["s4"]], label="slide", keys=["s3", "s4"], index_unique="-", join="outer", merge="first"
    )
    both.obs["donor"] = "donor3"
    found = sg.train.prepare_corpus(tmp_path, tmp_path / "a.zarr", split={"donor2": "validate"})
    libraries = sg.train.prepare_corpus(both, tmp_path / "b.zarr", library_key="slide", split={})
    digests = pd.concat([found.sections, libraries.sections])["digest"]
    assert list(digests) == list(corpus.sections["digest"])
    assert list(libraries.sections.index) == ["section0_s3", "section0_s4"]


@pytest.mark.slow
def test_panel_and_odd_sections_are_refused_by_name(slides, tmp_path):
    fractions = slides["s0"].copy()
    fractions.X.data[-1] = 2.5  # beyond what a sample of the values would show
    other = slides["s1"].copy()
    other.obs["donor"] = ["a", "b"] * (other.n_obs // 2)
    path = tmp_path / "corpus.zarr"
    for bad, message in (
        (slides["s1"][:, :50].copy(), "section 'bad': the slide has"),
        (fractions, "section 'bad': .*counts"),
        (other, "section 'bad': split_by='donor' .* holds 2"),
        (slides["s1"][:9].copy(), "section 'bad': "),
    ):
        with pytest.raises(ValueError, match=message):
            sg.train.prepare_corpus({"good": slides["s0"], "bad": bad}, path)
        assert not list(tmp_path.iterdir()), "something was left behind"
    with pytest.raises(KeyError, match="layer 'counts'"):
        sg.train.prepare_corpus(slides, path, layer="counts")
    with pytest.raises(ValueError, match="no section"):
        sg.train.prepare_corpus([], path)


def test_all_bad_sections_are_named_at_once(slides, tmp_path):
    bad = {"few genes": slides["s1"][:, :50].copy(), "few spots": slides["s1"][:9].copy()}
    with pytest.raises(ValueError, match=r"(?s)section 'few genes': .*section 'few spots': "):
        sg.train.prepare_corpus({**slides, **bad}, tmp_path / "corpus.zarr")
    assert not (tmp_path / "corpus.zarr").exists()


def test_corpus_is_not_overwritten_unasked(slides, corpus):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        sg.train.prepare_corpus(slides, corpus.path)
    with pytest.raises(FileNotFoundError, match="prepare_corpus"):
        Corpus.open(corpus.path / "nothing")
    with pytest.raises(ValueError, match="no corpus"):
        Corpus.open(corpus.path / "section")


@pytest.mark.slow
def test_random_split_keeps_donors_together(slides, tmp_path):
    splits = set()
    for seed in range(4):
        path = tmp_path / f"{seed}.zarr"
        corpus = sg.train.prepare_corpus(slides, path, fractions=(0.5, 0.25, 0.25), rng=seed)
        assert corpus.sections.groupby("donor")["split"].nunique().max() == 1
        assert corpus.sections.groupby("split", observed=False)["group"].nunique().to_dict() == {
            "train": 2,
            "validate": 1,
            "test": 1,
        }
        splits.add(tuple(corpus.sections["split"]))
    assert len(splits) > 1


@pytest.mark.slow
def test_leaks_are_refused(slides, corpus, tmp_path, log):
    path = tmp_path / "corpus.zarr"
    with pytest.raises(ValueError, match="donor 'donor3' would be in several splits"):
        sg.train.prepare_corpus(slides, path, split_by="sample", split={"s3": "validate"})
    copied = slides | {"again": slides["s0"].copy()}
    copied["again"].obs["donor"] = "another"
    with pytest.raises(ValueError, match="'s0', 'again' hold the same counts"):
        sg.train.prepare_corpus(copied, path, split={"another": "validate"})
    with pytest.raises(ValueError, match="'donor9', which no section"):
        corpus.with_split({"donor9": "validate"})
    with pytest.raises(ValueError, match="'val' is none of the splits"):
        corpus.with_split({"donor1": "val"})
    with pytest.raises(ValueError, match="nothing to train on"):
        corpus.with_split({f"donor{i}": "test" for i in range(4)})
    table = pd.DataFrame({"group": ["donor1", "donor1"], "split": ["train", "validate"]})
    with pytest.raises(ValueError, match="'donor1' into two splits"):
        corpus.with_split(table)
    table.iloc[:1].assign(split="test").to_csv(tmp_path / "split.csv")
    assert corpus.with_split(tmp_path / "split.csv").names("test") == ["s1"]
    # The paper splits by sample: allowed, and said.
    paper = corpus.with_split("paper")
    assert list(paper.sections["split"].value_counts()[["train", "validate", "test"]]) == [4, 0, 1]
    torn = paper.sections.loc[["s3", "s4"], "split"].nunique() == 2
    assert torn == ("one donor are in different splits" in log.text)
