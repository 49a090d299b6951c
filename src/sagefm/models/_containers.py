"""Files of weights: safetensors with a JSON header and a digest, and PyTorch's archives, read without trusting them."""

from __future__ import annotations

import hashlib
import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sagefm._io.files import atomic

HEADER, DIGEST = "sagefm", "sha256"
FORMAT = 1
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# All that a pickle of plain weights names. Others that PyTorch deems harmless, such as bytearray, take any memory.
PLAIN = re.compile(
    r"collections (OrderedDict|Counter)|torch(\.storage)? \w+|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
# Those of published checkpoints have some hundred members and a pickle of some ten thousand bytes.
MAX_MEMBERS, MAX_PICKLE = 10_000, 2**20


def write_tensors(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write tensors under a header; the file takes its name only when it is complete."""
    text = json.dumps({"format": FORMAT, **header})
    with atomic(path) as partial:
        try:
            save_file(tensors, partial, metadata={HEADER: text, DIGEST: _digest(text, tensors)})
        except SafetensorError as error:
            raise OSError(f"could not write {path}: {error}") from error
    return path


def read_tensors(path: Path, *, needs_digest: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file that :func:`write_tensors` wrote; what the header's entries mean is unchecked.

    Without ``needs_digest``, files of earlier versions, which have no digest, are read too.
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
    return header, tensors


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    """Digest of all that a file holds, by which a bit lost on the way is an error and not another model."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_header(path: Path, text: str) -> dict[str, Any]:
    damaged = f"{path} has a damaged header, fetch or copy it again"
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{damaged}: {error}.") from error
    if not isinstance(header, dict):
        raise ValueError(f"{damaged}: it is not a mapping.")
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is of format {header.get('format')!r}; this sagefm reads {FORMAT}. Update sagefm.")
    return header


def read_archive(path: Path) -> Any:
    """What ``torch.save`` wrote, of tensors and plain values: code in it is never run.

    Raises
    ------
    ValueError
        If the file is anything else.
    """
    try:
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # of any type, where the file is hostile
        # What PyTorch says of a pickle is to read it without weights_only.
        reason = "" if isinstance(error, pickle.UnpicklingError) else f": {error}"
        raise ValueError(
            f"{path} can't be read as a PyTorch checkpoint of plain weights ({type(error).__name__}{reason}). Fetch or "
            "copy it again; write one of your own with torch.save, of tensors and numbers only."
        ) from error


def check_named(path: Path, tensors: Any, key: str) -> dict[str, Tensor]:
    """Return tensors by name, of no more values than the file holds."""
    if not isinstance(tensors, dict):
        raise ValueError(f"{path}: its {key} is not a mapping of names to tensors.")
    if wrong := [name for name, value in tensors.items() if not isinstance(name, str) or not isinstance(value, Tensor)]:
        raise ValueError(f"{path}: its {key} holds more than tensors by name: {wrong}.")
    # A tensor may repeat a single value, and then is of any size.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > path.stat().st_size:
        raise ValueError(f"{path} holds fewer values than its tensors claim.")
    return tensors


def check_floats(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that can't be weights."""
    for key, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{path}: {key} holds {tensor.dtype}, not the floating-point numbers of weights.")


def fitted(path: Path, tensors: dict[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Copies of the tensors in float32, after checking every name, shape and value against the network's shapes."""
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"{path} lacks {missing}.")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"{path} holds tensors that the network doesn't have: {extra}.")
    for key, shape in expected.items():
        if tuple(tensors[key].shape) != shape:
            raise ValueError(f"{path}: {key} has shape {tuple(tensors[key].shape)}, expected {shape}.")
    # A copy, so that nothing stays mapped to the file.
    state = {key: tensors[key].detach().to(torch.float32, copy=True) for key in expected}
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {key} holds values that are not finite.")
    return state


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
