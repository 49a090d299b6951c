"""The download path for real: a loopback HTTP server and a file in the published layout."""

import contextlib
import http.server
import os
import threading

import pytest
import torch
from checkpoints import equal_weights, published_checkpoint
from helpers import random_model
from weight_server import NAME, Handler, cached_files, register

import sagefm as sg
from sagefm._io.download import notice
from sagefm.cli import main
from sagefm.models import _registry


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Published layout, small network."""
    model = random_model((16, 8, 8, 8, 12))
    path = tmp_path_factory.mktemp("published") / "checkpoint.pt"
    torch.save(published_checkpoint(model.network), path)
    return model, path.read_bytes()


@pytest.fixture
def server(checkpoint, monkeypatch):
    """Loopback server of the checkpoint, registered under the published name."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.content, httpd.modes, httpd.requests = checkpoint[1], [], 0
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    register(monkeypatch, f"http://127.0.0.1:{httpd.server_port}/a%20folder/file.pt", checkpoint[1])
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pooch waits between tries
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def test_download_convert_and_reuse(server, checkpoint, log, monkeypatch, capsys):
    monkeypatch.setattr(sg.settings, "progress_bars", True)
    notice.cache_clear()
    assert not sg.models.available().loc[NAME, "local"]
    model = sg.models.load(NAME)
    assert equal_weights(model, checkpoint[0])
    assert (model.name, model.card["training"]["epoch"]) == (NAME, 126)
    assert "no licence" in log.text
    assert "100%" in capsys.readouterr().err  # the progress bar
    assert server.requests == 1

    # From now on the converted file serves, without a network and without the checkpoint.
    assert sg.models.available().loc[NAME, "local"]
    entry = _registry.registry()[NAME]
    entry.download_path.unlink()
    log.clear()
    again = sg.models.load(NAME)
    assert equal_weights(again, checkpoint[0])
    assert again.card == model.card
    assert server.requests == 1
    assert "licence" not in log.text  # once a session


def test_damaged_conversion_is_made_again(server, checkpoint, log):
    sg.models.load(NAME)
    converted = _registry.registry()[NAME].converted_path
    content = bytearray(converted.read_bytes())
    content[-100] ^= 1
    converted.write_bytes(content)
    assert equal_weights(sg.models.load(NAME), checkpoint[0])
    assert "Converting the download again" in log.text
    assert server.requests == 1


def test_wrong_content_is_refused_and_removed(server):
    server.modes = ["html"] * 3
    with pytest.raises(RuntimeError, match=f"not {NAME} and was discarded(?s:.*)sagefm-mini"):
        sg.models.load(NAME)
    assert cached_files() == []
    assert server.requests == 3


def test_interrupted_download_is_tried_again(server, checkpoint):
    server.modes = ["cut", "cut"]
    assert equal_weights(sg.models.load(NAME), checkpoint[0])
    assert server.requests == 3


def test_download_that_never_completes_leaves_nothing(server):
    server.modes = ["cut"] * 3
    with pytest.raises(RuntimeError, match="sagefm-mini"):
        sg.models.load(NAME)
    assert cached_files() == []


def test_missing_file_on_the_server(server):
    server.modes = ["missing"] * 3
    with pytest.raises(RuntimeError, match="(?s)could not download .*404.*sagefm-mini"):
        sg.models.load(NAME)


def test_offline_names_the_way_out(checkpoint, monkeypatch):
    register(monkeypatch, "http://127.0.0.1:1/file.pt", checkpoint[1])  # nothing listens there
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(RuntimeError) as raised:
        sg.models.load(NAME)
    message = str(raised.value)
    target = _registry.registry()[NAME].download_path
    assert 'model="sagefm-mini"' in message
    assert len(message.splitlines()) <= 5
    assert f"{len(checkpoint[1]) / 1e6:.0f} MB" in message
    assert _registry.registry()[NAME].sha256 in message
    assert str(target) in message
    assert "http://127.0.0.1:1/file.pt" in message

    # What the message says works: the file put there by hand serves.
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(checkpoint[1])
    assert equal_weights(sg.models.load(NAME), checkpoint[0])


def test_wrong_file_put_there_by_hand_is_said_and_replaced(server, checkpoint, log):
    target = _registry.registry()[NAME].download_path
    target.parent.mkdir(parents=True)
    target.write_bytes(b"something else")
    assert not sg.models.available().loc[NAME, "local"]
    server.modes = ["missing"] * 3
    with pytest.raises(RuntimeError, match="the file at its place has another SHA-256"):
        sg.models.load(NAME)
    target.write_bytes(b"something else")
    assert equal_weights(sg.models.load(NAME), checkpoint[0])
    assert "its SHA-256 is" in log.text
    assert target.read_bytes() == checkpoint[1]


def test_weights_that_were_fetched_by_hand_are_checked_and_copied(server, checkpoint, tmp_path, capsys):
    file = tmp_path / "any name"
    file.write_bytes(checkpoint[1][:-1])
    with pytest.raises(ValueError, match=f"is no model that sagefm knows: {NAME} has .*Was the download complete"):
        sg.models.install(file)
    with pytest.raises(FileNotFoundError, match="no file"):
        sg.models.install(tmp_path / "nothing")
    assert not sg.models.available().loc[NAME, "local"]
    file.write_bytes(checkpoint[1])
    assert main(["models", "--install", str(file)]) == 0
    assert "ready" in capsys.readouterr().out.split(NAME)[1][:200]
    assert equal_weights(sg.models.load(NAME), checkpoint[0])
    assert server.requests == 0
    assert sg.models.install(_registry.registry()[NAME].download_path) == NAME  # where it is already


def test_missing_cache_is_made(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SAGEFM_CACHE", str(tmp_path / "not" / "yet" / "there"))
    sg.models.load(NAME)
    assert len(cached_files()) == 2  # checkpoint and conversion


def test_cache_that_is_no_folder(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAGEFM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RuntimeError, match="SAGEFM_CACHE"):
        sg.models.load(NAME)


@contextlib.contextmanager
def unprivileged():
    """Run without root's right to write anywhere; not as a fixture, as coverage writes between tests."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_read_only_cache(server, tmp_path, monkeypatch):
    folder = tmp_path / "read-only"
    folder.mkdir()
    for parent in [folder, *folder.parents[:4]]:  # let anyone reach it
        if parent.stat().st_uid == os.geteuid() and parent != folder:
            parent.chmod(0o755)
    folder.chmod(0o555)
    monkeypatch.setenv("SAGEFM_CACHE", str(folder))
    with unprivileged(), pytest.raises(RuntimeError, match="SAGEFM_CACHE"):
        sg.models.load(NAME)


def test_read_only_cache_that_holds_the_checkpoint(server, checkpoint, tmp_path, monkeypatch, log):
    """Without leave to write, the conversion is done anew each time, and said."""
    folder = tmp_path / "shared"
    folder.mkdir()
    monkeypatch.setenv("SAGEFM_CACHE", str(folder))
    _registry.registry()[NAME].download_path.write_bytes(checkpoint[1])
    for parent in folder.parents[:3]:
        parent.chmod(0o755)
    folder.chmod(0o555)
    with unprivileged():
        assert equal_weights(sg.models.load(NAME), checkpoint[0])
    assert "Could not write" in log.text


def test_registry_names_the_published_file():
    entry = _registry.registry()[NAME]
    assert entry.size == 376_893_782
    assert entry.sha256 == "7b2e7ec1e4609f047afb3dc7cd308a2f839fcaea2215e5a3e7da10898bfe4288"
    assert "15fe51faf13d05678b00834d0577a2245210007e" in entry.url
    assert entry.url.rsplit("/", 1)[1] == entry.file
    assert entry.licence.startswith("none")
