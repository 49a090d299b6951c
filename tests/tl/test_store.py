"""Results that go to disk."""

from types import SimpleNamespace

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import psutil
import pytest
from anndata.experimental import read_lazy
from comparison import GENES, assert_close, run_tools
from scipy import sparse

import sagefm as sg
from sagefm.tl._projection import Projection


@pytest.mark.slow
def test_a_layer_larger_than_memory_is_refused(slide, tiny, monkeypatch, log, tmp_path):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    with pytest.raises(RuntimeError, match=r"takes 0.0 GB \(110 spots x 10500 columns.*store='imputed.zarr'"):
        sg.tl.impute(slide, model=tiny)
    assert "sage_imputed" not in slide.layers
    sg.tl.impute(slide, model=tiny, store=tmp_path / "imputed.zarr")


def test_embedding_goes_to_disk(slide, sage, expected_of_sage, tmp_path):
    sg.tl.sage_embed(slide, sage, store=tmp_path / "embedded.zarr", batch_size=32)
    assert isinstance(slide.obsm["X_sage"], da.Array)
    np.testing.assert_array_equal(slide.obsm["X_sage"], expected_of_sage[0])
    stored = ad.read_zarr(tmp_path / "embedded.zarr")
    np.testing.assert_array_equal(stored.obsm["X_sage"], expected_of_sage[0])
    np.testing.assert_array_equal(stored.obsm["spatial"], slide.obsm["spatial"])
    assert (stored.obsp["sage_connectivities"] != slide.obsp["sage_connectivities"]).nnz == 0
    assert stored.uns["X_sage"] == slide.uns["X_sage"]
    assert list(stored.obs_names) == list(slide.obs_names)
    sg.tl.cluster(slide, n_clusters=3)  # which reads the array on disk
    slide.write_h5ad(tmp_path / "all.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "all.h5ad").obsm["X_sage"], expected_of_sage[0])


@pytest.mark.parametrize("genes", [pytest.param(None, marks=pytest.mark.slow), [*GENES, "ACTB"]])
def test_imputed_genes_go_to_disk(slide, sage, tmp_path, genes):
    slide = slide[:, slide.var_names != "ACTB"].copy()
    in_memory = sg.tl.impute(slide, genes, sage, intervals=None, copy=True)
    sg.tl.impute(slide, genes, sage, store=tmp_path / "imputed.zarr", batch_size=50)
    stored = ad.read_zarr(tmp_path / "imputed.zarr")
    for adata in (slide, stored):
        assert_close(adata.layers["sage_imputed"], in_memory.layers["sage_imputed"])
        assert adata.uns["sage_imputed"]["params"] == in_memory.uns["sage_imputed"]["params"]
        tables = [table.uns["sage_imputed"]["reliability"] for table in (adata, in_memory)]
        pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-5)
        if genes:
            assert_close(adata.obsm["sage_imputed"], in_memory.obsm["sage_imputed"])
    pd.testing.assert_series_equal(slide.var["sage_reliability"], in_memory.var["sage_reliability"], atol=1e-5)


@pytest.mark.slow
def test_a_store_that_is_gone_is_an_error(slide, tiny, tmp_path):
    sg.tl.sage_embed(slide, tiny, store=tmp_path / "out.zarr")
    assert np.isfinite(np.asarray(slide.obsm["X_sage"])).all()
    (tmp_path / "out.zarr").rename(tmp_path / "elsewhere.zarr")
    with pytest.raises(FileNotFoundError, match="no longer holds the obsm/X_sage"):
        np.asarray(slide.obsm["X_sage"])
    sg.tl.sage_embed(slide.copy(), tiny, store=tmp_path / "out.zarr")  # another run, under the same name
    with pytest.raises(FileNotFoundError, match="no longer holds"):
        sg.tl.cluster(slide, n_clusters=3)


def test_a_store_stands_by_itself(slide, sage, tmp_path):
    sg.tl.impute(slide, GENES, sage, store=tmp_path / "out.zarr")
    stored = ad.read_zarr(tmp_path / "out.zarr")
    pd.testing.assert_series_equal(stored.var["sage_reliability"], slide.var["sage_reliability"])
    stored.X = slide.X
    sg.pl.imputation(stored, GENES[0])
    sg.pl.reliability(stored)


@pytest.mark.slow
def test_pseudospots_take_an_embedding_from_disk(tmp_path):
    counts = np.random.default_rng(0).poisson(0.05, (10_000, 6000)).astype("float32")
    bins = ad.AnnData(sparse.csr_matrix(counts), obsm={"spatial": 8.0 * np.argwhere(np.ones((100, 100)))})
    bins.var_names = sg.datasets.simulated_visium(6, 6, n_genes=6000).var_names
    spots = sg.pp.pseudospots(bins, microns_per_unit=1.0)
    sg.pp.neighborhood_graph(spots)
    sg.tl.sage_embed(spots, "sagefm-mini", store=tmp_path / "spots.zarr")
    sg.pp.from_pseudospots(bins, spots)
    inside = bins.obs["pseudospot"].notna().to_numpy()
    row = spots.obs_names.get_indexer(bins.obs["pseudospot"][inside])
    np.testing.assert_array_equal(bins.obsm["X_sage"][inside], np.asarray(spots.obsm["X_sage"])[row])


@pytest.mark.slow
@pytest.mark.parametrize("container", ["zarr", "h5ad"])
def test_results_of_lazy_objects_are_read(slide, sage, tmp_path, container):
    """Tables that lie on disk serve the functions that come next."""
    run_tools(slide, sage, reliability=True)
    sg.tl.gene_sensitivity(slide, GENES, model=sage)
    if container == "zarr":
        slide.write_zarr(tmp_path / "slide.zarr")
    else:
        slide.write_h5ad(tmp_path / "slide.h5ad")
    lazy = read_lazy(tmp_path / f"slide.{container}")
    sg.pp.assess(lazy, "sagefm-mini")
    sg.pl.reliability(lazy)
    sg.pl.perturbation_lollipop(lazy)
    sg.pl.sensitivity_heatmap(lazy)
    sg.pl.imputation(lazy, GENES[0])
    sg.tl.cluster(lazy, n_clusters=3)
    sg.pl.cluster(lazy)
    lazy.write_h5ad(tmp_path / "again.h5ad")
    assert "perturb_lr" in ad.read_h5ad(tmp_path / "again.h5ad").uns


@pytest.mark.parametrize("tool", ["sage_embed", "impute"])
def test_an_interrupted_run_leaves_nothing(slide, sage, tmp_path, monkeypatch, tool):
    calls = []

    def interrupted(self, state):
        calls.append(state)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return np.zeros((30, 48), dtype=np.float32)

    monkeypatch.setattr(Projection, "embed", interrupted)
    monkeypatch.setattr(Projection, "predict", lambda self, state, target: interrupted(self, state))
    before = slide.copy()
    with pytest.raises(KeyboardInterrupt):
        getattr(sg.tl, tool)(slide, model=sage, store=tmp_path / "out.zarr", batch_size=30)
    assert list(tmp_path.iterdir()) == []
    assert list(slide.obsm) == list(before.obsm)
    assert list(slide.layers) == list(before.layers)
    assert list(slide.uns) == list(before.uns)


@pytest.mark.parametrize(
    ("store", "error", "message"),
    [
        ("out", ValueError, "ends in .zarr"),
        ("link.zarr", FileExistsError, "exists already"),
        ("there.zarr", FileExistsError, "exists already; delete it"),
        ("nowhere/out.zarr", FileNotFoundError, "no folder .*nowhere"),
    ],
)
@pytest.mark.parametrize("tool", ["sage_embed", "impute"])
def test_bad_stores(slide, tiny, tmp_path, tool, store, error, message):
    (tmp_path / "there.zarr").mkdir()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "nowhere")
    with pytest.raises(error, match=message):
        getattr(sg.tl, tool)(slide, model=tiny, store=tmp_path / store)
    with pytest.raises(TypeError, match="store=5"):
        getattr(sg.tl, tool)(slide, model=tiny, store=5)
