"""Processes and threads that fetch weights at once."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from weight_files import in_children
from weight_server import NAME, cached_files, entry, right, settled

import sagefm as sg


@pytest.mark.process
@pytest.mark.parametrize("n", [2, 4])
def test_processes_that_fetch_at_once(server, narrow, n):
    """One of them fetches, the others wait for it."""
    assert in_children(*[lambda: right(narrow)] * n) == [True] * n
    assert server.requests == 1
    assert settled()


@pytest.mark.process
def test_processes_that_fetch_at_once_where_nothing_can_be_locked(server, narrow):
    (lock := sg.settings.cache_dir / f".{NAME}.lock").mkdir(parents=True)
    assert in_children(*[lambda: right(narrow)] * 4) == [True] * 4
    assert server.requests <= 4
    assert settled()
    assert lock.is_dir()


def test_threads_that_fetch_at_once(server, narrow):
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(lambda _: right(narrow), range(8))] == [True] * 8
    assert server.requests == 1
    assert settled()


@pytest.mark.process
def test_a_process_killed_while_it_fetches_holds_up_no_other(server, narrow):
    server.modes = ["stall"]
    child = multiprocessing.get_context("fork").Process(target=lambda: sg.models.load(NAME), daemon=True)
    child.start()
    while not server.requests:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert right(narrow)
    assert {entry().file, entry().converted_path.name} <= set(cached_files())
