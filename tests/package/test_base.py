"""What every room stands on: the run object, statistics, and slides of spots."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import sagefm as sg
from sagefm._anndata import open_run
from sagefm._slides import split_libraries
from sagefm._stats import adjust_pvalues, draw_blocks, pearson, pearson_from_moments, pearson_pvalue


@pytest.fixture
def adata():
    obs = pd.DataFrame({"slide": list("bbaac")}, index=[f"spot{i}" for i in range(5)])
    return ad.AnnData(np.ones((5, 3), dtype=np.float32), obs=obs)


def open_thing(adata, key="thing", more=(), copy=False):
    return open_run(adata, "tl.thing", key, "thing", ["obs", "obsm"], more, table_key="table", copy=copy)


# The run.


def test_a_run_writes_at_its_end_and_forgets_what_an_earlier_one_left(adata):
    run = open_thing(adata, more=[("var", "thing_r")])
    first = {("obs", "thing"): np.arange(5), ("obsm", "thing"): np.ones((5, 2)), ("var", "thing_r"): np.zeros(3)}
    assert run.commit(first, {"n": 1, "layer": None}, results="table") is None
    assert adata.uns["thing"] == {"params": {"function": "tl.thing", "n": 1}, "results": "table"}
    assert list(adata.var) == ["thing_r"]
    open_thing(adata, more=[("var", "thing_r")]).commit({("obsm", "thing"): np.zeros((5, 1))}, {"n": 2})
    assert "thing" not in adata.obs
    assert not list(adata.var)
    assert adata.obsm["thing"].shape == (5, 1)
    assert adata.uns["thing"] == {"params": {"function": "tl.thing", "n": 2}}


def test_a_run_on_a_view_and_on_a_copy(adata):
    view = adata[:3]
    open_thing(view).commit({("obs", "thing"): np.arange(3)}, {})
    open_thing(view).commit({}, {})
    assert "thing" not in view.obs
    made = open_thing(adata, copy=True).commit({("obs", "thing"): np.arange(5)}, {})
    assert "thing" in made.obs
    assert "thing" not in adata.obs
    assert "thing" not in adata.uns


def test_a_run_overwrites_its_own_results_alone(adata):
    adata.obs["mine"] = 1
    with pytest.raises(ValueError, match=r"adata.obs\['mine'\] exists and wasn't written by this function"):
        open_thing(adata, "mine")
    open_thing(adata, "other").commit({("obs", "other"): np.arange(5)}, {})
    open_thing(adata, "other")
    with pytest.raises(ValueError, match="'other'"):
        open_run(adata, "tl.else", "other", "else", ["obs"], table_key="table", copy=False)


def test_slots_of_an_earlier_call_are_removed_with_the_results(slide, sage):
    sg.tl.impute(slide, ["KRT8"], sage, intervals=0.8, n_folds=2)
    assert "sage_imputed_lower" in slide.obsm
    sg.tl.impute(slide, ["KRT8"], sage, reliability=False, n_folds=2)
    assert "sage_imputed_lower" not in slide.obsm
    assert "sage_reliability" not in slide.var


# Statistics.


def test_pearson_is_scipys():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40, 6))
    y += x * np.linspace(-1, 1, 6)
    expected = [stats.pearsonr(a, b) for a, b in zip(x.T, y.T, strict=True)]
    r = [found.statistic for found in expected]
    np.testing.assert_allclose(pearson(x, y), r, atol=1e-12)
    np.testing.assert_allclose(pearson(x.T, y.T, axis=1), r, atol=1e-12)
    means = (part.mean(axis=0) for part in (x, y, x * x, y * y, x * y))
    np.testing.assert_allclose(pearson_from_moments(*means), r, atol=1e-12)
    np.testing.assert_allclose(pearson_pvalue(pearson(x, y), 40), [found.pvalue for found in expected], rtol=1e-9)
    # Of large values with little variance nothing is lost.
    np.testing.assert_allclose(pearson(x + 1e6, y + 1e6), r, atol=1e-6)


def test_pearson_of_constants():
    varies, constant = np.arange(4.0)[:, None], np.full((4, 1), 0.1)
    assert pearson(constant, varies).tolist() == [0.0]
    assert np.isnan(pearson(varies, constant)).all()
    assert np.isnan(pearson(constant, constant)).all()
    means = (part.mean(axis=0) for part in (constant, varies, constant**2, varies**2, constant * varies))
    assert np.isnan(pearson_from_moments(*means, constant_x=np.nan)).all()


def test_benjamini_hochberg_leaves_out_what_is_missing():
    pval = np.array([0.01, np.nan, 0.04, 0.03])
    adjusted = adjust_pvalues(pval)
    np.testing.assert_allclose(adjusted[[0, 2, 3]], [0.03, 0.04, 0.04])
    assert np.isnan(adjusted[1])
    assert np.isnan(adjust_pvalues(np.array([np.nan]))).all()


def test_blocks_are_drawn_with_replacement():
    drawn = draw_blocks(20, 500, 3)
    assert drawn.shape == (500, 20)
    assert (drawn.sum(axis=1) == 20).all()
    assert drawn.mean() == 1
    assert 0.3 < (drawn == 0).mean() < 0.42  # 1/e of the blocks are left out


# Slides.


def test_libraries(adata):
    libraries = split_libraries(adata, "slide")
    assert libraries.names == ["a", "b", "c"]
    assert {name: rows.tolist() for name, rows in libraries.rows()} == {"a": [2, 3], "b": [0, 1], "c": [4]}
    values = np.arange(5.0)[:, None]
    assert (libraries.members() @ values).ravel().tolist() == [5, 1, 4]
    assert (libraries.members(np.array([0, 4])) @ values[[0, 4]]).ravel().tolist() == [0, 0, 4]
    assert split_libraries(adata, None).names == ["the slide"]


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (None, KeyError, "library_key='slide' not in adata.obs"),
        (["a", None, "b", "b", "b"], ValueError, "missing for 1 spots"),
        ([1, "1", 1, 1, 1], ValueError, "values of different types that are named '1'"),
    ],
)
def test_bad_columns_of_slides(adata, column, error, message):
    del adata.obs["slide"]
    if column is not None:
        adata.obs["slide"] = pd.Categorical(column) if 1 in column else column
    with pytest.raises(error, match=message):
        split_libraries(adata, "slide")
