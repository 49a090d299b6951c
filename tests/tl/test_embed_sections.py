"""Folders of sections: several jobs, interruptions, changed files."""

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
import numpy as np
import pandas as pd
import pytest
from comparison import assert_close
from filelock import FileLock
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

import sagefm as sg
from sagefm.tl._sections import embed as _sections
from sagefm.tl._sections.workers import open_workers


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


@pytest.mark.slow
def test_a_folder_of_sections(folder, tmp_path, log):
    table = sg.tl.embed_sections(folder, tmp_path / "out", "sagefm-mini")
    assert table["status"].to_dict() == {"a": "embedded", "b": "embedded", "c": "failed", "d": "embedded"}
    assert "not counts" in table.loc["c", "error"]
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


@pytest.mark.slow
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
        (lambda folder: folder / "nowhere", FileNotFoundError, "no .h5ad or .zarr and no outs folder"),
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


@pytest.mark.slow
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
    """Two regions at the same coordinates: neighbors never cross."""
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


@pytest.mark.slow
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


@pytest.mark.process
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


@pytest.mark.slow
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
