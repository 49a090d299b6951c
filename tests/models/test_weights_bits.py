"""Attacks on our own files of weights: contents of others, half a file, flipped bits.

Every error names the file; after it, the same call with a healthy file works.
"""

import json
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from weight_files import FLIPS, equal, refuse, right_or_refused
from weight_server import flip

import sagefm as sg
from sagefm.models import _registry


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
