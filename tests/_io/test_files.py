"""Files that have their name once they are complete."""

import os
import subprocess
import sys
import threading
import time

import matplotlib.pyplot as plt
import pytest

from sagefm._io import files as _files
from sagefm._io.files import atomic, remove, temporary
from sagefm.pl._axes import save_figure


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


@pytest.mark.process
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
