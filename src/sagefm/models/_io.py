"""Weight files of models: our safetensors, and the layout of the published checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagefm.models import _calibration, _containers, _vocabulary
from sagefm.models._architectures import ARCHITECTURES
from sagefm.models._calibration import PREFIX
from sagefm.models._model import Model, Weights
from sagefm.models._seen import KEY as TRAINED

# Entries of the published checkpoint: those that the model's card records, and all.
TRAINING_KEYS = ("epoch", "best_val_loss", "learning_rate", "weight_decay", "mask_percentage", "batch_size")
PUBLISHED_KEYS = {
    *("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "hidden_channels"),
    *TRAINING_KEYS,
}


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
    "calibration": ("a mapping", lambda value: isinstance(value, dict)),
}


def read_safetensors(path: Path, *, needs_digest: bool = False) -> Model:
    """Read a file that :meth:`Model.save` wrote, float32 whatever it stores.

    Without ``needs_digest``, files of earlier versions, which have no digest, are read too.

    Raises
    ------
    ValueError
        If the file is damaged, isn't sagefm's, is of an unknown architecture or format, or if names,
        shapes or values of its tensors are not the architecture's.
    """
    header, tensors = _containers.read_tensors(path, needs_digest=needs_digest)
    _check_header(path, header)
    with _naming(path):
        vocabulary = _vocabulary.from_header(header["vocabulary"])
    return _build(path, header, tensors, vocabulary)


def _check_header(path: Path, header: dict[str, Any]) -> None:
    """Refuse a header unless all entries are there and of their types."""
    damaged = f"{path} has a damaged header, fetch or copy it again"
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


def read_published(path: Path, name: str, card: dict[str, Any] | None = None) -> Model:
    """Read a checkpoint in the layout of the published one; the optimizer's state is dropped.

    The file is unpickled with ``weights_only=True``: it can hold tensors and plain values, never code.

    Raises
    ------
    ValueError
        If the file is no such checkpoint, or if keys, shapes or values are not the published network's.
    """
    checkpoint = _containers.read_archive(path)
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of the published layout: it has no 'model_state_dict'.")
    if unknown := set(checkpoint) - PUBLISHED_KEYS:
        raise ValueError(
            f"{path} is not a checkpoint of the published layout: unknown keys {sorted(map(str, unknown))}."
        )
    tensors = checkpoint["model_state_dict"]
    n_convs = sum(str(key).startswith("conv") for key in tensors) // 2 if isinstance(tensors, dict) else 0
    keys = [f"conv{i}.lin.weight" for i in range(1, n_convs + 1)]
    if not keys or any(key not in tensors for key in keys):
        raise ValueError(f"{path} doesn't hold the convolutions of a network like the published one.")
    _containers.check_named(path, tensors, "model_state_dict")
    training = {key: checkpoint[key] for key in TRAINING_KEYS if isinstance(checkpoint.get(key), int | float)}
    header = {
        "architecture": "gcn",
        "name": name,
        "hidden": [len(tensors[key]) if tensors[key].ndim else 0 for key in keys],
        "n_spots": 15,
        "card": {**(card or {}), "training": training},
    }
    return _build(path, header, tensors, _vocabulary.hest1k())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Begin errors with the file's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _build(path: Path, header: dict[str, Any], tensors: dict[str, Tensor], vocabulary: _vocabulary.Vocabulary) -> Model:
    """Make a model of what a file holds, after checking every name, shape and value."""
    trained = tensors.pop(TRAINED, None)
    if trained is not None and (trained.dtype != torch.int64 or trained.ndim != 1):
        raise ValueError(
            f"{path}: {TRAINED} holds {trained.dtype} of shape {tuple(trained.shape)}, not a list of hashes."
        )
    _containers.check_floats(path, tensors)
    hidden, gene_mean = header["hidden"], header.get("gene_mean")
    with _naming(path):
        # A header that asks for any number of layers is found out before the names of their weights are made.
        widths = {n for tensor in tensors.values() for n in tensor.shape if n}
        if len(hidden) > len(tensors) or not {*hidden} <= widths:
            raise ValueError(f"hidden={hidden!r:.80} doesn't fit the shapes of its tensors.")
        shapes = ARCHITECTURES[header["architecture"]].shapes(len(vocabulary), hidden)
        if gene_mean is not None and len(gene_mean) != len(vocabulary):
            raise ValueError(f"gene_mean names {len(gene_mean)} genes, the vocabulary {len(vocabulary)}.")
        calibration = None
        if "calibration" in header:
            arrays = {
                key.removeprefix(PREFIX): tensors.pop(key).to(torch.float32).numpy()
                for key in [*tensors]
                if key.startswith(PREFIX)
            }
            calibration = _calibration.from_file(header["calibration"], arrays, len(vocabulary))
    weights = _containers.fitted(path, tensors, shapes)
    # The weights of one input gene are laid side by side, for picking genes; those of an output gene are already.
    for key, tensor in weights.items():
        if tensor.ndim == 2 and tensor.shape[1] == len(vocabulary):
            weights[key] = tensor.T.contiguous().T
    return Model(
        name=header["name"],
        weights=Weights(header["architecture"], tuple(hidden), weights),
        vocabulary=vocabulary,
        n_spots=header["n_spots"],
        card=header["card"],
        gene_mean=None if gene_mean is None else np.asarray(gene_mean, dtype=np.float32),
        calibration=calibration,
        trained_spots=None if trained is None else trained.numpy().copy(),
    )
