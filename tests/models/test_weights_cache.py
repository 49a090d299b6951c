"""Attacks on the cache: files and folders of another kind."""

import dataclasses
import json

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from weight_files import narrow_model, write
from weight_server import NAME, cached_files, entry, flip, right, settled

import sagefm as sg

PLACED = {
    "a link to it": lambda path, good, other: (other.write_bytes(good), path.symlink_to(other)),
    "a link to another": lambda path, good, other: (other.write_bytes(b"another's"), path.symlink_to(other)),
    "a dangling link": lambda path, good, other: path.symlink_to(other),
    "a link to itself": lambda path, good, other: path.symlink_to(path),
    "nothing": lambda path, good, other: path.write_bytes(b""),
    "half of it": lambda path, good, other: path.write_bytes(good[: len(good) // 2]),
    "one bit flipped": lambda path, good, other: path.write_bytes(flip(good, -50, 1)),
    "more than it": lambda path, good, other: path.write_bytes(good + good),
    "another model": lambda path, good, other: narrow_model().save(path),
    "a folder": lambda path, good, other: path.mkdir(),
}


@pytest.mark.parametrize("what", PLACED)
@pytest.mark.parametrize("which", ["download_path", "converted_path"])
def test_something_else_in_the_cache(server, narrow, tmp_path, which, what):
    right(narrow)
    path, other = getattr(entry(), which), tmp_path / "elsewhere"
    good = path.read_bytes()
    entry().download_path.unlink()
    entry().converted_path.unlink()
    PLACED[what](path, good, other)
    before = other.read_bytes() if other.exists() else None
    server.requests = 0
    if (which, what) == ("download_path", "a folder"):
        with pytest.raises(RuntimeError, match=f"{path} is a folder.*Move it away"):
            sg.models.load(NAME)
        path.rmdir()
    assert right(narrow)
    assert right(narrow)
    assert (other.read_bytes() if other.exists() else None) == before  # never written through a link
    assert server.requests == (what != "a link to it")
    if what == "a link to it" and which == "converted_path":
        assert cached_files() == [path.name]
    else:
        assert settled()


def test_a_conversion_without_digest_or_of_another_source_is_made_again(server, narrow, log):
    right(narrow)
    path = entry().converted_path
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sagefm"])
    write(path, header, load_file(path))
    assert right(narrow)
    assert "damaged" in log.text
    dataclasses.replace(sg.models.load(path), card={**header["card"], "sha256": "0" * 64}).save(path)
    assert right(narrow)
    assert f"is not {NAME}" in log.text
    assert server.requests == 1


def test_links_for_the_cache_folder(server, narrow, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    for name, target in {"link": "real", "dangling": "none", "loop": "loop"}.items():
        (tmp_path / name).symlink_to(tmp_path / target)
    for name in ("dangling", "loop"):
        monkeypatch.setenv("SAGEFM_CACHE", str(tmp_path / name))
        with pytest.raises(RuntimeError, match=f"{name}.*SAGEFM_CACHE"):
            sg.models.load(NAME)
        assert not (tmp_path / "none").exists()
    for name in ("link", "real"):
        monkeypatch.setenv("SAGEFM_CACHE", str(tmp_path / name))
        assert right(narrow)
        assert settled()
    assert server.requests == 1
