"""Weight files: our safetensors with a JSON header, and the layout of the published checkpoint."""

from __future__ import annotations

import hashlib
import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sagefm._files import atomic
from sagefm.models import _gcn, _reference, _sage, _vocabulary
from sagefm.models._model import Model

ARCHITECTURES: dict[str, type[_gcn.GCN] | type[_sage.SAGE]] = {"gcn": _gcn.GCN, "sage": _sage.SAGE}
HEADER, DIGEST = "sagefm", "sha256"
REFERENCE = "reference."
FORMAT = 1
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PUBLISHED_KEYS = frozenset(
    {
        "model_state_dict",
        "optimizer_state_dict",
        "scheduler_state_dict",
        "epoch",
        "best_val_loss",
        "hidden_channels",
        "learning_rate",
        "weight_decay",
        "mask_percentage",
        "batch_size",
    }
)
# All that a pickle of plain weights names. Others that PyTorch deems harmless, such as bytearray, take any memory.
PLAIN = re.compile(
    r"collections (OrderedDict|Counter)|torch(\.storage)? \w+|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
# Those of the published checkpoint have some fifty members and a pickle of some thousand bytes.
MAX_MEMBERS, MAX_PICKLE = 10_000, 2**20


def _is_whole(value: object, least: int, most: float = np.inf) -> bool:
    return type(value) is int and least <= value <= most


# What the entries of a header have to be, besides its format and architecture.
ENTRIES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("text", lambda value: isinstance(value, str)),
    "hidden": ("widths of layers", lambda value: isinstance(value, list) and all(_is_whole(n, 1) for n in value)),
    "n_spots": ("a whole number from 2 to 10,000", lambda value: _is_whole(value, 2, 10_000)),
    "vocabulary": ("a mapping", lambda value: isinstance(value, dict)),
    "card": ("a mapping", lambda value: isinstance(value, dict)),
}
OPTIONAL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "gene_mean": (
        "a list of mean log1p counts",
        lambda value: isinstance(value, list) and all(type(n) in (int, float) and 0 <= n < 100 for n in value),
    ),
    "reference": ("a mapping", lambda value: isinstance(value, dict)),
}


def write_safetensors(model: Model, path: Path, *, half: bool = False) -> Path:
    """Write a model; the file takes its name only when it is complete."""
    header = {
        "format": FORMAT,
        "name": model.name,
        "architecture": model.architecture,
        "hidden": list(model.hidden),
        "n_spots": model.n_spots,
        "vocabulary": _vocabulary.to_header(model.vocabulary),
        "card": model.card,
    }
    if model.gene_mean is not None:
        header["gene_mean"] = [round(float(value), 4) for value in model.gene_mean]
    dtype = torch.float16 if half else torch.float32
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.network.state_dict().items()}
    if model.reference is not None:
        header["reference"] = model.reference.header()
        arrays = model.reference.arrays()
        tensors |= {REFERENCE + key: torch.from_numpy(array) for key, array in arrays.items()}
    text = json.dumps(header)
    with atomic(path) as partial:
        try:
            save_file(tensors, partial, metadata={HEADER: text, DIGEST: _digest(text, tensors)})
        except SafetensorError as error:
            raise OSError(f"could not write {path}: {error}") from error
    return path


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    """Digest of all that a file holds, by which a bit lost on the way is an error and not another model."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_safetensors(path: Path, *, needs_digest: bool = False) -> Model:
    """Read a file that :func:`write_safetensors` wrote, float32 whatever it stores.

    Without ``needs_digest``, files of earlier versions, which have no digest, are read too.

    Raises
    ------
    ValueError
        If the file is damaged, isn't sagefm's, is of an unknown architecture or format, or if names,
        shapes or values of its tensors are not the architecture's.
    """
    try:
        path.open("rb").close()  # of a file that may not be read, safetensors says that there is none
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # safe_open is a context, not a mapping: iterating it needs keys().
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}. Fetch or copy it again.") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error}). Look at its permissions, or copy it again.") from error
    if HEADER not in metadata:
        raise ValueError(f"{path} has no sagefm header: it holds weights of something else.")
    header = _read_header(path, metadata[HEADER])
    if unknown := sorted(metadata.keys() - {HEADER, DIGEST}):
        raise ValueError(f"{path} has metadata that sagefm doesn't write: {unknown}. Fetch or copy it again.")
    if needs_digest or DIGEST in metadata:
        if metadata.get(DIGEST) != _digest(metadata[HEADER], tensors):
            raise ValueError(f"{path} is damaged: it doesn't hold what its digest says. Fetch or copy it again.")
    try:
        vocabulary = _vocabulary.from_header(header["vocabulary"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return _build(
        path,
        architecture=header["architecture"],
        name=header["name"],
        hidden=header["hidden"],
        tensors=tensors,
        vocabulary=vocabulary,
        n_spots=header["n_spots"],
        card=header["card"],
        gene_mean=header.get("gene_mean"),
        reference=header.get("reference"),
    )


def _read_header(path: Path, text: str) -> dict[str, Any]:
    """Header of a weights file, all entries there and of their types."""
    damaged = f"{path} has a damaged header, fetch or copy it again"
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{damaged}: {error}.") from error
    if not isinstance(header, dict):
        raise ValueError(f"{damaged}: it is not a mapping.")
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is of format {header.get('format')!r}; this sagefm reads {FORMAT}. Update sagefm.")
    architecture = header.get("architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ValueError(f"{path}: unknown architecture {architecture!r}. Update sagefm.")
    if missing := sorted(ENTRIES.keys() - header.keys()):
        raise ValueError(f"{damaged}: it lacks {missing}.")
    if unknown := sorted(header.keys() - ENTRIES.keys() - OPTIONAL.keys() - {"format", "architecture"}):
        raise ValueError(f"{damaged}: sagefm doesn't know its entries {unknown}.")
    for key, (what, is_right) in (ENTRIES | OPTIONAL).items():
        if key in header and not is_right(header[key]):
            raise ValueError(f"{damaged}: {key} is {header[key]!r:.80}, not {what}.")
    return header


def read_published(path: Path, name: str, card: dict[str, Any] | None = None) -> Model:
    """Read a checkpoint in the layout of the published one; the optimizer's state is dropped.

    The file is unpickled with ``weights_only=True``: it can hold tensors and plain values, never code.

    Raises
    ------
    ValueError
        If the file is no such checkpoint, or if keys, shapes or values are not the published network's.
    """
    try:
        _check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # of any type, where the file is hostile
        # What PyTorch says of a pickle is to read it without weights_only.
        reason = "" if isinstance(error, pickle.UnpicklingError) else f": {error}"
        raise ValueError(
            f"{path} can't be read as a PyTorch checkpoint of plain weights ({type(error).__name__}{reason}). Fetch or "
            "copy it again; write one of your own with torch.save, of tensors and numbers only."
        ) from error
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of the published layout: it has no 'model_state_dict'.")
    if unknown := set(checkpoint) - PUBLISHED_KEYS:
        raise ValueError(
            f"{path} is not a checkpoint of the published layout: unknown keys {sorted(map(str, unknown))}."
        )
    tensors = checkpoint["model_state_dict"]
    keys = [f"conv{i}.lin.weight" for i in range(1, 6)]
    if not isinstance(tensors, dict) or any(key not in tensors for key in keys):
        raise ValueError(f"{path} doesn't hold the five convolutions of the published network.")
    if wrong := [key for key, tensor in tensors.items() if not isinstance(key, str) or not isinstance(tensor, Tensor)]:
        raise ValueError(f"{path}: its model_state_dict holds more than tensors by name: {wrong}.")
    # A tensor may repeat a single value, and then is of any size.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > path.stat().st_size:
        raise ValueError(f"{path} holds fewer values than its tensors claim.")
    training = {
        key: checkpoint[key]
        for key in (
            "epoch",
            "best_val_loss",
            "learning_rate",
            "weight_decay",
            "mask_percentage",
            "batch_size",
        )
        if isinstance(checkpoint.get(key), int | float)
    }
    return _build(
        path,
        architecture="gcn",
        name=name,
        hidden=[len(tensors[key]) if tensors[key].ndim else 0 for key in keys],
        tensors=tensors,
        vocabulary=_vocabulary.hest1k(),
        n_spots=15,
        card={**(card or {}), "training": training},
    )


def _check_archive(path: Path) -> None:
    """Look at what PyTorch trusts: sizes, checksums, and what the pickle asks for."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = {member.filename.lower() for member in members}
        if not len(names) == len(members) <= MAX_MEMBERS:
            raise ValueError(f"{len(members)} members, some of one name or more than {MAX_MEMBERS}")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its members are compressed")  # to any size; and PyTorch maps them as they lie
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its members claim more than the file holds")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} doesn't have its checksum")
        for member in members:
            if member.filename.lower().endswith(".pkl"):
                if member.file_size > MAX_PICKLE:
                    raise ValueError(f"{member.filename} is of {member.file_size} bytes")
                for operation, name, _ in pickletools.genops(archive.read(member)):
                    if operation.name == "GLOBAL" and not PLAIN.fullmatch(str(name)):
                        raise ValueError(f"{member.filename} asks for {name!r}")


def _build(
    path: Path,
    *,
    architecture: str,
    name: str,
    hidden: list[int],
    tensors: dict[str, Tensor],
    vocabulary: _vocabulary.Vocabulary,
    n_spots: int,
    card: dict[str, Any],
    gene_mean: list[float] | None = None,
    reference: dict[str, Any] | None = None,
) -> Model:
    """Put tensors into the network, after checking every name, shape and value."""
    for key, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{path}: {key} holds {tensor.dtype}, not the floating-point numbers of weights.")
    # A header that asks for any number of layers of any width is found out before they are made.
    if len(hidden) > len(tensors) or not {*hidden} <= {n for tensor in tensors.values() for n in tensor.shape if n}:
        raise ValueError(f"{path}: hidden={hidden!r:.80} doesn't fit the shapes of its tensors.")
    try:
        with torch.device("meta"):  # without allocating weights, which load_state_dict brings
            network = ARCHITECTURES[architecture](len(vocabulary), hidden)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if gene_mean is not None and len(gene_mean) != len(vocabulary):
        raise ValueError(f"{path}: gene_mean names {len(gene_mean)} genes, the vocabulary {len(vocabulary)}.")
    known = None
    if reference is not None:
        arrays = {
            key.removeprefix(REFERENCE): tensors.pop(key).to(torch.float32).numpy()
            for key in [*tensors]
            if key.startswith(REFERENCE)
        }
        try:
            known = _reference.from_file(reference, arrays, len(vocabulary))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"{path} lacks {missing}.")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"{path} holds tensors that the network doesn't have: {extra}.")
    for key, shape in expected.items():
        if tuple(tensors[key].shape) != shape:
            raise ValueError(f"{path}: {key} has shape {tuple(tensors[key].shape)}, expected {shape}.")
    # A copy, so that nothing stays mapped to the file. The weights of one input gene are laid side by side,
    # for picking genes; those of an output gene are already.
    state = {key: tensors[key].detach().to(torch.float32, copy=True) for key in expected}
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {key} holds values that are not finite.")
        if tensor.ndim == 2 and tensor.shape[1] == len(vocabulary):
            state[key] = tensor.T.contiguous().T
    network.load_state_dict(state, assign=True)
    network.requires_grad_(False).eval()
    return Model(
        name=name,
        network=network,
        vocabulary=vocabulary,
        n_spots=n_spots,
        card=card,
        gene_mean=None if gene_mean is None else np.asarray(gene_mean, dtype=np.float32),
        reference=known,
    )
