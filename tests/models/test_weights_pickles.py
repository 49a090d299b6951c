"""Attacks on checkpoints: hostile pickles, each of which would leave a file."""

import functools
import importlib
import io
import operator
import os
import pickle
import runpy
import shutil
import subprocess
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import Gadget
from weight_files import Call, archive, members_of, refuse


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


STARTS = {"os.system", "subprocess.Popen", "importlib"}  # processes, to show that it would run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.process] if name in STARTS else []) for name in GADGETS]
)
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
