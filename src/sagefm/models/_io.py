"""Weight files: our safetensors with a JSON header, and the layout of the published checkpoint."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sagefm.models import _gcn, _reference, _sage, _vocabulary
from sagefm.models._model import Model

ARCHITECTURES: dict[str, type[_gcn.GCN] | type[_sage.SAGE]] = {"gcn": _gcn.GCN, "sage": _sage.SAGE}
HEADER = "sagefm"
REFERENCE = "reference."
FORMAT = 1
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
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, partial, metadata={HEADER: json.dumps(header)})
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_safetensors(path: Path) -> Model:
    """Read a file that :func:`write_safetensors` wrote, float32 whatever it stores.

    Raises
    ------
    ValueError
        If the file is damaged, isn't sagefm's, is of an unknown architecture or format, or if names,
        shapes or values of its tensors are not the architecture's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # safe_open is a context, not a mapping: iterating it needs keys().
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}. Fetch or copy it again.") from error
    if HEADER not in metadata:
        raise ValueError(f"{path} has no sagefm header: it holds weights of something else.")
    header = json.loads(metadata[HEADER])
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is of format {header.get('format')!r}; this sagefm reads {FORMAT}. Update sagefm.")
    if header["architecture"] not in ARCHITECTURES:
        raise ValueError(f"{path}: unknown architecture {header['architecture']!r}. Update sagefm.")
    return _build(
        path,
        architecture=header["architecture"],
        name=header["name"],
        hidden=header["hidden"],
        tensors=tensors,
        vocabulary=_vocabulary.from_header(header["vocabulary"]),
        n_spots=header["n_spots"],
        card=header["card"],
        gene_mean=header.get("gene_mean"),
        reference=header.get("reference"),
    )


def read_published(path: Path, name: str, card: dict[str, Any] | None = None) -> Model:
    """Read a checkpoint in the layout of the published one; the optimizer's state is dropped.

    The file is unpickled with ``weights_only=True``: it can hold tensors and plain values, never code.

    Raises
    ------
    ValueError
        If the file is no such checkpoint, or if keys, shapes or values are not the published network's.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} can't be read as a PyTorch checkpoint of plain weights: {error}") from error
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of the published layout: it has no 'model_state_dict'.")
    if unknown := set(checkpoint) - PUBLISHED_KEYS:
        raise ValueError(f"{path} is not a checkpoint of the published layout: unknown keys {sorted(unknown)}.")
    tensors = checkpoint["model_state_dict"]
    keys = [f"conv{i}.lin.weight" for i in range(1, 6)]
    if not isinstance(tensors, dict) or any(not isinstance(tensors.get(key), Tensor) for key in keys):
        raise ValueError(f"{path} doesn't hold the five convolutions of the published network.")
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
        hidden=[tensors[key].shape[0] for key in keys],
        tensors=tensors,
        vocabulary=_vocabulary.hest1k(),
        n_spots=15,
        card={**(card or {}), "training": training},
    )


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
    with torch.device("meta"):  # without allocating weights, which load_state_dict brings
        network = ARCHITECTURES[architecture](len(vocabulary), hidden)
    if gene_mean is not None and len(gene_mean) != len(vocabulary):
        raise ValueError(f"{path}: gene_mean names {len(gene_mean)} genes, the vocabulary {len(vocabulary)}.")
    known = None
    if reference is not None:
        arrays = {key: tensors.pop(key).numpy() for key in [*tensors] if key.startswith(REFERENCE)}
        try:
            arrays = {key.removeprefix(REFERENCE): array for key, array in arrays.items()}
            known = _reference.from_file(reference, arrays, len(vocabulary))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"{path} lacks {missing}.")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"{path} holds tensors that the network doesn't have: {extra}.")
    for key, shape in expected.items():
        if tuple(tensors[key].shape) != shape:
            raise ValueError(f"{path}: {key} has shape {tuple(tensors[key].shape)}, expected {shape}.")
        if not torch.isfinite(tensors[key]).all():
            raise ValueError(f"{path}: {key} holds values that are not finite.")
    # A copy, so that nothing stays mapped to the file. The weights of one input gene are laid side by side,
    # for picking genes; those of an output gene are already.
    state = {key: tensors[key].to(torch.float32, copy=True) for key in expected}
    for key, tensor in state.items():
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
