"""Attacks on downloads: servers that go wrong."""

import pytest
from weight_server import NAME, Worse, cached_files, entry, right, settled

import sagefm as sg
from sagefm._io import download as _download

WORSE = [name for name, way in vars(Worse).items() if callable(way) and name not in ("do_GET", "answer")]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [*WORSE, "html", "cut", "missing"])
def test_servers_that_go_wrong(server, narrow, monkeypatch, mode):
    slow, right_after_all, n_tries = mode in ("stall", "silent"), mode in ("packed", "moved"), 3
    if slow:
        monkeypatch.setattr(_download, "TIMEOUT", 0.2)
    server.modes = [mode] * n_tries
    if right_after_all:
        assert right(narrow)
    else:
        with pytest.raises(RuntimeError, match=f"{NAME}(?s:.*)sagefm-mini") as raised:
            sg.models.load(NAME)
        assert str(entry().download_path) in str(raised.value)
        assert cached_files() == []
        assert server.requests <= (31 * n_tries if mode == "loop" else n_tries)
        assert not sg.models.available().loc[NAME, "local"]
    server.modes = []
    if slow:
        monkeypatch.setattr(_download, "TIMEOUT", 1)
    assert right(narrow)
    assert settled()

    # Once wrong, then right.
    for path in (entry().download_path, entry().converted_path):
        path.unlink()
    server.modes, server.requests = [mode], 0
    if mode != "loop":
        assert right(narrow)
        assert settled()
        assert slow or server.requests == (1 if mode == "packed" else 2)


def test_a_redirect_loop_is_called_by_its_name(server):
    server.modes = ["loop"]
    with pytest.raises(RuntimeError, match="30 redirects"):
        sg.models.load(NAME)


def test_errors_do_not_leave_more_each_time(server, narrow):
    server.modes = [mode for mode in ("short", "cut", "other", "fail") for _ in range(3)]
    for _ in range(4):
        with pytest.raises(RuntimeError):
            sg.models.load(NAME)
        assert cached_files() == []
    assert right(narrow)
    assert settled()
