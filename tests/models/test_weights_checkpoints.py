"""Attacks on checkpoints: flipped bits, half a file, tensors that are not plain."""

import pytest
import torch
from checkpoints import equal_weights
from hypothesis import given
from hypothesis import strategies as st
from weight_files import FLIPS, archive, members_of, refuse, right_or_refused
from weight_server import flip

import sagefm as sg


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
