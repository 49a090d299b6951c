"""Slides of any size in any container, and many of them."""

import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from anndata.experimental import read_lazy
from filelock import FileLock
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

import sagefm as sg
from sagefm._io.scratch import Scratch
from sagefm.models._canonical import ReadOut
from sagefm.pp._counts import Counts
from sagefm.tl._engine import Projection
from sagefm.tl._sections import embed as _sections
from sagefm.tl._sections.workers import open_workers

PAIRS = [("CXCL12", "CXCR4"), ("TGFB1", "TGFBR1_TGFBR2"), ("FN1", "CD44")]
GENES = ["KRT8", "COL1A1", "CD74"]


def bare(slide):
    """Counts, coordinates and lattice positions, as they come from a reader."""
    return ad.AnnData(slide.X.copy(), obs=slide.obs[["array_row", "array_col"]].copy(), var=slide.var[[]].copy())


def spatial(slide):
    adata = bare(slide)
    adata.obsm["spatial"] = slide.obsm["spatial"].copy()
    return adata


def with_x(change):
    def make(slide, folder):
        adata = spatial(slide)
        adata.X = change(adata.X)
        return adata

    return make


def backed(slide, folder):
    spatial(slide).write_h5ad(folder / "slide.h5ad")
    return ad.read_h5ad(folder / "slide.h5ad", backed="r")


def backed_by_columns(slide, folder):
    with_x(sparse.csc_matrix)(slide, folder).write_h5ad(folder / "slide.h5ad")
    return ad.read_h5ad(folder / "slide.h5ad", backed="r")


def lazy_zarr(slide, folder):
    spatial(slide).write_zarr(folder / "slide.zarr")
    return read_lazy(folder / "slide.zarr")


def lazy_h5ad(slide, folder):
    spatial(slide).write_h5ad(folder / "slide.h5ad")
    return read_lazy(folder / "slide.h5ad")


def view(slide, folder):
    twice = ad.concat([spatial(slide), spatial(slide)], keys=["a", "b"], index_unique="-")
    return twice[: slide.n_obs]


def spatialdata(slide, folder):
    """Coordinates in the regions alone, in another order than the table."""
    table = bare(slide)
    table.obs["region"], table.obs["instance"] = pd.Categorical(["spots"] * slide.n_obs), np.arange(slide.n_obs)
    order = np.random.default_rng(0).permutation(slide.n_obs)
    shapes = ShapesModel.parse(slide.obsm["spatial"][order], geometry=0, radius=30, index=order)
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    return SpatialData(shapes={"spots": shapes}, tables={"table": table})


def libraries(slide, folder):
    return ad.concat([spatial(slide), spatial(slide)], label="library", keys=["a", "b"], index_unique="-")


CONTAINERS = {
    "csr": with_x(sparse.csr_matrix),
    "csc": with_x(sparse.csc_matrix),
    "dense": with_x(lambda x: x.toarray()),
    "dask": with_x(lambda x: da.from_array(x.toarray(), chunks=(30, 4000))),
    "dask of sparse": with_x(lambda x: da.from_array(x, chunks=(30, x.shape[1]))),
    "backed h5ad": backed,
    "backed h5ad, CSC": backed_by_columns,
    "lazy zarr": lazy_zarr,
    "lazy h5ad": lazy_h5ad,
    "view": view,
    "SpatialData": spatialdata,
    "two libraries": libraries,
}


def assert_close(found, expected, tolerance=1e-5):
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert np.nanmax(np.abs(found - expected)) <= tolerance * np.nanmax(np.abs(expected))


def run(adata, model, **kwargs):
    """What embed, impute and perturb write, by spot."""
    more = {"device": "cpu", **kwargs}
    sg.tl.sage_embed(adata, model, **more)
    sg.tl.impute(adata, model=model, n_folds=3, **more)
    sg.tl.perturb_lr(adata, PAIRS, model, n_controls=5, store_spots=True, **more)
    table = adata if isinstance(adata, ad.AnnData) else adata.tables["table"]
    return table.obsm["X_sage"], table.layers["sage_imputed"], table.obsm["perturb_lr"]


@pytest.fixture(scope="module")
def expected(_slide, sage):
    return run(_slide.copy(), sage)


@pytest.mark.parametrize("container", CONTAINERS)
def test_results_are_equal_in_every_container(slide, sage, expected, container, tmp_path):
    data = CONTAINERS[container](slide, tmp_path)
    sg.pp.neighborhood_graph(data, library_key="library" if container == "two libraries" else None)
    for found, value in zip(run(data, sage), expected, strict=True):
        for start in range(0, len(found), slide.n_obs):
            assert_close(found[start : start + slide.n_obs], value)


def test_columns_on_disk_are_told(slide, tmp_path, log):
    Counts(backed_by_columns(slide, tmp_path), np.arange(slide.n_vars))
    assert "stored by columns (CSC), so all of it is read into memory" in log.text


# Memory.


@pytest.mark.parametrize("limit", [0, 1e4, 1e5, 1e9])
def test_scratch_holds_what_it_is_given(limit):
    matrix = sparse.random(500, 40, density=0.2, format="csr", dtype=np.float32, random_state=0)
    scratch = Scratch(limit)
    held = scratch.csr((matrix[start : start + 60] for start in range(0, 500, 60)), 40)
    assert (held != matrix).nnz == 0
    assert isinstance(held.data, np.memmap) == (limit < 1e5)
    assert held.indices.dtype == held.indptr.dtype  # else scipy copies them whenever it takes rows
    array = scratch.empty((30, 100))
    array[:] = 3
    assert isinstance(array, np.memmap) == (limit < 1e5)
    assert array.sum() == 9000


def test_scratch_of_nothing():
    assert Scratch(0).csr(iter([]), 7).shape == (0, 7)
    assert Scratch(0).csr(iter([sparse.csr_matrix((3, 7))]), 7).shape == (3, 7)
    assert Scratch(0).empty((0, 5)).shape == (0, 5)


def test_a_full_disk_is_an_error(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="no room for 1.2 GB of intermediate results. Set TMPDIR"):
        Scratch(0).empty((30_000, 10_000))


@pytest.mark.parametrize("family", ["tiny", "sage"])
def test_spilling_changes_nothing(slide, request, family, monkeypatch):
    model = request.getfixturevalue(family)
    expected = run(slide.copy(), model)
    monkeypatch.setattr(sg.settings, "memory_limit", 0.0)
    for found, value in zip(run(slide, model), expected, strict=True):
        np.testing.assert_array_equal(found, value)


def test_a_layer_larger_than_memory_is_refused(slide, tiny, monkeypatch, log, tmp_path):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    with pytest.raises(RuntimeError, match=r"takes 0.0 GB \(110 spots x 10500 columns.*store='imputed.zarr'"):
        sg.tl.impute(slide, model=tiny)
    assert "sage_imputed" not in slide.layers
    sg.tl.impute(slide, model=tiny, store=tmp_path / "imputed.zarr")


# Results on disk.


def test_embedding_goes_to_disk(slide, sage, expected, tmp_path):
    sg.tl.sage_embed(slide, sage, store=tmp_path / "embedded.zarr", batch_size=32)
    assert isinstance(slide.obsm["X_sage"], da.Array)
    np.testing.assert_array_equal(slide.obsm["X_sage"], expected[0])
    stored = ad.read_zarr(tmp_path / "embedded.zarr")
    np.testing.assert_array_equal(stored.obsm["X_sage"], expected[0])
    np.testing.assert_array_equal(stored.obsm["spatial"], slide.obsm["spatial"])
    assert (stored.obsp["sage_connectivities"] != slide.obsp["sage_connectivities"]).nnz == 0
    assert stored.uns["X_sage"] == slide.uns["X_sage"]
    assert list(stored.obs_names) == list(slide.obs_names)
    sg.tl.cluster(slide, n_clusters=3)  # which reads the array on disk
    slide.write_h5ad(tmp_path / "all.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "all.h5ad").obsm["X_sage"], expected[0])


@pytest.mark.parametrize("genes", [None, [*GENES, "ACTB"]])
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


@pytest.mark.parametrize("container", ["zarr", "h5ad"])
def test_results_of_lazy_objects_are_read(slide, sage, tmp_path, container):
    """Tables that lie on disk serve the functions that come next."""
    run(slide, sage)
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


@pytest.mark.parametrize(("limit", "error"), [(None, TypeError), ("1", TypeError), (True, TypeError), (-1, ValueError)])
def test_bad_memory_limits(limit, error):
    with pytest.raises(error, match="memory_limit="):
        sg.settings.memory_limit = limit


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


# The device's memory.


def fails_above(monkeypatch, owner, name, most):
    """Make a step run out of memory for more than so many spots; return the sizes that were tried."""
    whole, tried = getattr(owner, name), []

    def limited(self, h, *args, **kwargs):
        tried.append(len(h.hidden) if hasattr(h, "hidden") else len(h))
        if tried[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, h, *args, **kwargs)

    monkeypatch.setattr(owner, name, limited)
    return tried


def test_out_of_memory_halves_the_batch(slide, sage, expected, monkeypatch, log):
    reliability = sg.tl.impute(slide, model=sage, n_folds=3, copy=True).uns["sage_imputed"]["reliability"]
    tried = fails_above(monkeypatch, Projection, "embed", 30)
    predicted = fails_above(monkeypatch, Projection, "predict", 30)
    read = fails_above(monkeypatch, ReadOut, "predict", 60)
    for found, value in zip(run(slide, sage, batch_size=100), expected, strict=True):
        assert_close(found, value)
    sg.tl.perturb_lr(slide, PAIRS, sage, n_controls=5, control_spots=60, batch_size=40)
    for sizes, most in ((tried, 30), (predicted, 30), (read, 60)):
        assert max(sizes) > most
        assert sum(size > most for size in sizes) < 8  # remembered, not tried again with every block
    assert "out of memory with 100 spots at a time; going on with 50" in log.text
    # What was added up before the memory ran out isn't added up again.
    pd.testing.assert_frame_equal(slide.uns["sage_imputed"]["reliability"], reliability, rtol=1e-4, atol=1e-5)


def test_sensitivity_halves_too(slide, sage, monkeypatch):
    sg.tl.gene_sensitivity(slide, GENES, model=sage)
    expected = slide.uns["gene_sensitivity"]["results"]
    from sagefm.tl._perturb import sensitivity

    whole = sensitivity._pull_back
    calls = []

    def limited(model, slopes, target):
        calls.append(len(slopes[0]))
        if len(slopes[0]) > 40 and len(calls) % 2 == 0:  # in the middle of a block
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, slopes, target)

    monkeypatch.setattr(sensitivity, "_pull_back", limited)
    sg.tl.gene_sensitivity(slide, GENES, model=sage)
    assert max(calls) == slide.n_obs
    assert_close(slide.uns["gene_sensitivity"]["results"], expected)


def test_no_memory_for_a_single_spot_is_an_error(slide, tiny, monkeypatch):
    fails_above(monkeypatch, Projection, "embed", 0)
    with pytest.raises(torch.OutOfMemoryError):
        sg.tl.sage_embed(slide, tiny)
    assert "X_sage" not in slide.obsm


def test_tf32_is_for_gpus(slide, tiny):
    with pytest.raises(ValueError, match="'tf32' is a mode of CUDA GPUs, and this runs on cpu"):
        sg.tl.sage_embed(slide, tiny, dtype="tf32", device="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
def test_gpu_gives_what_the_cpu_gives(slide, sage, expected, dtype):
    tolerance = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2}[dtype]
    sg.tl.sage_embed(slide, sage, device="cuda", dtype=dtype)
    sg.tl.impute(slide, model=sage, n_folds=3, device="cuda", dtype=dtype)
    assert_close(slide.obsm["X_sage"], expected[0], tolerance)
    assert_close(slide.layers["sage_imputed"], expected[1], tolerance)


def test_weights_of_a_graph_are_not_read(slide, sage, expected):
    slide.obsp["sage_connectivities"] = slide.obsp["sage_distances"]
    for found, value in zip(run(slide, sage), expected, strict=True):
        assert_close(found, value)


# Many sections.


@pytest.fixture(scope="module")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sections")
    made = [sg.datasets.simulated_visium(6, 7, n_genes=8000, rng=seed) for seed in range(4)]
    made[0].write_h5ad(folder / "a.h5ad")
    made[1].write_zarr(folder / "b.zarr")
    made[2].X = made[2].X * 0.5
    made[2].write_h5ad(folder / "c.h5ad")
    table = made[3]
    table.obs["region"], table.obs["instance"] = pd.Categorical(["spots"] * 42), np.arange(42)
    shapes = ShapesModel.parse(table.obsm.pop("spatial"), geometry=0, radius=30)
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    SpatialData(shapes={"spots": shapes}, tables={"table": table}).write(folder / "d.zarr")
    (folder / "notes.txt").write_text("no section")
    return folder


@pytest.fixture
def folder(_folder, tmp_path):
    """Four sections of different kinds, one of them bad: the test's own copy."""
    return Path(shutil.copytree(_folder, tmp_path / "sections"))


def test_a_folder_of_sections(folder, tmp_path, log):
    table = sg.tl.embed_sections(folder, tmp_path / "out", "sagefm-mini")
    assert table["status"].to_dict() == {"a": "embedded", "b": "embedded", "c": "failed", "d": "embedded"}
    assert "no counts" in table.loc["c", "error"]
    assert "1 of 4 sections failed: 'c'" in log.text
    assert [r.getMessage().partition(":")[0] for r in log.records if r.levelname == "ERROR"] == ["c"]
    adata = ad.read_h5ad(folder / "a.h5ad")
    sg.pp.neighborhood_graph(adata)
    sg.tl.sage_embed(adata, "sagefm-mini")
    stored = ad.read_zarr(table.loc["a", "path"])
    np.testing.assert_array_equal(stored.obsm["X_sage"], adata.obsm["X_sage"])
    assert list(stored.obs_names) == list(adata.obs_names)
    written = pd.read_csv(tmp_path / "out" / "sections.csv", index_col="section", keep_default_na=False)
    assert written["status"].tolist() == table["status"].tolist()

    # Again: what is done is kept, what failed is tried again, what changed is done again.
    ad.read_h5ad(folder / "a.h5ad")[:40].copy().write_h5ad(folder / "a.h5ad")
    mended = ad.read_h5ad(folder / "c.h5ad")
    mended.X = mended.X * 2
    mended.write_h5ad(folder / "c.h5ad")
    table = sg.tl.embed_sections(folder, tmp_path / "out", "sagefm-mini")
    assert table["status"].tolist() == ["embedded", "kept", "embedded", "kept"]
    assert table["n_spots"].tolist() == [40, 42, 42, 42]
    assert ad.read_zarr(table.loc["a", "path"]).n_obs == 40


def test_results_with_other_settings_are_not_mixed(folder, tmp_path, tiny):
    files = [folder / "a.h5ad", folder / "b.zarr"]
    sg.tl.embed_sections(files, tmp_path / "out", "sagefm-mini")
    tiny.save(tmp_path / "tiny.safetensors")
    with pytest.raises(FileExistsError, match="by another model or with other settings"):
        sg.tl.embed_sections(files, tmp_path / "out", tmp_path / "tiny.safetensors")
    table = sg.tl.embed_sections(files, tmp_path / "out", tmp_path / "tiny.safetensors", overwrite=True)
    assert table["status"].tolist() == ["embedded", "embedded"]
    assert ad.read_zarr(table.loc["a", "path"]).obsm["X_sage"].shape[1] == 12
    sg.tl.embed_sections(files[:1], tmp_path / "out", "sagefm-mini", overwrite=True)
    assert not (tmp_path / "out" / "b.zarr").exists()  # of the other model


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: folder / "nowhere", FileNotFoundError, "no .h5ad or .zarr in"),
        (lambda folder: [folder / "x.h5ad"], FileNotFoundError, "no section at"),
        (lambda folder: [folder / "a.h5ad", folder / "b" / "a.h5ad"], ValueError, "several sections are named 'a'"),
        (lambda folder: {"../a": folder / "a.h5ad"}, ValueError, "file name"),
        (lambda folder: [], ValueError, "empty"),
    ],
)
def test_bad_lists_of_sections(folder, tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        sg.tl.embed_sections(make(folder), tmp_path / "out", "sagefm-mini")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_others_is_left_alone(folder, tmp_path):
    with pytest.raises(ValueError, match="where results go"):
        sg.tl.embed_sections(folder, folder, "sagefm-mini")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no embedded sections"):
        sg.tl.embed_sections(folder, tmp_path / "other", "sagefm-mini")
    with pytest.raises(ValueError, match="is to be a folder"):
        sg.tl.embed_sections(folder, tmp_path / "out.zarr", "sagefm-mini")
    out = tmp_path / "out"
    sg.tl.embed_sections([folder / "a.h5ad"], out, "sagefm-mini")
    shutil.copytree(folder / "b.zarr", out / "b.zarr")  # counts, not a result
    with pytest.raises(FileExistsError, match="holds no embedding"):
        sg.tl.embed_sections([folder / "b.zarr"], out, "sagefm-mini")
    with pytest.raises(ValueError, match="where results go"):
        sg.tl.embed_sections([out / "b.zarr"], out, "sagefm-mini")
    assert ad.read_zarr(out / "b.zarr").X.nnz
    for text in ("{", "{}", '{"settings": {}}'):
        (out / "sections.json").write_text(text)
        with pytest.raises(ValueError, match="is damaged"):
            sg.tl.embed_sections([folder / "a.h5ad"], out, "sagefm-mini")


def test_one_run_at_a_time(folder, tmp_path):
    out = tmp_path / "out"
    sg.tl.embed_sections([folder / "a.h5ad"], out, "sagefm-mini")
    with FileLock(out / ".lock"), pytest.raises(FileExistsError, match="a run is going on"):
        sg.tl.embed_sections([folder / "a.h5ad"], out, "sagefm-mini")
    (out / ".lock").touch()  # held by nobody
    (out / ".a.zarr.0.part").mkdir()
    assert sg.tl.embed_sections([folder / "a.h5ad"], out, "sagefm-mini")["status"].tolist() == ["kept"]
    assert not (out / ".a.zarr.0.part").exists()


def test_a_file_replaced_meanwhile_is_done_again(folder, tmp_path, monkeypatch):
    whole = _sections._embed_section

    def replaced(source, *others):
        result = whole(source, *others)
        ad.read_h5ad(source)[:40].copy().write_h5ad(source)
        return result

    monkeypatch.setattr(_sections, "_embed_section", replaced)
    assert sg.tl.embed_sections([folder / "a.h5ad"], tmp_path / "out", "sagefm-mini")["n_spots"].tolist() == [42]
    monkeypatch.setattr(_sections, "_embed_section", whole)
    table = sg.tl.embed_sections([folder / "a.h5ad"], tmp_path / "out", "sagefm-mini")
    assert table[["status", "n_spots"]].to_numpy().tolist() == [["embedded", 40]]


def test_regions_of_a_section_stay_apart(folder, tmp_path):
    """Two regions at the same coordinates: neighbours never cross."""
    table = sg.datasets.simulated_visium(6, 7, n_genes=8000)
    table = ad.concat([table, table], keys=["r1", "r2"], label="region", index_unique="-")
    table.obs = table.obs[["region"]].assign(instance=np.tile(np.arange(42), 2))
    shapes = {name: ShapesModel.parse(table.obsm["spatial"][:42], geometry=0, radius=30) for name in ("r1", "r2")}
    table = TableModel.parse(table, region=["r1", "r2"], region_key="region", instance_key="instance")
    SpatialData(shapes=shapes, tables={"table": table}).write(folder / "two.zarr")
    found = sg.tl.embed_sections([folder / "two.zarr"], tmp_path / "out", "sagefm-mini")
    graph = ad.read_zarr(found.loc["two", "path"]).obsp["sage_connectivities"]
    assert graph[:42, 42:].nnz == graph[42:, :42].nnz == 0


def test_paths_of_the_home_folder(folder, tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny.save(tmp_path / "tiny.safetensors")
    table = sg.tl.embed_sections(["~/sections/a.h5ad"], "~/out", Path("~/tiny.safetensors"))
    assert table["status"].tolist() == ["embedded"]
    assert (tmp_path / "out" / "a.zarr").is_dir()


def test_an_interrupted_run_goes_on(folder, tmp_path, monkeypatch):
    whole = _sections._embed_section

    def interrupted(source, *others):
        if source.stem == "b":
            raise KeyboardInterrupt
        return whole(source, *others)

    monkeypatch.setattr(_sections, "_embed_section", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sg.tl.embed_sections(folder, tmp_path / "out", "sagefm-mini")
    assert list(json.loads((tmp_path / "out" / "sections.json").read_text())["sections"]) == ["a"]
    monkeypatch.setattr(_sections, "_embed_section", whole)
    table = sg.tl.embed_sections(folder, tmp_path / "out", "sagefm-mini")
    assert table["status"].tolist() == ["kept", "embedded", "failed", "embedded"]


def test_an_interrupted_run_takes_its_jobs_back():
    """A cluster of the user's would go on with them."""

    class Executor(ThreadPoolExecutor):
        def submit(self, *arguments):
            submitted.append(super().submit(*arguments))
            return submitted[-1]

    submitted, going = [], threading.Event()
    with Executor(1) as executor:
        client = SimpleNamespace(get_executor=lambda pure: executor)
        with open_workers(client, 1) as run:
            results = run(lambda number: number or going.wait(30), [(1,), (0,), (2,), (3,)])
            assert next(results) == (0, 1)
            results.close()  # as an exception does
        assert [future.cancelled() for future in submitted[2:]] == [True, True]
        going.set()


def test_killed_workers_survive_on_a_cluster(folder, tmp_path):
    """A worker that is killed in the middle of a section is replaced, and the section is done."""
    from distributed import Client, LocalCluster

    for number in range(3):
        shutil.copy(folder / "a.h5ad", folder / f"a{number}.h5ad")
    out = tmp_path / "out"
    killed = []

    def kill(pids):
        deadline = time.time() + 100
        while time.time() < deadline and not any(out.glob(".*.part/obs")):
            time.sleep(0.005)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster:
        with Client(cluster) as client:
            thread = threading.Thread(target=kill, args=(list(client.run(os.getpid).values()),))
            thread.start()
            # A cluster that doesn't come back fails the test, which would wait for it for ever.
            watchdog = threading.Timer(300, client.close)
            watchdog.start()
            table = sg.tl.embed_sections(folder, out, "sagefm-mini", client=client)
            watchdog.cancel()
            thread.join()
    assert len(killed) == 1
    assert table["status"].drop("c").eq("embedded").all()
    assert table.loc["c", "status"] == "failed"
    assert len(table) == 7
    one = ad.read_zarr(out / "a.zarr").obsm["X_sage"]
    for number in range(3):
        assert_close(ad.read_zarr(out / f"a{number}.zarr").obsm["X_sage"], one)


def test_command_line_embeds_a_folder(folder, tmp_path, capsys, log):
    from sagefm.cli import main

    out = tmp_path / "out"
    code = main(["embed", str(folder), "-o", str(out), "--model", "sagefm-mini", "--jobs", "2", "--device", "cpu"])
    assert code == 1  # one is bad
    assert "     3  embedded" in capsys.readouterr().out
    assert "1 of 4 slides failed" in log.text
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == [
        "a.zarr",
        "b.zarr",
        "d.zarr",
        "sections.csv",
        "sections.json",
    ]
    (folder / "c.h5ad").unlink()
    assert main(["embed", str(folder), "-o", str(out), "--model", "sagefm-mini"]) == 0
    assert "     3  kept" in capsys.readouterr().out
    assert main(["embed", str(folder / "a.h5ad"), "-o", str(tmp_path / "a.h5ad"), "--jobs", "2"]) == 1
    assert "--jobs and --scheduler go with a folder" in log.text
