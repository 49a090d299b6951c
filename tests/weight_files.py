"""Small models and their files, and what has to be refused."""

import hashlib
import io
import json
import multiprocessing
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from checkpoints import equal_weights
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file

import sagefm as sg
from sagefm.models._calibration import EDGES, Calibration
from sagefm.models._vocabulary import Vocabulary

GENES = ("A", "B", "C")


def small_reference():
    shapes = {
        "prior_r": (2, 3),
        "prior_sd": (3,),
        "prior_beyond_depth": (2, 3),
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


def refuse(path, match=None):
    """The file is refused, by an error of the right type that names it."""
    with pytest.raises(ValueError, match=match) as raised:
        sg.models.load(path)
    assert str(path) in str(raised.value)
    assert "weights_only=False" not in str(raised.value)


def write(path, header, tensors):
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, metadata={"sagefm": text})
    return path


def digest(*symbols):
    return hashlib.sha256("\n".join(symbols).encode()).hexdigest()


FLIPS = settings(
    max_examples=120, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def right_or_refused(path, model, same=equal):
    try:
        loaded = sg.models.load(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017 - either is right
    else:
        assert same(loaded, model)


def narrow_model():
    torch.manual_seed(1)
    network = sg.models.GCN(3, (4, 3, 2, 3, 4)).requires_grad_(False).eval()
    return sg.models.Model("narrow", network, Vocabulary("hest1k", GENES))


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def members_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return [(info.filename, file.read(info)) for info in file.infolist()]


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
