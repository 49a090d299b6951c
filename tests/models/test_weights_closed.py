"""Disks that are full, and folders and files that are closed."""

import functools
import os
import shutil
import subprocess

import pytest
from weight_files import in_children
from weight_server import NAME, cached_files, entry, right, settled

import sagefm as sg

pytestmark = pytest.mark.process


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """Mounts the cache as a disk of some kB; skips where that isn't allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.setenv("SAGEFM_CACHE", str(folder))
    mounted = []

    def mount(kilobytes):
        options = f"size={kilobytes}k" + (",remount" if mounted else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        allowed = os.geteuid() == 0 and shutil.which("mount")
        if not allowed or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs root")
        mounted.append(folder)

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_too_small_for_the_download(server, narrow, small_disk):
    small_disk(8)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="No space left.*SAGEFM_CACHE"):
            sg.models.load(NAME)
        assert cached_files() == []
    small_disk(1000)
    assert right(narrow)
    assert settled()


def test_a_disk_too_small_for_the_conversion(server, narrow, small_disk, log):
    small_disk(4 * -(-len(narrow[1]) // 4096))  # full to the page
    for _ in range(2):
        assert right(narrow)
        assert "No space left" in log.text
        assert cached_files() == [entry().file]
    small_disk(1000)
    assert right(narrow)
    assert settled()
    assert server.requests == 1


def as_nobody(work):
    """Run a function in a process without root's rights."""

    def unprivileged():
        if os.geteuid() == 0:
            os.setuid(65534)
        return work()

    return in_children(unprivileged)[0]


def test_folders_and_files_that_are_closed(server, narrow, tmp_path, monkeypatch):
    folder = tmp_path / "closed"
    folder.mkdir()
    monkeypatch.setenv("SAGEFM_CACHE", str(folder))
    for parent in folder.parents:  # let anyone reach it
        if parent.stat().st_mode & 0o002:
            break
        parent.chmod(0o755)
    load = functools.partial(right, narrow)

    for mode in (0o000, 0o444, 0o555):  # no looking into, and no writing
        folder.chmod(mode)
        found = as_nobody(load)
        assert found.startswith("RuntimeError: can't use the folder")
        assert "SAGEFM_CACHE" in found
        assert not as_nobody(lambda: bool(sg.models.available().loc[NAME, "local"]))
    folder.chmod(0o777)
    assert as_nobody(load) is True
    assert settled()

    # A file that can't be read: the conversion is made again, of the download.
    entry().converted_path.chmod(0o000)
    folder.chmod(0o555)
    assert as_nobody(load) is True
    folder.chmod(0o777)
    assert as_nobody(load) is True
    assert settled()
    assert server.requests == 1

    # Neither can be read, and only the folder written: both are made again.
    entry().converted_path.unlink()
    entry().download_path.chmod(0o000)
    found = as_nobody(load)
    assert str(entry().download_path) in found
    assert "Permission denied" in found
    path = tmp_path / "closed.safetensors"
    narrow[0].save(path).chmod(0o000)
    assert as_nobody(lambda: sg.models.load(path)).startswith(
        f"ValueError: {path} can't be read ([Errno 13] Permission denied"
    )
    path = path.rename(tmp_path / "closed.pt")
    assert as_nobody(lambda: sg.models.load(path)).startswith(f"ValueError: {path} can't be read")
    shutil.rmtree(folder)
    assert right(narrow)
