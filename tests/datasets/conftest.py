"""A server that the tests of datasets share."""

import http.server
import threading

import pandas as pd
import pytest
from fetched import Handler

from sagefm._io import download as _download


@pytest.fixture
def server(monkeypatch):
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.files, httpd.faults, httpd.requests, httpd.gated, httpd.moved = {}, [], [], set(), {}
    httpd.url = f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pooch waits between tries
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("DRYAD_TOKEN", raising=False)
    _download.notice.cache_clear()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def table():
    """Rows of version 1.1.0's kind: one that meets all criteria, and for each criterion one that doesn't."""
    rows = [
        ("A study", "TENX1", "Breast", "Homo sapiens", "Patient 1", "Visium", 18085),
        ("A study", "TENX2", "Breast", "Homo sapiens", "Patient 1", "Visium HD", 18085),
        ("A study", "TENX3", "Bowel", "Mus musculus", "Patient 1", "Visium", 18085),
        ("A study", "TENX4", "Bowel", "Homo sapiens", "Patient 1", "Visium", 10_000),
        ("Another", "NCBI5", "Brain", "Homo sapiens", None, "Visium", 10_001),
        ("Another", "NCBI6", "Brain", "Homo sapiens", "Patient 1", "Visium", 36601),
    ]
    columns = ["dataset_title", "id", "organ", "species", "patient", "st_technology", "nb_genes"]
    return pd.DataFrame(rows, columns=columns)
