import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import Gadget, equal_weights, published_checkpoint
from helpers import random_model
from safetensors.torch import load_file, save_file

import sagefm as sg
from sagefm.models import _load, _registry
from sagefm.models._architectures import ARCHITECTURES
from sagefm.models._vocabulary import Vocabulary, hest1k

HIDDEN = (16, 8, 8, 8, 12)


def test_published_network():
    """Keys, shapes and the number of parameters of the published checkpoint."""
    network = sg.models.GCN(14_558)
    keys = {f"conv{i}.{name}" for i in range(1, 6) for name in ("lin.weight", "bias")}
    assert set(network.state_dict()) == keys | {"fc_gene.weight", "fc_gene.bias"}
    assert network.conv1.lin.weight.shape == (1024, 14_558)
    assert sum(parameter.numel() for parameter in network.parameters()) == 31_405_790


@pytest.mark.parametrize(
    ("architecture", "hidden"),
    [(sg.models.GCN, HIDDEN), (sg.models.SAGE, (5,)), (sg.models.SAGE, (5, 3)), (sg.models.SAGE, HIDDEN)],
)
def test_shapes_are_the_network_s(architecture, hidden):
    """What a file is checked against is what PyTorch Geometric's layers hold."""
    expected = {name: tuple(tensor.shape) for name, tensor in architecture(7, hidden).state_dict().items()}
    assert ARCHITECTURES[architecture.architecture].shapes(7, hidden) == expected


@pytest.mark.process
def test_tools_do_without_pytorch_geometric():
    """It takes seconds to import, and only the definition and the training of a network need it."""
    code = """
import sys
import sagefm as sg
adata = sg.datasets.simulated_visium(6, 7, n_genes=5000)
sg.pp.neighborhood_graph(adata)
sg.tl.sage_embed(adata, "sagefm-mini", device="cpu")
sg.tl.impute(adata, ["COL1A1"], "sagefm-mini", device="cpu")
print(*sys.modules)
assert type(sg.models.load("sagefm-mini").network) is sg.models.SAGE
"""
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "torch" in modules
    assert not {"torch_geometric", "scanpy", "squidpy", "spatialdata", "lightning", "requests"} & set(modules)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("architecture", [sg.models.GCN, sg.models.SAGE])
def test_save_and_load(tmp_path, half, architecture):
    model = random_model(HIDDEN, architecture)
    model.card["note"] = "for this test"
    path = model.save(tmp_path / "model.safetensors", half=half)
    loaded = sg.models.load(path)
    assert equal_weights(model, loaded, atol=1e-3 if half else 0)
    assert {parameter.dtype for parameter in loaded.network.parameters()} == {torch.float32}
    assert type(loaded.network) is architecture
    assert (loaded.hidden, loaded.n_spots, loaded.card) == (HIDDEN, 15, {"note": "for this test"})
    assert loaded.vocabulary.sha256 == hest1k().sha256
    assert list(tmp_path.iterdir()) == [path]


def test_own_vocabulary_travels_with_the_file(tmp_path):
    vocabulary = Vocabulary("panel", ("A", "B", "C"))
    model = sg.models.Model("mine", sg.models.GCN(3, HIDDEN), vocabulary)
    loaded = sg.models.load(model.save(tmp_path / "mine.safetensors"))
    assert loaded.vocabulary.symbols == ("A", "B", "C")


def test_published_layout(tmp_path):
    model = random_model(HIDDEN)
    path = tmp_path / "published.pt"
    torch.save(published_checkpoint(model.network), path)
    loaded = sg.models.load(path)
    assert equal_weights(model, loaded)
    assert loaded.card["training"]["epoch"] == 126
    assert loaded.name == "published"


def without(state, key):
    return {name: tensor for name, tensor in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"model_state_dict": without(s, "conv3.bias")}, "lacks .*conv3.bias"),
        (lambda s: {"model_state_dict": without(s, "conv3.lin.weight")}, "doesn't hold the convolutions"),
        (lambda s: {"model_state_dict": {**s, "extra": torch.zeros(1)}}, "doesn't have: .*extra"),
        (lambda s: {"model_state_dict": {**s, "conv1.bias": torch.zeros(3)}}, r"conv1.bias has shape \(3,\)"),
        (lambda s: {"model_state_dict": {**s, "conv1.bias": torch.full((16,), torch.nan)}}, "not finite"),
        (lambda s: {"model_state_dict": s, "another": 1}, "unknown keys .*another"),
    ],
)
def test_wrong_checkpoints_are_refused(tmp_path, change, message):
    state = random_model(HIDDEN).network.state_dict()
    path = tmp_path / "wrong.pt"
    torch.save(change(state), path)
    with pytest.raises(ValueError, match=message):
        sg.models.load(path)


@pytest.mark.parametrize("writer", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
def test_hostile_pickle_does_not_run(tmp_path, writer):
    path, trace = tmp_path / "hostile.pt", tmp_path / "it-ran"
    writer({"model_state_dict": Gadget(trace)}, path)
    with pytest.raises(ValueError, match="plain weights"):
        sg.models.load(path)
    assert not trace.exists()


@pytest.mark.parametrize("damage", ["truncated", "text"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused(tmp_path, suffix, damage):
    model = random_model(HIDDEN)
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(published_checkpoint(model.network), path)
    else:
        model.save(path)
    path.write_bytes(path.read_bytes()[:-5000] if damage == "truncated" else b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match="model"):
        sg.models.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "transformer"}, "unknown architecture 'transformer'"),
        ({"format": 99}, "format 99"),
        ({"hidden": [16, 8, 8, 8, 13]}, "shape"),
        ({"vocabulary": {"name": "hest1k", "sha256": "0" * 64}}, "digests"),
        ({"vocabulary": {"name": "other", "sha256": "0" * 64}}, "'other'"),
    ],
)
def test_wrong_headers_are_refused(tmp_path, change, message):
    path = random_model(HIDDEN).save(tmp_path / "model.safetensors")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sagefm"])
    save_file(load_file(path), path, metadata={"sagefm": json.dumps({**header, **change})})
    with pytest.raises(ValueError, match=message):
        sg.models.load(path)


def test_foreign_safetensors_are_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="no sagefm header"):
        sg.models.load(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("sage-fm", ValueError, "'sage-fm-hest1k'"),
        ("weights/none.safetensors", FileNotFoundError, "none.safetensors"),
        (3, TypeError, "int"),
    ],
)
def test_unknown_models(name, error, message):
    with pytest.raises(error, match=message):
        sg.models.load(name)


@pytest.mark.parametrize(("name", "megabytes"), [("sagefm-mini", 17), ("sagefm-nano", 5)])
def test_small_models_come_with_the_package(name, megabytes):
    model = sg.models.load(name)
    assert model.name == name
    assert _registry.registry()[name].package_path.stat().st_size < megabytes * 1e6
    assert len(model.trained_spots) > 0.9 * model.card["training"]["spots"]
    assert len(model.vocabulary) == 14_558
    assert model.gene_mean.shape == (14_558,)
    assert {"summary", "data", "training", "left_out", "limits", "licence"} <= set(model.card)
    for donor in model.card["left_out"].values():
        assert donor["model"]["r_beyond_depth"] > donor["depth-scaled neighbor mean"]["r_beyond_depth"]
    table = sg.models.available()
    assert table.loc[name, "local"]
    assert not table.loc["sage-fm-hest1k", "local"]
    assert table.loc["sage-fm-hest1k", "size_mb"] == 377


@pytest.fixture
def counted(monkeypatch):
    """Paths of the safetensors that are read, in their order."""
    read, paths = _load.read_safetensors, []
    monkeypatch.setattr(_load, "read_safetensors", lambda path, **options: paths.append(path) or read(path, **options))
    return paths


def set_age(path, seconds):
    """Date a file back: one that has just been written may change within the same tick of the clock."""
    then = path.stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


def test_a_file_is_read_once(tmp_path, counted, monkeypatch):
    path = random_model(HIDDEN).save(tmp_path / "model.safetensors")
    set_age(path, 60)
    models = [sg.models.load(path) for _ in range(3)]
    monkeypatch.chdir(tmp_path)
    models.append(sg.models.load("model.safetensors"))
    assert counted == [path]
    assert len({model.weights.tensors["conv1.bias"].data_ptr() for model in models}) == 1
    for _ in range(2):
        sg.models.load("sagefm-mini")
    assert len(counted) <= 2  # an earlier test may have read it


def test_a_file_that_has_changed_is_read_again(tmp_path, counted):
    path = random_model(HIDDEN).save(tmp_path / "model.safetensors")
    set_age(path, 60)
    sg.models.load(path)
    changed = random_model(HIDDEN)
    changed.network.conv1.bias.fill_(3)
    changed.save(path)  # of the same size
    set_age(path, 30)
    assert equal_weights(sg.models.load(path), changed)
    # One written just now isn't kept at all.
    for value in (4, 5):
        changed.network.conv1.bias.fill_(value)
        changed.save(path)
        assert equal_weights(sg.models.load(path), changed)
    assert len(counted) == 4


@pytest.mark.parametrize("architecture", [sg.models.GCN, sg.models.SAGE])
def test_what_is_done_to_a_loaded_model_concerns_no_other(tmp_path, counted, architecture):
    given = replace(random_model(HIDDEN, architecture), gene_mean=np.ones(14_558, dtype=np.float32))
    path = given.save(tmp_path / "model.safetensors")
    set_age(path, 60)
    model, before = sg.models.load(path), sg.models.load(path).canonical()
    assert model.network is model.network
    assert equal_weights(model, given)
    torch.testing.assert_close(model.canonical().center, before.center, rtol=0, atol=0)
    for parameter in model.network.requires_grad_(True).parameters():
        parameter.data.fill_(3)
    model.card["note"], model.gene_mean[:] = "mine", 3
    assert (model.canonical().bias == 3).all()
    again = sg.models.load(path)
    assert equal_weights(again, given)
    assert again.card == {}
    assert (again.gene_mean == 1).all()
    assert counted == [path]


def test_load_on_a_device_leaves_the_given_model(tiny, monkeypatch):
    assert sg.models.load(tiny, device="cpu") is tiny
    with pytest.raises(ValueError, match="'tpu'"):
        sg.models.load(tiny, device="tpu")
    monkeypatch.setattr(_load, "get_device", torch.device)
    for model in (tiny, sg.models.load("sagefm-mini")):
        moved = sg.models.load(model, device="meta")
        assert {tensor.device.type for tensor in moved.network.state_dict().values()} == {"meta"}
        assert {tensor.device.type for tensor in model.network.state_dict().values()} == {"cpu"}
        assert (moved.name, moved.hidden, moved.card) == (model.name, model.hidden, model.card)
        assert sg.models.load(moved, device="meta") is moved


def test_canonical_form_is_the_network(tiny):
    """Closed form: 15 times the same spot gives an MLP of that spot."""
    x = torch.rand(1, 14_558)
    network = tiny.network
    h = x
    for i in range(1, 6):
        conv = network.get_submodule(f"conv{i}")
        h = h @ conv.lin.weight.T + conv.bias
        if i < 5:
            h = torch.where(h > 0, h, 0.01 * h)
    expected = (h @ network.fc_gene.weight.T + network.fc_gene.bias).clamp(min=0)
    found = tiny.canonical().forward(x, 14 * x, torch.tensor(14.0))
    np.testing.assert_allclose(found, expected, atol=1e-5)
