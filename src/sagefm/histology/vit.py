"""Vision transformers of histology: built by transformers, under the names that published checkpoints give weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sagefm.models import _containers
from sagefm.models._registry import ENCODER

if TYPE_CHECKING:
    from transformers import ViTModel

LEAST_TRANSFORMERS = (5, 9)  # the first with the names below
HEAD_WIDTH = 64  # of every published ViT
EPS = 1e-6  # of the layer norms of timm and of the published systems; transformers' default is another

PREFIX = re.compile(r"^((module|backbone|encoder|teacher)\.)+")
# Parts that pretraining leaves in a checkpoint and an encoder doesn't have.
LEFT_OUT = re.compile(r"^(head\.|mask(ed)?_(token|embed)$)")
# What transformers calls the parts; {} is the number of a layer, and "qkv" three parts there.
NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "blocks.{}.norm1": "layers.{}.layernorm_before",
    "blocks.{}.attn.qkv": "layers.{}.attention.qkv",
    "blocks.{}.attn.proj": "layers.{}.attention.o_proj",
    "blocks.{}.norm2": "layers.{}.layernorm_after",
    "blocks.{}.mlp.fc1": "layers.{}.mlp.fc1",
    "blocks.{}.mlp.fc2": "layers.{}.mlp.fc2",
}
QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Shape:
    """Of a ViT: ``size`` pixels a side, in patches of ``patch``; ``width`` numbers a token; ``depth`` layers."""

    size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12

    def __post_init__(self) -> None:
        if self.width % HEAD_WIDTH or self.size % self.patch or min(self.width, self.size, self.depth) < 1:
            raise ValueError(f"no ViT has {self}: the width is a multiple of {HEAD_WIDTH}, the size one of the patch.")


def build(shape: Shape, *, masked: bool = False) -> ViTModel:
    """Return a ViT of random weights; ``masked`` adds the token that stands for hidden patches in pretraining."""
    require_transformers()
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=shape.size,
        patch_size=shape.patch,
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.width // HEAD_WIDTH,
        intermediate_size=4 * shape.width,
        layer_norm_eps=EPS,
    )
    return ViTModel(config, add_pooling_layer=False, use_mask_token=masked)


def require_transformers() -> None:
    """Say how to get the library that ViTs need."""
    mend = "pip install -U transformers, or use model='texture', which needs nothing."
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"vision transformers need the package transformers. {mend}") from error
    if tuple(map(int, transformers.__version__.split(".")[:2])) < LEAST_TRANSFORMERS:
        raise ImportError(
            f"transformers {transformers.__version__} names the parts of a ViT differently; "
            f"{'.'.join(map(str, LEAST_TRANSFORMERS))} or later is needed. {mend}"
        )


def read(path: Path) -> tuple[ViTModel, dict[str, Any]]:
    """Read a ViT and its header from our safetensors, or from a checkpoint in the published layout.

    Raises
    ------
    ValueError
        If the file is damaged or no ViT, or if names, shapes or values are not a ViT's.
    """
    if path.suffix == ".safetensors":
        header, tensors = _containers.read_tensors(path, needs_digest=True)
        if header.get("architecture") != ENCODER:
            raise ValueError(
                f"{path} holds no vision transformer but {header.get('architecture')!r}: that is no histology encoder."
            )
    else:
        header, checkpoint = {}, _containers.read_archive(path)
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise ValueError(f"{path} is not a checkpoint of the published layout: it has no 'state_dict'.")
        tensors = _containers.check_named(path, checkpoint["state_dict"], "state_dict")
    _containers.check_floats(path, tensors)
    try:
        named = from_published(tensors)
        shape = _shape(named)
        with torch.device("meta"):  # without allocating weights, which load_state_dict brings
            network = build(shape)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} doesn't hold a vision transformer of the published layout: {error}.") from error
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    network.load_state_dict(_containers.fitted(path, named, shapes), assign=True)
    network.requires_grad_(False).eval()
    return network, header


def write(network: ViTModel, path: Path, header: dict[str, Any]) -> Path:
    """Write a ViT as safetensors, its weights named as in the published layout."""
    tensors = {name: tensor.detach().cpu().float() for name, tensor in to_published(network.state_dict()).items()}
    return _containers.write_tensors(path, {"architecture": ENCODER, **header}, tensors)


def from_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under transformers' names: ``qkv`` is three layers there."""
    named: dict[str, Tensor] = {}
    for published, tensor in tensors.items():
        name = PREFIX.sub("", published)
        if LEFT_OUT.match(name):
            continue
        name = _rename(name, NAMES)
        parts = {name: tensor}
        if ".qkv." in name:
            if tensor.ndim < 1 or len(tensor) % len(QKV):
                raise ValueError(f"{published!r} has shape {tuple(tensor.shape)}, not of three layers")
            parts = {name.replace("qkv", part): rows for part, rows in zip(QKV, tensor.chunk(len(QKV)), strict=True)}
        if named.keys() & parts:
            raise ValueError(f"{published!r} is there twice, under two prefixes")
        named |= parts
    return named


def to_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`from_published`."""
    published = {ours: name for name, ours in NAMES.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if f".{QKV[0]}." in name:
            parts = [tensors[name.replace(QKV[0], part)] for part in QKV]
            found[_rename(name.replace(QKV[0], "qkv"), published)] = torch.cat(parts)
        elif not any(f".{part}." in name for part in QKV):
            found[_rename(name, published)] = tensor.contiguous()
    return found


def _rename(name: str, names: dict[str, str]) -> str:
    """Name of a weight in the other layout."""
    if name in names:
        return names[name]
    stem, _, kind = name.rpartition(".")
    layer = re.search(r"\.(\d{1,3})\.", stem)
    number = layer[1] if layer else ""
    part = stem.replace(f".{number}.", ".{}.", 1) if layer else stem
    if part not in names:
        raise ValueError(f"{name!r} is no weight of a ViT")
    return f"{names[part].format(number)}.{kind}"


def _shape(named: dict[str, Tensor]) -> Shape:
    """What the weights' shapes say of the ViT."""
    projection, positions = named["embeddings.patch_embeddings.projection.weight"], named[NAMES["pos_embed"]]
    if projection.ndim != 4 or positions.ndim != 3:
        raise ValueError(f"pos_embed and patch_embed.proj have {positions.ndim} and {projection.ndim} dimensions")
    width, _, patch, _ = projection.shape
    side = round(max(positions.shape[1] - 1, 0) ** 0.5)
    depth = 1 + max((int(name.split(".")[1]) for name in named if name.startswith("layers.")), default=-1)
    if depth > len(named):  # a name that asks for any number of layers
        raise ValueError(f"blocks.{depth - 1} is there, but not all before it")
    return Shape(size=side * patch, patch=patch, width=width, depth=depth)
