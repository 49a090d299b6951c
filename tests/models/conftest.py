"""Models, files and servers that tests of weights share."""

import http.server
import io
import json
import threading
import types

import pytest
import torch
from checkpoints import published_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file
from weight_files import GENES, narrow_model, small_model
from weight_server import Worse, register

import sagefm as sg
from sagefm._io import download as _download
from sagefm.models import _vocabulary
from sagefm.models._vocabulary import Vocabulary


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The model as its file holds it, header, tensors and bytes of the file."""
    path = small_model().save(tmp_path_factory.mktemp("small") / "small.safetensors", half=True)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sagefm"])
    return types.SimpleNamespace(
        model=sg.models.load(path), header=header, tensors=load_file(path), content=path.read_bytes()
    )


@pytest.fixture
def three_genes(monkeypatch):
    vocabulary = Vocabulary("hest1k", GENES)
    monkeypatch.setattr(_vocabulary, "hest1k", lambda: vocabulary)


@pytest.fixture(scope="session")
def narrow():
    """Model, and a checkpoint of it as bytes."""
    model, file = narrow_model(), io.BytesIO()
    torch.save(published_checkpoint(model.network), file)
    return model, file.getvalue()


@pytest.fixture
def server(narrow, three_genes, monkeypatch):
    """Server of the checkpoint on this machine, registered under the published name."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Worse)
    httpd.content, httpd.modes, httpd.requests, httpd.over = narrow[1], [], 0, threading.Event()
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    register(monkeypatch, f"http://127.0.0.1:{httpd.server_port}/file.pt", narrow[1])
    monkeypatch.setattr("pooch.core.time", types.SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(_download, "TIMEOUT", 30)
    yield httpd
    httpd.over.set()
    httpd.shutdown()
    httpd.server_close()
