"""Attacks on weights: a damaged or hostile file, or a broken cache, gives the right model or an error, never another.

Every error names the file; after it, the same call with a healthy file or server works.
"""

import codecs
import dataclasses
import functools
import gzip
import hashlib
import http.server
import importlib
import io
import json
import multiprocessing
import operator
import os
import pickle
import resource
import runpy
import shutil
import signal
import struct
import subprocess
import tarfile
import threading
import time
import types
import zipfile
import zlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_models import Gadget, equal_weights, published_checkpoint
from test_registry import NAME, Handler, cached_files, register

import sagefm as sg
from sagefm._io import download as _download
from sagefm.models import _registry, _vocabulary
from sagefm.models._calibration import EDGES, TEXTS, Calibration
from sagefm.models._vocabulary import Vocabulary

GENES = ("A", "B", "C")


def small_reference():
    shapes = {
        "prior_r": (2, 3),
        "prior_sd": (3,),
        "n_donors": (3,),
        "errors": (2, len(EDGES) + 1, 4),
        "ranks": (2, 1, 3),
        "centroids": (2, 3),
        "count_share": (3,),
    }
    return Calibration(
        donors=["a", "b"],
        lattices=["hexagonal"],
        lacking=[0.2, 0.6],
        levels=[0.9],
        limits={"lacking": {"care": 0.5, "outside": 0.8, "above": 1.0}, "deepest": {"care": 1e6, "above": 1.0}},
        **{key: np.full(shape, 0.5, dtype=np.float32) for key, shape in shapes.items()},
    )


def small_model():
    """Model of three genes with all that a file can hold."""
    torch.manual_seed(0)
    network = sg.models.SAGE(3, (4, 2)).requires_grad_(False).eval()
    return sg.models.Model(
        "small",
        network,
        Vocabulary("panel", GENES),
        card={"note": "for tests"},
        gene_mean=np.array([0.1, 0.2, 0.3], dtype=np.float32),
        calibration=small_reference(),
    )


def equal(one, other):
    """Whether two models are the same in all that results depend on."""
    return (
        equal_weights(one, other)
        and (one.name, one.n_spots, one.card) == (other.name, other.n_spots, other.card)
        and one.vocabulary.symbols == other.vocabulary.symbols
        and np.array_equal(one.gene_mean, other.gene_mean)
        and all(np.array_equal(value, getattr(other.calibration, key)) for key, value in vars(one.calibration).items())
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The model as its file holds it, header, tensors and bytes of the file."""
    path = small_model().save(tmp_path_factory.mktemp("small") / "small.safetensors", half=True)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sagefm"])
    return types.SimpleNamespace(
        model=sg.models.load(path), header=header, tensors=load_file(path), content=path.read_bytes()
    )


def refuse(path, match=None):
    """The file is refused, by an error of the right type that names it."""
    with pytest.raises(ValueError, match=match) as raised:
        sg.models.load(path)
    assert str(path) in str(raised.value)
    assert "weights_only=False" not in str(raised.value)


# Headers and tensors of our own files. Their digest is left out, as it would tell each of these.


def write(path, header, tensors):
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, metadata={"sagefm": text})
    return path


def test_a_file_without_digest_is_read(small, tmp_path):
    assert equal(sg.models.load(write(tmp_path / "m.safetensors", small.header, small.tensors)), small.model)


ENTRIES = ("format", "name", "architecture", "hidden", "n_spots", "vocabulary", "card", "gene_mean", "reference")
JUNK = (None, -1, 1.5, True, 10**30, "x", [], {}, [1], [None], {"a": 1}, float("nan"))
JUNK_ALLOWED = {"format": (True,), "name": ("x",), "card": ({}, {"a": 1})}


@pytest.mark.parametrize("key", ENTRIES)
def test_entries_that_are_missing_or_of_another_type(small, tmp_path, key):
    path = tmp_path / "m.safetensors"
    header = {name: value for name, value in small.header.items() if name != key}
    if key == "gene_mean":  # not every model has it
        assert sg.models.load(write(path, header, small.tensors)).gene_mean is None
    else:
        refuse(write(path, header, small.tensors))
    for junk in JUNK:
        if not any(junk is allowed or junk == allowed for allowed in JUNK_ALLOWED.get(key, ())):
            refuse(write(path, {**small.header, key: junk}, small.tensors))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden", [10**12, 2], "shapes"),
        ("hidden", [4, 10**30], "shapes"),
        ("hidden", [-4, 2], "widths"),
        ("hidden", [4.0, 2], "widths"),
        ("hidden", [True, 2], "widths"),
        ("hidden", ["4", 2], "widths"),
        ("hidden", [[4], 2], "widths"),
        ("hidden", [0, 0], "widths"),
        ("hidden", [4], "doesn't have"),
        ("hidden", [2, 4], "shape"),
        ("hidden", [4, 2, 2], "lacks"),
        ("hidden", [4] * 20_000, "shapes"),
        ("n_spots", 0, "n_spots"),
        ("n_spots", 1, "n_spots"),
        ("n_spots", 10**12, "n_spots"),
        ("n_spots", 15.0, "n_spots"),
        ("gene_mean", [0.1, 0.2], "2 genes, the vocabulary 3"),
        ("gene_mean", [0.1, 0.2, float("nan")], "gene_mean"),
        ("gene_mean", [0.1, 0.2, float("inf")], "gene_mean"),
        ("gene_mean", [0.1, 0.2, 1e300], "gene_mean"),
        ("gene_mean", [0.1, 0.2, 10**400], "gene_mean"),
        ("gene_mean", [0.1, 0.2, -1], "gene_mean"),
        ("gene_mean", ["0.1", "0.2", "0.3"], "gene_mean"),
        ("gene_mean", [True, False, True], "gene_mean"),
        ("gene_mean", [[0.1], [0.2], [0.3]], "gene_mean"),
        ("gene_mean", {"0": 0.1, "1": 0.2, "2": 0.3}, "gene_mean"),
        ("architecture", "gcn", "five convolutions"),
        ("architecture", "__class__", "unknown architecture"),
        ("gene_meen", [0.1, 0.2, 0.3], "doesn't know.*gene_meen"),
    ],
)
def test_absurd_entries(small, tmp_path, key, value, message):
    refuse(write(tmp_path / "m.safetensors", {**small.header, key: value}, small.tensors), message)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '"x"', "{", "{}", "[" * 100_000, '{"format":' * 50_000, '{"format": ' + "1" * 5000 + "}"]
)
def test_headers_that_are_no_header(small, tmp_path, text):
    refuse(write(tmp_path / "m.safetensors", text, small.tensors))


def digest(*symbols):
    return hashlib.sha256("\n".join(symbols).encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "0" * 64},
        {"sha256": None},
        {"sha256": digest("A", "C", "B")},
        {"name": 3},
        {"name": None},
        {"name": "hest1k"},  # with symbols that are not its own
        {"symbols": None},
        {"symbols": "ABC"},
        {"symbols": {"A": 1, "B": 2, "C": 3}},
        {"symbols": ["A", "C", "B"]},
        {"symbols": ["A", "B", "C", "D"]},
        {"symbols": ["A", "B", "B"], "sha256": digest("A", "B", "B")},
        {"symbols": ["A", "B", 3], "sha256": digest("A", "B", "3")},
        {"symbols": ["A\nB", "C"]},  # the digest of A, B, C
        {"symbols": ["A", "B", ["C"]]},
        {"symbols": [], "sha256": digest()},
    ],
)
def test_vocabularies_that_are_not_the_models(small, tmp_path, change):
    header = {**small.header, "vocabulary": {**small.header["vocabulary"], **change}}
    path = write(tmp_path / "m.safetensors", header, small.tensors)
    if change == {"name": "hest1k"}:  # says what it is, by its symbols
        assert sg.models.load(path).vocabulary.symbols == GENES
    else:
        refuse(path)


def test_a_vocabulary_of_the_published_name_keeps_its_genes(tmp_path):
    """Written without its genes, the file could not be read again."""
    model = dataclasses.replace(small_model(), vocabulary=Vocabulary("hest1k", GENES))
    assert sg.models.load(model.save(tmp_path / "m.safetensors")).vocabulary.symbols == GENES


@pytest.mark.parametrize(
    "change",
    [
        *({key: junk} for key in TEXTS for junk in (None, 3, "x", [3], [None])),
        {"lacking": []},
        {"lacking": [0.6, 0.2]},
        {"lacking": [0.2, float("nan")]},
        {"lacking": [0.2, 2.0]},
        {"lacking": ["0.2", "0.6"]},
        {"lacking": [0.2, 0.4, 0.6]},
        {"levels": [True]},
        {"levels": [0.8, 0.9]},
        {"limits": {"lacking": 3}},
        {"limits": {"lacking": {"care": 0.5}}},
        {"limits": {"lacking": {"care": "0.5", "above": 1.0}}},
        {"limits": {"lacking": {"care": float("nan"), "above": 1.0}}},
        {"limits": {"lacking": {"care": 0.5, "above": 1.0, "beyond": 1.0}}},
        {"extra": []},
    ],
)
def test_references_whose_text_is_broken(small, tmp_path, change):
    header = {**small.header, "reference": {**small.header["reference"], **change}}
    refuse(write(tmp_path / "m.safetensors", header, small.tensors), "calibration")


@pytest.mark.parametrize("key", TEXTS)
def test_references_that_lack_a_text(small, tmp_path, key):
    reference = {name: value for name, value in small.header["reference"].items() if name != key}
    refuse(write(tmp_path / "m.safetensors", {**small.header, "reference": reference}, small.tensors), "calibration")


ARRAYS = ("prior_r", "prior_sd", "n_donors", "errors", "ranks", "centroids", "count_share")
BREAKS = {
    "missing": lambda array: None,
    "longer": lambda array: torch.cat([array, array[:1]]),
    "empty": lambda array: array[:0],
    "flat": lambda array: array.reshape(-1)[:1].contiguous(),
    "a single value": lambda array: array.reshape(-1)[0].clone(),
    "one more axis": lambda array: array[None].contiguous(),
    "infinite": lambda array: torch.full_like(array, torch.inf),
    "whole numbers": lambda array: array.to(torch.int32),
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("key", ARRAYS)
def test_references_whose_arrays_are_broken(small, tmp_path, key, how):
    tensors = {**small.tensors, f"reference.{key}": BREAKS[how](small.tensors[f"reference.{key}"])}
    path = write(tmp_path / "m.safetensors", small.header, {k: v for k, v in tensors.items() if v is not None})
    if (key, how) == ("centroids", "longer"):  # there may be any number of them
        assert len(sg.models.load(path).calibration.centroids) == 3
    else:
        refuse(path, key)


@pytest.mark.parametrize("key", ARRAYS)
def test_nan_says_unknown_in_some_arrays_of_a_reference(small, tmp_path, key):
    name = f"reference.{key}"
    tensors = {**small.tensors, name: torch.full_like(small.tensors[name], torch.nan)}
    path = write(tmp_path / "m.safetensors", small.header, tensors)
    if key in ("prior_r", "prior_sd", "ranks"):
        assert np.isnan(getattr(sg.models.load(path).calibration, key)).all()
    else:
        refuse(path, key)


def with_value(tensor, value):
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


@pytest.mark.parametrize("name", ["conv.lin_l.weight", "gain", "fc_gene.bias"])
@pytest.mark.parametrize(
    "change",
    [
        lambda t: None,
        lambda t: with_value(t, torch.nan),
        lambda t: with_value(t, torch.inf),
        lambda t: with_value(t.double(), 1e300),  # infinite as float32
        lambda t: with_value(t.bfloat16(), -torch.inf),
        lambda t: t[..., :-1].contiguous(),
        lambda t: t.reshape(-1, 1),
        lambda t: t[None].contiguous(),
        lambda t: t[:0],
        lambda t: torch.tensor(1.0),
        lambda t: t.to(torch.int32),
        lambda t: t.to(torch.uint8),
        lambda t: t.to(torch.bool),
        lambda t: t.to(torch.complex64),
        lambda t: t.to(torch.float8_e4m3fn),
    ],
)
def test_tensors_that_are_not_the_networks(small, tmp_path, name, change):
    tensors = {**small.tensors, name: change(small.tensors[name])}
    refuse(write(tmp_path / "m.safetensors", small.header, {k: v for k, v in tensors.items() if v is not None}))


def test_extra_tensors_and_other_precisions(small, tmp_path):
    path = tmp_path / "m.safetensors"
    for extra in ("extra", "conv.lin_l.weight2", "reference.extra", "reference."):
        refuse(
            write(path, small.header, {**small.tensors, extra: torch.zeros(1)}), "extra|weight2|calibration|reference"
        )
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        same = {key: tensor.to(dtype) for key, tensor in small.tensors.items()}
        assert equal_weights(
            sg.models.load(write(path, small.header, same)), small.model, atol=1e-2 if dtype == torch.bfloat16 else 0
        )


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 10**12) + b"{}",
        struct.pack("<Q", 0),
        raw(b"{" * 1000),
        raw(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        raw({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"\0" * 4),
        raw({"w": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}, b"\0" * 4),
        raw({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"\0" * 4),
        raw({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4),
        raw({"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        raw({"w": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}, b"\0" * 4),
        raw({"w": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, b"\0" * 4),
        raw({f"w{i}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for i in range(9)}, b"\0" * 4),
        raw({"__metadata__": {"sagefm": 3}}),
        raw({"__metadata__": []}),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:7b2e\nsize 376893782\n",
        b"<!DOCTYPE html><html>Please log in</html>" * 20,
        pickle.dumps({"model_state_dict": 1}),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_contents_that_are_no_weights(tmp_path, content, suffix):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    refuse(path)


def test_metadata_of_others_are_refused(small, tmp_path):
    """As a bit lost in the name of the digest would otherwise leave the file unchecked."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(small.content.replace(b'"sha256":"', b'"sha257":"', 1))
    refuse(path, "sha257")


def test_half_a_file_of_each_length(small, tmp_path):
    path, n = tmp_path / "m.safetensors", len(small.content)
    for length in {*range(0, n, 97), *range(12), n - 1, n - 2}:
        path.write_bytes(small.content[:length])
        refuse(path)
    path.write_bytes(small.content + b"\0")
    refuse(path)
    path.write_bytes(small.content)
    assert equal(sg.models.load(path), small.model)


FLIPS = settings(
    max_examples=120, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def flip(content, position, bits):
    changed = bytearray(content)
    changed[position % len(content)] ^= bits
    return bytes(changed)


def right_or_refused(path, model, same=equal):
    try:
        loaded = sg.models.load(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017 - either is right
    else:
        assert same(loaded, model)


@FLIPS
@given(position=st.integers(0, 10**9), bits=st.integers(1, 255))
def test_flipped_bits_of_our_own_file(small, tmp_path, position, bits):
    path = tmp_path / "m.safetensors"
    path.write_bytes(flip(small.content, position, bits))
    right_or_refused(path, small.model)


def test_flipped_bits_of_weights(small, tmp_path):
    """Which no other check can tell: the lowest bit of each value."""
    path = tmp_path / "m.safetensors"
    start = 8 + struct.unpack("<Q", small.content[:8])[0]
    for position in range(start, len(small.content), 6):
        path.write_bytes(flip(small.content, position, 1))
        refuse(path, "digest")


def test_the_weights_of_the_package_are_checked(monkeypatch, tmp_path):
    entry = _registry.registry()["sagefm-mini"]
    path = tmp_path / entry.package_file
    path.write_bytes(flip(entry.package_path.read_bytes(), -1000, 1))
    monkeypatch.setattr(_registry.Entry, "package_path", path)
    with pytest.raises(ValueError, match=f"{path} is not the file .* Install sagefm again"):
        sg.models.load("sagefm-mini")


def test_threads_that_write_one_file(small, tmp_path):
    path = tmp_path / "m.safetensors"
    small.model.save(path)

    def work(number):
        if number % 2:
            small.model.save(path)
        else:
            assert equal(sg.models.load(path), small.model)

    with ThreadPoolExecutor(4) as pool:
        assert not [*filter(None, pool.map(work, range(60)))]
    assert [*tmp_path.iterdir()] == [path]


# Checkpoints: a PyTorch file of the published layout, of three genes.


@pytest.fixture
def three_genes(monkeypatch):
    vocabulary = Vocabulary("hest1k", GENES)
    monkeypatch.setattr(_vocabulary, "hest1k", lambda: vocabulary)


def narrow_model():
    torch.manual_seed(1)
    network = sg.models.GCN(3, (4, 3, 2, 3, 4)).requires_grad_(False).eval()
    return sg.models.Model("narrow", network, Vocabulary("hest1k", GENES))


@pytest.fixture(scope="module")
def narrow():
    """Model, and a checkpoint of it as bytes."""
    model, file = narrow_model(), io.BytesIO()
    torch.save(published_checkpoint(model.network), file)
    return model, file.getvalue()


@FLIPS
@given(position=st.integers(0, 10**9), bits=st.integers(1, 255))
def test_flipped_bits_of_a_checkpoint(narrow, three_genes, tmp_path, position, bits):
    path = tmp_path / "m.pt"
    path.write_bytes(flip(narrow[1], position, bits))
    right_or_refused(path, narrow[0], equal_weights)


def test_flipped_bits_of_a_checkpoints_weights(narrow, three_genes, tmp_path):
    path = tmp_path / "m.pt"
    for tensor in narrow[0].network.state_dict().values():
        if tensor.any():
            path.write_bytes(flip(narrow[1], narrow[1].index(tensor.numpy().tobytes()), 1))
            refuse(path, "checksum")


def test_half_a_checkpoint_of_each_length(narrow, three_genes, tmp_path):
    path, n = tmp_path / "m.pt", len(narrow[1])
    for length in {*range(0, n, 997), *range(5), n - 1, n - 22}:
        path.write_bytes(narrow[1][:length])
        refuse(path)
    path.write_bytes(narrow[1])
    assert equal_weights(sg.models.load(path), narrow[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"conv1.lin.weight": s["conv1.lin.weight"].to(torch.complex64)}, "complex64"),
        (lambda s: {"conv1.lin.weight": s["conv1.lin.weight"].to(torch.int8)}, "int8"),
        (lambda s: {"conv1.bias": s["conv1.bias"].to(torch.bool)}, "bool"),
        (lambda s: {"conv1.lin.weight": s["conv1.lin.weight"].double() + 1e300}, "not finite"),
        (lambda s: {"conv5.lin.weight": torch.tensor(1.0)}, "conv5|shapes"),
        (lambda s: {"conv1.lin.weight": torch.zeros(0, 3)}, "shapes"),
        (lambda s: {"conv1.lin.weight": s["conv1.lin.weight"].to_sparse()}, "plain weights"),
        (lambda s: {"conv1.lin.weight": torch.empty(4, 3, device="meta")}, "plain weights"),
        (lambda s: {"conv1.lin.weight": torch.quantize_per_tensor(torch.ones(4, 3), 1, 0, torch.quint8)}, "plain"),
        (lambda s: {"conv1.lin.weight": s["conv1.lin.weight"].to(torch.float8_e4m3fn)}, "plain weights|float8"),
        (lambda s: {"conv1.lin.weight": torch.nested.nested_tensor([torch.ones(3)] * 4)}, "plain weights"),
        (lambda s: {"conv1.bias": [1.0] * 4}, "conv1.bias"),
        (lambda s: {"conv1.lin.weight": None}, "conv1.lin.weight"),
        (lambda s: {3: torch.zeros(1), "x": torch.zeros(1)}, "by name: .3"),
        (lambda s: {"conv1.lin.weight": torch.zeros(1).expand(2 * 10**6, 3)}, "fewer values"),
    ],
)
def test_checkpoints_whose_tensors_are_not_plain(narrow, three_genes, tmp_path, change, message):
    state = narrow[0].network.state_dict()
    path = tmp_path / "m.pt"
    torch.save({"model_state_dict": {**state, **change(state)}}, path)
    refuse(path, message)


def test_checkpoints_that_are_no_mapping_or_of_mixed_keys(narrow, three_genes, tmp_path):
    path = tmp_path / "m.pt"
    state = narrow[0].network.state_dict()
    for content in ([], 3, None, "model_state_dict", state, {"model_state_dict": []}):
        torch.save(content, path)
        refuse(path)
    torch.save({"model_state_dict": state, 3: 1, "x": 2}, path)
    refuse(path, "unknown keys .*3.*x")


def test_checkpoints_of_other_makes_that_are_right(narrow, three_genes, tmp_path):
    """Parameters instead of tensors, another memory order, other precision, stored anew by a zip tool."""
    state, path = narrow[0].network.state_dict(), tmp_path / "m.pt"
    for change in (torch.nn.Parameter, lambda t: t.T.contiguous().T, torch.Tensor.double, torch.clone):
        torch.save({"model_state_dict": {key: change(tensor) for key, tensor in state.items()}}, path)
        assert equal_weights(sg.models.load(path), narrow[0])
    path.write_bytes(archive(members_of(narrow[1])))
    assert equal_weights(sg.models.load(path), narrow[0])


# Hostile pickles: what each would run leaves a file.


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Built:
    """Pickles as an object that is given a state, of which setting it makes a call."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return io.BytesIO, (), (b"", 0, Call(open, self.trace, "w"))


def code(trace):
    return f"open({trace!r}, 'w').close()"


def hostile_bytes(trace):
    return pickle.dumps(Gadget(trace))


def legacy_bytes(trace):
    file = io.BytesIO()
    torch.save(Gadget(trace), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def module_file(trace):
    path = Path(trace).with_name("hostile_module.py")
    path.write_text(code(trace))
    return str(path)


GADGETS = {
    "os.system": lambda trace: Call(os.system, f"touch {trace}"),
    "os.open": lambda trace: Call(os.open, trace, os.O_CREAT),
    "subprocess.Popen": lambda trace: Call(subprocess.check_call, ["touch", trace]),
    "eval": lambda trace: Call(eval, code(trace)),
    "exec": lambda trace: Call(exec, code(trace)),
    "runpy": lambda trace: Call(runpy.run_path, module_file(trace)),
    "compile": lambda trace: Call(eval, Call(compile, code(trace), "x", "eval")),
    "importlib": lambda trace: Call(
        operator.methodcaller("system", f"touch {trace}"), Call(importlib.import_module, "os")
    ),
    "getattr": lambda trace: Call(getattr, Call(operator.methodcaller("touch"), Path(trace)), "x"),
    "partial": lambda trace: Call(functools.partial(open, trace, "w")),
    "map": lambda trace: Call(list, Call(map, open, [trace], ["w"])),
    "shutil": lambda trace: Call(shutil.copy, __file__, trace),
    "torch.load": lambda trace: Call(
        functools.partial(torch.load, weights_only=False), Call(io.BytesIO, legacy_bytes(trace))
    ),
    "torch.storage": lambda trace: Call(torch.storage._load_from_bytes, legacy_bytes(trace)),
    "numpy.load": lambda trace: Call(
        functools.partial(np.load, allow_pickle=True), Call(io.BytesIO, hostile_bytes(trace))
    ),
    "pickle.loads": lambda trace: Call(pickle.loads, hostile_bytes(trace)),
    "state": Built,
    "torch._utils": lambda trace: Call(torch._utils._rebuild_parameter, Call(open, trace, "w"), False, OrderedDict()),
    "rebuild from type": lambda trace: Call(
        torch._tensor._rebuild_from_type_v2, open, io.TextIOWrapper, (trace, "w"), {}
    ),
    "numpy array of objects": lambda trace: np.array([Gadget(trace)], dtype=object),
}


def places(gadget, state):
    """A checkpoint with the gadget in one place or another."""
    yield gadget
    yield {"model_state_dict": gadget}
    yield {"model_state_dict": {**state, "conv1.bias": gadget}}
    yield {"model_state_dict": state, "optimizer_state_dict": {"state": {0: {"exp_avg": [(gadget,)]}}}}
    yield {"model_state_dict": state, "best_val_loss": gadget}
    hooked = OrderedDict(state)
    hooked._metadata = {"x": gadget}  # as a module's state dict has
    yield {"model_state_dict": hooked}


@pytest.mark.parametrize("name", GADGETS)
def test_hostile_pickles_run_nothing(narrow, three_genes, tmp_path, name):
    trace, path = tmp_path / "it-ran", tmp_path / "m.pt"
    gadget = GADGETS[name](str(trace))
    try:
        pickle.loads(pickle.dumps(gadget))
    except Exception as error:  # noqa: BLE001 - after it ran, what came of it may not fit
        del error
    assert trace.exists()  # it would run
    trace.unlink()
    for content in places(gadget, narrow[0].network.state_dict()):
        for protocol in (2, 4):
            torch.save(content, path, pickle_protocol=protocol)
            refuse(path, "plain weights")
        torch.save(content, path, _use_new_zipfile_serialization=False)
        refuse(path, "plain weights")
    for protocol in range(6):
        path.write_bytes(pickle.dumps(gadget, protocol))
        refuse(path, "plain weights")
    with tarfile.open(path, "w") as tar:
        for member in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(member)
            info.size = len(pickled := pickle.dumps(gadget, 2))
            tar.addfile(info, io.BytesIO(pickled))
    refuse(path, "plain weights")
    path = path.rename(tmp_path / "m.safetensors")
    refuse(path)
    assert not trace.exists()


def opcodes(trace):
    """Pickles by hand, with what no class writes."""
    text = f"touch {trace}".encode()
    short = b"U" + bytes([len(text)]) + text
    yield b"(S'" + text + b"'\nios\nsystem\n."  # INST
    yield b"(cos\nsystem\n" + short + b"o."  # OBJ
    yield b"\x80\x02cos\nsystem\n" + short + b"\x85R."
    yield b"\x80\x02cposix\nsystem\n" + short + b"\x85R."
    yield b"\x80\x04\x8c\x02os\x8c\x06system\x93" + short + b"\x85R."  # STACK_GLOBAL
    yield b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + short + b"\x85R0}\x8c\x10model_state_dict}s."
    yield b"\x80\x02c__builtin__\neval\n" + short + b"\x85R."
    yield b"\x80\x02ctorch\nos.system\n" + short + b"\x85R."
    yield b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93" + short + b"\x85R."  # by the module's own imports
    yield b"\x80\x02ctorch.serialization\nos\n}b."
    yield b"\x80\x02ccollections\nOrderedDict\n)R}(U\x0b__setstate__cos\nsystem\nub" + short + b"b."  # BUILD twice
    yield b"\x80\x02ccollections\nOrderedDict\n)R}(U\x09__class__cos\nsystem\nub."
    yield b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\n" + short + b"tR."
    yield b"\x80\x02(U\x07storagecos\nsystem\n" + short + b"U\x03cpuK\x01tQ."  # a storage's type
    yield b"\x80\x02" + short + b"Q."
    yield b"P" + text + b"\n."
    yield b"\x82\x01."  # a registered extension
    yield b"\x80\x02cos\nsystem\n."
    yield b"."
    yield b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b"."
    yield b"\x80\x02\x8b\xff\xff\xff\x7f."
    yield b"\x80\x02}r\xff\xff\xff\x7f."  # a huge memo
    yield b"(" * 100_000
    yield b"]" * 50_000 + b"a" * 49_999 + b"."


def members_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return [(info.filename, file.read(info)) for info in file.infolist()]


def test_hostile_opcodes_run_nothing(narrow, three_genes, tmp_path):
    trace, path = tmp_path / "it-ran", tmp_path / "m.pt"
    for pickled in opcodes(trace):
        members = [(name, pickled if name.endswith("data.pkl") else data) for name, data in members_of(narrow[1])]
        for content in (archive(members), pickled):
            path.write_bytes(content)
            refuse(path)
    assert not trace.exists()


def test_settings_of_pytorch_do_not_let_pickles_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trace, path = tmp_path / "it-ran", tmp_path / "m.pt"
    torch.save({"model_state_dict": Gadget(trace)}, path)
    refuse(path)
    assert not trace.exists()


def test_a_second_pickle_of_a_checkpoint_is_not_read_instead(narrow, three_genes, tmp_path):
    """Zip readers differ in which of two members of one name, or of one but for the case, they take."""
    trace, path = tmp_path / "it-ran", tmp_path / "m.pt"
    members = members_of(narrow[1])
    name = members[0][0]
    for second in (name, name.upper()):
        for hostile in ([(second, hostile_bytes(trace)), *members], [*members, (second, hostile_bytes(trace))]):
            path.write_bytes(archive(hostile))
            refuse(path, "of one name")
    path.write_bytes(archive([*members, (name.replace("data.pkl", "constants.pkl"), b"")]))  # TorchScript
    refuse(path)
    assert not trace.exists()


# Bombs


def archive(members):
    """Zip file by hand: (name, stored bytes) or (name, bytes as they lie, method, size that is claimed)."""
    body, directory = io.BytesIO(), io.BytesIO()
    for name, data, *rest in members:
        method, size = rest or (0, len(data))
        about = struct.pack("<HHHHHIII", 20, 0, method, 0, 33, zlib.crc32(data), len(data), size)
        about += struct.pack("<HH", len(name), 0)
        offset = body.tell()
        body.write(b"PK\3\4" + about + name.encode() + data)
        directory.write(b"PK\1\2\0\0" + about + struct.pack("<HHHII", 0, 0, 0, 0, offset) + name.encode())
    return finish(body.getvalue(), directory.getvalue(), len(members))


def finish(body, directory, n):
    return body + directory + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, n, n, len(directory), len(body), 0)


def deflated(n_blocks):
    """16 MiB of zeros, some times over, in 16 KiB each."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeeze.compress(bytes(2**24)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return block * n_blocks + squeeze.flush(zlib.Z_FINISH), n_blocks * 2**24


def bombs(content):
    """Files that are small and would be large."""
    members, (zeros, size) = members_of(content), deflated(200)
    (pickle_name, _), *rest = members
    weights = next(i for i, (name, _) in enumerate(members) if name.endswith("data/1"))
    yield "a weight that inflates", archive([*members[:weights], (members[weights][0], zeros, 8, size)])
    yield "a pickle that inflates", archive([(pickle_name, zeros, 8, size), *rest])
    yield "a version that inflates", archive([members[0], ("archive/version", zeros, 8, size), *rest])
    yield "a weight that claims to be larger", archive([*members[:weights], (members[weights][0], b"", 0, 2**32 - 2)])
    yield "many members", archive([*members, *((f"archive/data/{i}", b"") for i in range(1000, 40_000))])
    body = archive([("archive/data.pkl", bytes(2**20))])
    entry = body[body.index(b"PK\1\2") : body.index(b"PK\5\6")]
    overlapping = b"".join(entry.replace(b"data.pkl", f"{i:08}".encode()) for i in range(9000))
    yield "members that overlap", finish(body[: body.index(b"PK\1\2")], overlapping, 9000)
    yield "a long pickle", archive([(pickle_name, b"\x80\x02" + b"N" * 2**25 + b"."), *rest])
    for name, gadget in {
        "bytearrays": Call(bytearray, Call(bytearray, 10**10)),
        "an encoding": Call(codecs.encode, "x" * 1000, "utf-32"),
        "a set": Call(set, "abc"),
        "a quantized tensor": torch.quantize_per_tensor(torch.ones(1), 1, 0, torch.quint8),
    }.items():
        yield name, saved({"model_state_dict": narrow_model().network.state_dict(), "epoch": gadget})
    state = narrow_model().network.state_dict()
    one = torch.zeros(1)
    for shape in ((10**9, 3), (4, 10**9)):
        yield "one value for all", saved({"model_state_dict": {**state, "conv1.lin.weight": one.expand(shape)}})
    shared = {key: one.expand(tensor.shape) for key, tensor in state.items()}
    shared |= {f"conv{i}.lin.weight": one.expand(10**5, 10**5) for i in range(1, 6)}
    yield "one value for every layer", saved({"model_state_dict": shared})
    tensor = Call(torch._utils._rebuild_tensor_v2, one.storage(), 0, (10**6, 10**4), (10**4, 1), False, OrderedDict())
    yield "a tensor beyond its storage", saved({"model_state_dict": {**state, "conv1.lin.weight": tensor}})


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def in_children(*works, seconds=60):
    """Run functions at the same time in processes forked off; what each returns, or its error."""
    context = multiprocessing.get_context("fork")
    children = []
    for work in works:
        receive, send = context.Pipe(duplex=False)
        children.append((context.Process(target=_child, args=(work, send), daemon=True), receive))
    for process, _ in children:
        process.start()
    found = []
    for process, receive in children:
        found.append(receive.recv() if receive.poll(seconds) else "no answer")
        process.kill()
        process.join()
    return found


def _child(work, send):
    torch.set_num_threads(1)  # threads of the parent are not here
    try:
        send.send(work())
    except BaseException as error:  # noqa: BLE001 - the parent looks at it
        send.send(f"{type(error).__name__}: {error}")


def test_bombs_take_neither_memory_nor_time(narrow, three_genes, tmp_path):
    path = tmp_path / "m.pt"
    content = [*bombs(narrow[1])]
    assert all(len(bomb) < 40e6 for _, bomb in content)

    def attempts():
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + 2**30, -1))
        before, wrong = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
        for name, bomb in content:
            path.write_bytes(bomb)
            start = time.process_time()
            try:
                wrong.append(f"{name}: {sg.models.load(path)}")
            except ValueError as error:
                if "MemoryError" in str(error) or str(path) not in str(error):
                    wrong.append(f"{name}: {error}")
            if time.process_time() - start > 3:
                wrong.append(f"{name}: {time.process_time() - start:.1f} s")
        return wrong, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    [found] = in_children(attempts)
    assert isinstance(found, tuple), found
    wrong, megabytes = found
    assert wrong == []
    assert megabytes < 150


# The cache and the server


class Worse(Handler):
    """Serves the file in ways that go wrong."""

    def do_GET(self):
        server = self.server
        mode = server.modes[0] if server.modes else "whole"
        if mode in ("whole", "html", "cut", "missing"):
            super().do_GET()
            return
        server.modes.pop(0)
        server.requests += 1
        getattr(self, mode)(server.content)

    def answer(self, body, length=None, status=200, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def fail(self, content):
        self.send_error(500)

    def busy(self, content):
        self.answer(b"", status=503, Retry_After="100000")

    def stall(self, content):
        self.answer(content[:2000], len(content))
        self.wfile.flush()
        self.server.over.wait(30)

    def silent(self, content):
        self.server.over.wait(30)

    def loop(self, content):
        self.server.modes.insert(0, "loop")
        self.answer(b"", status=302, Location=self.path)

    def moved(self, content):
        self.answer(b"", status=302, Location="/elsewhere")

    def away(self, content):
        self.answer(b"", status=302, Location="file:///etc/passwd")

    def long(self, content):
        self.answer(content, len(content) + 1000)

    def short(self, content):
        self.answer(content, len(content) - 1000)

    def nonsense(self, content):
        self.answer(content, "many")

    def empty(self, content):
        self.answer(b"")

    def other(self, content):
        self.answer(flip(content, 3000, 1))

    def packed(self, content):
        self.answer(gzip.compress(content, 1), Content_Encoding="gzip")

    def mispacked(self, content):
        self.answer(content, Content_Encoding="gzip")

    def halfpacked(self, content):
        self.answer(gzip.compress(content, 1)[:2000], Content_Encoding="gzip")

    def badchunks(self, content):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"10\r\n" + content[:16] + b"\r\nzz\r\n")

    def no_http(self, content):
        self.wfile.write(b"\0" * 1000)

    def header_bomb(self, content):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000)


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


def entry():
    return _registry.registry()[NAME]


def right(narrow):
    """The model loads, and is kept."""
    model = sg.models.load(NAME)
    assert equal_weights(model, narrow[0])
    assert model.card["sha256"] == entry().sha256
    return True


def settled():
    """What the cache holds when all is well: nothing that is only partly there, and nothing more each time."""
    return cached_files() == sorted([entry().file, entry().converted_path.name])


WORSE = [name for name, way in vars(Worse).items() if callable(way) and name not in ("do_GET", "answer")]


@pytest.mark.parametrize("mode", [*WORSE, "html", "cut", "missing"])
def test_servers_that_go_wrong(server, narrow, monkeypatch, mode):
    slow, right_after_all, n_tries = mode in ("stall", "silent"), mode in ("packed", "moved"), 3
    if slow:
        monkeypatch.setattr(_download, "TIMEOUT", 0.2)
    server.modes = [mode] * n_tries
    if right_after_all:
        assert right(narrow)
    else:
        with pytest.raises(RuntimeError, match=f"{NAME}.*sagefm-mini") as raised:
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


@pytest.mark.parametrize("n", [2, 4])
def test_processes_that_fetch_at_once(server, narrow, n):
    """One of them fetches, the others wait for it."""
    assert in_children(*[lambda: right(narrow)] * n) == [True] * n
    assert server.requests == 1
    assert settled()


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
