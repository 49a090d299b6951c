"""Attacks on our own files of weights: headers and tensors that are damaged or absurd.

Their digest is left out, as it would tell each of these.
"""

import dataclasses

import numpy as np
import pytest
import torch
from checkpoints import equal_weights
from weight_files import GENES, digest, equal, refuse, small_model, write

import sagefm as sg
from sagefm.models._calibration import TEXTS
from sagefm.models._vocabulary import Vocabulary


def test_a_file_without_digest_is_read(small, tmp_path):
    assert equal(sg.models.load(write(tmp_path / "m.safetensors", small.header, small.tensors)), small.model)


ENTRIES = ("format", "name", "architecture", "hidden", "n_spots", "vocabulary", "card", "gene_mean", "calibration")


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
        ("architecture", "gcn", "lacks|doesn't"),
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
    header = {**small.header, "calibration": {**small.header["calibration"], **change}}
    refuse(write(tmp_path / "m.safetensors", header, small.tensors), "calibration")


@pytest.mark.parametrize("key", TEXTS)
def test_references_that_lack_a_text(small, tmp_path, key):
    reference = {name: value for name, value in small.header["calibration"].items() if name != key}
    refuse(write(tmp_path / "m.safetensors", {**small.header, "calibration": reference}, small.tensors), "calibration")


ARRAYS = ("prior_r", "prior_sd", "prior_beyond_depth", "n_donors", "errors", "ranks", "centroids", "count_share")


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
    tensors = {**small.tensors, f"calibration.{key}": BREAKS[how](small.tensors[f"calibration.{key}"])}
    path = write(tmp_path / "m.safetensors", small.header, {k: v for k, v in tensors.items() if v is not None})
    if (key, how) == ("centroids", "longer"):  # there may be any number of them
        assert len(sg.models.load(path).calibration.centroids) == 3
    else:
        refuse(path, key)


@pytest.mark.parametrize("key", ARRAYS)
def test_nan_says_unknown_in_some_arrays_of_a_reference(small, tmp_path, key):
    name = f"calibration.{key}"
    tensors = {**small.tensors, name: torch.full_like(small.tensors[name], torch.nan)}
    path = write(tmp_path / "m.safetensors", small.header, tensors)
    if key in ("prior_r", "prior_sd", "prior_beyond_depth", "ranks"):
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
    for extra in ("extra", "conv.lin_l.weight2", "calibration.extra", "calibration."):
        refuse(
            write(path, small.header, {**small.tensors, extra: torch.zeros(1)}), "extra|weight2|calibration|reference"
        )
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        same = {key: tensor.to(dtype) for key, tensor in small.tensors.items()}
        assert equal_weights(
            sg.models.load(write(path, small.header, same)), small.model, atol=1e-2 if dtype == torch.bfloat16 else 0
        )
