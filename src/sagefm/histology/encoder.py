"""Histology encoders: load by name or path."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm._io.download import download, notice
from sagefm._settings import logger
from sagefm._types import Array, Floats32
from sagefm._utils import get_device
from sagefm.models._registry import ENCODER, Entry, registry

if TYPE_CHECKING:
    import torch
    from transformers import ViTModel

SUFFIXES = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True, eq=False, repr=False)
class Encoder:
    """A vision transformer of histology, as :func:`load_encoder` returns it.

    Parameters
    ----------
    name
        Name of the encoder; results record it.
    network
        The ``ViTModel`` of transformers.
    card
        Where the weights come from.

    Examples
    --------
    >>> import sagefm as sg
    >>> from sagefm.models import Encoder
    >>> encoder = sg.models.load_encoder("vit.safetensors")  # doctest: +SKIP
    >>> encoder.size, encoder.width  # doctest: +SKIP
    (224, 768)
    """

    name: str
    network: ViTModel
    card: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Encoder({self.name!r}, {self.size} pixels, {self.width} features, {self.n_parameters:,} parameters)"

    @property
    def size(self) -> int:
        """Pixels of a patch, each way."""
        size: Any = self.network.config.image_size  # a pair in other ViTs
        return int(size)

    @property
    def width(self) -> int:
        """Features of a patch."""
        return int(self.network.config.hidden_size)

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def embed(self, patches: Array, device: str = "auto") -> Floats32:
        """Describe patches.

        Parameters
        ----------
        patches
            Pixels, shape (patches, size, size, 3).
        device
            ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.

        Returns
        -------
        The class token after the last norm, float32, shape (patches, width). Pixels are scaled to 0..1 and no
        further, as the published encoder was trained.
        """
        import torch

        target = get_device(device)
        network: torch.nn.Module = self.network
        network.to(target)
        with torch.inference_mode():
            found = network(scaled(torch.from_numpy(patches).to(target))).last_hidden_state[:, 0]
            return np.asarray(found.float().cpu().numpy())

    def save(self, path: str | Path) -> Path:
        """Write the encoder as safetensors, to be loaded by its path.

        Parameters
        ----------
        path
            File to write, ending in ``.safetensors``.

        Returns
        -------
        The path.
        """
        from sagefm.histology import vit as _vit

        path = Path(path).expanduser()
        if path.suffix != SUFFIXES[0]:
            raise ValueError(f"{path} has to end in {SUFFIXES[0]}.")
        return _vit.write(self.network, path, {"name": self.name, "card": self.card})


def scaled(patches: torch.Tensor) -> torch.Tensor:
    """Bytes of shape (n, rows, columns, 3) as 0..1 of shape (n, 3, rows, columns)."""
    return patches.permute(0, 3, 1, 2).float() / 255


def load_encoder(model: str | Path | Encoder) -> Encoder:
    """Load a histology encoder by name or from a file.

    Parameters
    ----------
    model
        ``"spafoundation"``, downloaded once (343 MB); or the path of a ``.safetensors`` file that sagefm wrote, or of
        a ``.pth`` or ``.pt`` checkpoint in the published layout. An :class:`Encoder` is returned as it is.

    Returns
    -------
    The encoder, in float32.

    Raises
    ------
    ImportError
        Without the package transformers (``pip install transformers``).
    ValueError
        If the name is unknown, or the file is damaged or no vision transformer.
    FileNotFoundError
        If a path doesn't exist.
    RuntimeError
        If the weights can't be downloaded, or aren't those that were received the first time.

    Notes
    -----
    The authors of SpaFoundation publish no digest of their file. The first one that is received is recorded beside it,
    and any other refused from then on.

    Examples
    --------
    >>> import sagefm as sg
    >>> sg.models.load_encoder("spafoundation")  # doctest: +SKIP
    Encoder('spafoundation', 224 pixels, 768 features, 85,798,656 parameters)
    """
    if isinstance(model, Encoder):
        return model
    if not isinstance(model, str | Path):
        raise TypeError(f"model has to be a name, a path or an Encoder, got {type(model).__name__}.")
    from sagefm.histology import vit as _vit

    _vit.require_transformers()
    known = {name: entry for name, entry in registry().items() if entry.architecture == ENCODER}
    if entry := known.get(str(model)):
        if entry.notice:
            notice(entry.notice)
        return Encoder(entry.name, _fetch(entry), {"licence": entry.licence, "source": entry.url})
    path = Path(model).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"unknown encoder {str(model)!r}: give 'texture', one of {sorted(known)}, or a path ending in "
            f"{' or '.join(SUFFIXES)}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"no encoder at {path}.")
    network, header = _vit.read(path)
    name, card = header.get("name", path.stem), header.get("card", {})
    return Encoder(str(name), network, card if isinstance(card, dict) else {})


def _fetch(entry: Entry) -> ViTModel:
    """Fetch a file whose digest nobody states: that of the first one that holds an encoder is recorded and held to."""
    import pooch

    from sagefm.histology import vit as _vit

    path = entry.download_path
    record = path.with_name(entry.file + ".sha256")
    expected = entry.sha256 or (record.read_text().strip() if record.is_file() else None)
    if expected is not None and not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise ValueError(f"{record} is damaged: it holds no sha256. Delete it and {path}, and try again.")
    new = not path.exists()
    instead = ", or use model='texture', which needs no weights"
    download(entry.url, path, sha256=expected, name=entry.name, instead=instead)
    try:
        network, _ = _vit.read(path)
    except ValueError:
        if new and expected is None:  # as the page of a proxy, which isn't to be held to
            path.unlink()
        raise
    if expected is None:
        digest = pooch.file_hash(str(path), alg="sha256")
        record.write_text(digest + "\n")
        logger.warning(
            "%s has sha256 %s. Its authors state none to compare it with; it is recorded in %s, and another file will "
            "be refused.",
            path.name,
            digest,
            record,
        )
    return network
