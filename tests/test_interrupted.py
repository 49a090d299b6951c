"""Jobs that are killed in the middle: nothing is damaged, and the next call makes what one call would have made.

``tools/interrupt.py`` does the same at random moments, fifty times.
"""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from signal import SIGINT, SIGKILL, SIGTERM

import anndata as ad
import interruption
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import sagefm as sg
from sagefm._io import files as _files
from sagefm._io.files import atomic, remove, temporary
from sagefm.benchmark._protocol import config as _config
from sagefm.benchmark._protocol.folder import Folder
from sagefm.pl._axes import save_figure
from sagefm.train import _pretrain, _trainer
from sagefm.train._module import MaskedCenter


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    interruption.make_inputs(folder, side=9, n_sections=2)
    return folder


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """What jobs make, each run once."""
    known = {}

    def run(job):
        if job not in known:
            known[job] = interruption.run_undisturbed(job, inputs, tmp_path_factory.mktemp("undisturbed") / "out")
        return known[job]

    return run


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("job", "kills"),
    [
        ("embed", [(SIGINT, 0.6)]),
        ("embed", [(SIGTERM, 0.3), (SIGKILL, 0.7)]),
        ("sections", [(SIGINT, 0.6)]),
        ("prepare over", [(SIGKILL, 0.6)]),
        ("pretrain", [(SIGTERM, 0.6)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(kill.name for kill, _ in value),
)
def test_a_killed_job_starts_again(job, kills, inputs, undisturbed, tmp_path):
    found = interruption.interrupt(job, inputs, tmp_path / "out", undisturbed(job), kills)
    assert not found.damaged
    assert not found.different


# Files that have their name once they are complete.


@pytest.mark.parametrize("old", [None, "file", "folder", "link"])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_files_and_folders_are_replaced(tmp_path, old, new):
    path = tmp_path / "result.x"
    if old == "folder":
        path.mkdir()
        (path / "old").touch()
    elif old is not None:
        (tmp_path / "file").write_text("old")
        (tmp_path / "file").rename(path) if old == "file" else path.symlink_to("file")

    def write(partial):
        if new == "folder":
            partial.mkdir()
            partial = partial / "new"
        partial.write_text("new")

    def interrupted():
        with atomic(path) as partial:
            write(partial)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.exists() == (old is not None)
    assert old != "file" or path.read_text() == "old"
    assert old != "folder" or (path / "old").exists()
    with atomic(path) as partial:
        write(partial)
    assert (path / "new" if new == "folder" else path).read_text() == "new"
    assert path.is_symlink() == (old == "link")
    assert not list(tmp_path.glob(".*"))
    assert not (path / "old").exists()


def test_an_old_folder_is_back_where_the_new_one_cant_come(tmp_path, monkeypatch):
    """Interrupted between the two names that are given."""
    path = tmp_path / "result"
    path.mkdir()
    (path / "old").touch()
    rename = type(path).rename

    def interrupted(self, target):
        if self.name.endswith(".part") and (self / "new").exists():
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replaced(path)
    assert (path / "old").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["result"]


def replaced(path):
    with atomic(path) as partial:
        partial.mkdir()
        (partial / "new").touch()


def test_a_folder_that_isnt_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere to write into"):
        replaced(tmp_path / "nowhere" / "x")
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere to write into"):
        save_figure(_figure(), tmp_path / "nowhere" / "x.png")


def _figure():
    return plt.figure()


@pytest.mark.parametrize("name", ["figure.png", "figure.svg", "figure"])
def test_figures(tmp_path, name):
    save_figure(_figure(), tmp_path / name, dpi=20)
    assert [file.name for file in tmp_path.iterdir()] == [name if "." in name else "figure.png"]


def test_what_dead_processes_left_is_removed(tmp_path, monkeypatch):
    path = tmp_path / "result"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        temporary(path).mkdir()
        temporary(path).touch()
    ours = temporary(path)
    with monkeypatch.context() as patch:
        patch.setattr(_files, "_machine", lambda: "another")
        fresh, old = temporary(path), temporary(path)
    for file in (ours, fresh, old, tmp_path / ".other.part"):
        file.touch()
    os.utime(old, (0, time.time() - 2 * 86_400))
    with atomic(path) as partial:
        partial.touch()
    assert {file.name for file in tmp_path.iterdir()} == {"result", ours.name, fresh.name, ".other.part"}


def test_a_folder_is_gone_at_once(tmp_path, monkeypatch):
    (tmp_path / "result").mkdir()
    monkeypatch.setattr(_files, "delete", lambda path: None)  # killed there
    remove(tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_zarr_writes_on_after_ctrl_c(tmp_path):
    """Its threads may make the folder anew."""

    def write_on(partial):
        for _ in range(3):
            partial.mkdir(exist_ok=True)
            (partial / "chunk").touch()
            time.sleep(0.03)

    def interrupted():
        with atomic(tmp_path / "result") as partial:
            partial.mkdir()
            threading.Thread(target=write_on, args=(partial,)).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


# Many sections


def test_half_deleted_results_arent_taken_for_whole(inputs, tmp_path, monkeypatch):
    """A run over another, killed while it deletes; then the other is asked for again."""
    options = {"model": interruption.model(inputs), "batch_size": 100}
    out, files = tmp_path / "out", [inputs / "sections" / "section 0.h5ad"]
    sg.tl.embed_sections(files, out, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            sg.tl.embed_sections(files, out, "sagefm-mini", overwrite=True)
    table = sg.tl.embed_sections(files, out, **options)
    assert table["status"].tolist() == ["embedded"]
    assert np.isfinite(ad.read_zarr(out / "section 0.zarr").obsm["X_sage"]).all()


def test_a_run_killed_at_its_very_start_doesnt_block_the_next(inputs, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".sections.json.0.part").touch()
    section = inputs / "sections" / "section 0.h5ad"
    sg.tl.embed_sections([section], tmp_path, interruption.model(inputs))
    assert (tmp_path / "section 0.zarr").exists()


def test_a_protocol_killed_at_its_very_start_doesnt_block_the_next(inputs, tmp_path):
    (tmp_path / ".protocol.json.0.part").touch()
    protocol(inputs, tmp_path, 0).open()
    protocol(inputs, tmp_path, 0).open()


def test_a_protocol_killed_while_it_starts_over(inputs, tmp_path, monkeypatch):
    """Pieces go all at once: none is left that says the others are there."""
    first = protocol(inputs, tmp_path, 0)
    first.open()
    first.part("distances", "PCA", lambda: pd.DataFrame({"representation": ["PCA"]}))
    first.mark_done("PCA")
    with monkeypatch.context() as patch:
        patch.setattr(_files, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            protocol(inputs, tmp_path, 1, overwrite=True).open()
    again = protocol(inputs, tmp_path, 0)
    again.open()
    assert not again.is_done("PCA")


def protocol(inputs, out, seed, overwrite=False):
    settings = {"sections": str(inputs / "sections"), "tasks": ["heterogeneity"], "seed": seed}
    return Folder(_config.read(settings), out, overwrite)


def killed(path):
    """As in the middle of deleting a folder."""
    next(file for file in sorted(path.rglob("*")) if file.is_file()).unlink()
    raise KeyboardInterrupt


# Pretraining

RECIPE = replace(sg.train.PRESETS["mini"], hidden=(8, 8), max_epochs=3, batch_size=16)  # four batches an epoch


def train(inputs, out, **options):
    out = out / "model.safetensors"
    return sg.train.pretrain(inputs / "corpus.zarr", RECIPE, out=out, accelerator="cpu", half=False, **options)


def test_no_epoch_is_skipped_after_a_checkpoint_at_its_end(inputs, tmp_path, monkeypatch):
    """Lightning resumes after the last batch of an epoch without its end and the next epoch."""
    expected = train(inputs, tmp_path / "whole")
    step = MaskedCenter.training_step

    def interrupted(self, batch, index):
        if self.global_step == 6:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(MaskedCenter, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(inputs, tmp_path / "broken", checkpoint_steps=4)
    seen = []

    def counted(self, batch, index):
        seen.append(self.global_step)
        return step(self, batch, index)

    monkeypatch.setattr(MaskedCenter, "training_step", counted)
    found = train(inputs, tmp_path / "broken", checkpoint_steps=4, resume=True)
    assert seen == list(range(5, 12))
    weights = [model.network.state_dict().values() for model in (found, expected)]
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def test_checkpoints_of_another_training_arent_resumed(inputs):
    """As lies there when the same file is trained anew and killed before its first checkpoint."""
    corpus, checkpoint = sg.train.Corpus.open(inputs / "corpus.zarr"), {}
    _pretrain.build(corpus, RECIPE).on_save_checkpoint(checkpoint)
    _pretrain.build(corpus, RECIPE).on_load_checkpoint(checkpoint)
    for recipe, seed, message in (
        (replace(RECIPE, learning_rate=0.1), 0, "another training: learning_rate is 0.1 here and was 0.001 there"),
        (RECIPE, 1, "seed is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            _pretrain.build(corpus, recipe, seed=seed).on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="corpus is "):
        _pretrain.build(corpus.with_split({}), RECIPE).on_load_checkpoint(checkpoint)


def test_a_checkpoint_stays_until_the_next_is_complete(tmp_path):
    writer, path = _trainer.AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    writer.save_checkpoint({"step": 1}, path)
    with pytest.raises((AttributeError, TypeError)):  # from the middle of it
        writer.save_checkpoint({"step": 2, "weights": torch.zeros(10), "bad": lambda: None}, path)
    assert torch.load(path)["step"] == 1
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
