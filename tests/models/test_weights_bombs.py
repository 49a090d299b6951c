"""Attacks on checkpoints: files that unpack to more than memory holds."""

import codecs
import io
import resource
import time
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from weight_files import Call, archive, finish, in_children, members_of, narrow_model

import sagefm as sg

pytestmark = pytest.mark.process


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
