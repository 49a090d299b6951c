"""Models by name: inside the package, or downloaded once into the cache by pooch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sagefm._io.download import download
from sagefm._io.download import notice as _notice
from sagefm._settings import logger, settings
from sagefm._utils import get_device
from sagefm.models._model import Model

if TYPE_CHECKING:
    import pandas as pd

OFFLINE = "sagefm-mini"
ENCODER = "vit"  # architecture of histology encoders, which load_encoder loads


@dataclass(frozen=True)
class Entry:
    """One model of ``registry.yaml``: ``sha256`` of ``package_file``, or of ``file`` at ``url``."""

    name: str
    description: str
    architecture: str
    licence: str
    package_file: str | None = None
    file: str = ""
    url: str = ""
    sha256: str = ""
    size: int = 0
    notice: str = ""

    @property
    def package_path(self) -> Path | None:
        """Where the package holds the weights, if it does."""
        return None if self.package_file is None else Path(str(files("sagefm.models") / "weights" / self.package_file))

    @property
    def download_path(self) -> Path:
        """Where the cache holds the file as its authors publish it."""
        return settings.cache_dir / self.file

    @property
    def converted_path(self) -> Path:
        """Where the cache holds the same weights as safetensors; the name binds it to its source."""
        return settings.cache_dir / f"{self.name}-{self.sha256[:12]}.safetensors"

    @property
    def is_local(self) -> bool:
        """Whether the model loads without a network."""
        # A folder that can't be looked into holds none, where Path.exists would raise.
        return self.package_path is not None or any(map(os.path.isfile, (self.converted_path, self.download_path)))


@cache
def registry() -> dict[str, Entry]:
    """Read ``registry.yaml``."""
    import yaml

    text = (files("sagefm.models") / "registry.yaml").read_text()
    return {name: Entry(name=name, **entry) for name, entry in yaml.safe_load(text).items()}


def available() -> pd.DataFrame:
    """List the models that :func:`load` knows by name, and the histology encoders of :func:`load_encoder`.

    Returns
    -------
    One row per model, indexed by name: ``architecture``, ``size_mb`` (of the download, 0 where the package
    holds the weights), ``local`` (loads without a network), ``licence`` and ``description``.

    Examples
    --------
    >>> import sagefm as sg
    >>> sg.models.available()["architecture"].to_dict()
    {'sage-fm-hest1k': 'gcn', 'sagefm-mini': 'sage', 'spafoundation': 'vit'}
    """
    import pandas as pd

    rows = {
        entry.name: {
            "architecture": entry.architecture,
            "size_mb": round(entry.size / 1e6),
            "local": entry.is_local,
            "licence": entry.licence,
            "description": entry.description,
        }
        for entry in registry().values()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def load(model: str | Path | Model, *, device: str = "cpu") -> Model:
    """Load a model by name or from a file.

    Parameters
    ----------
    model
        A name of :func:`available`, or the path of a ``.safetensors`` file that sagefm wrote, or of a
        ``.pt`` checkpoint in the published layout. A :class:`Model` is returned as it is, on ``device``.
    device
        Where the network lies: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``. The functions of
        ``sg.tl`` move it by themselves.

    Returns
    -------
    The model, in float32.

    Raises
    ------
    ValueError
        If the name is unknown, or the file is damaged or not a model of sagefm.
    FileNotFoundError
        If a path doesn't exist.
    RuntimeError
        If the weights can't be downloaded, or what came isn't the registered file.

    Examples
    --------
    >>> import sagefm as sg
    >>> sg.models.load("sagefm-mini")
    Model('sagefm-mini', sage 160-160, 7,042,876 parameters, 14,558 genes)
    """
    target = get_device(device)
    if not isinstance(model, Model):
        model = _load(model)
    if target.type != "cpu" or any(p.device.type != "cpu" for p in model.network.parameters()):
        model.network.to(target)
    return model


def _load(model: str | Path) -> Model:
    if not isinstance(model, str | Path):
        raise TypeError(f"model has to be a name, a path or a Model, got {type(model).__name__}.")
    entry = registry().get(str(model))
    if entry is not None and entry.architecture == ENCODER:
        raise ValueError(
            f"{entry.name} describes histology, not expression. Run sg.tl.histology_embed(adata, {entry.name!r})."
        )
    if entry is not None:
        return _load_entry(entry)
    path = Path(model).expanduser()
    if path.suffix not in (".safetensors", ".pt"):
        raise ValueError(
            f"unknown model {str(model)!r}: give one of {_names()}, or a path ending in .safetensors or .pt."
        )
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}.")
    from sagefm.models import _io

    return _io.read_published(path, path.stem) if path.suffix == ".pt" else _io.read_safetensors(path)


def _names() -> list[str]:
    return sorted(name for name, entry in registry().items() if entry.architecture != ENCODER)


def _load_entry(entry: Entry) -> Model:
    from sagefm.models import _io

    if entry.package_path is not None:
        if _sha256(entry.package_path) != entry.sha256:
            raise ValueError(f"{entry.package_path} is not the file that sagefm comes with. Install sagefm again.")
        return _io.read_safetensors(entry.package_path)
    if entry.notice:
        _notice(entry.notice)
    with suppress(ValueError, OSError):
        return _read_converted(entry)
    with _one_at_a_time(entry):
        try:
            return _read_converted(entry)  # by another process meanwhile
        except FileNotFoundError:
            pass
        except (ValueError, OSError) as error:
            logger.warning("%s Converting the download again.", error)
        return _convert(entry)


def _read_converted(entry: Entry) -> Model:
    """Read the converted file; a file without digest, or of another source, is none."""
    from sagefm.models import _io

    model = _io.read_safetensors(entry.converted_path, needs_digest=True)
    if model.card.get("sha256") != entry.sha256:
        raise ValueError(f"{entry.converted_path} is not {entry.name}.")
    return model


@contextmanager
def _one_at_a_time(entry: Entry) -> Iterator[None]:
    """Let processes that want the same model fetch it once; where the cache takes no lock, each does."""
    from filelock import FileLock, Timeout

    path = entry.converted_path
    lock = FileLock(path.with_name(f".{entry.name}.lock"))
    with suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.info("Waiting for another process, which fetches %s.", entry.name)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _convert(entry: Entry) -> Model:
    """Fetch the registered file, and keep it as safetensors."""
    from sagefm.models import _io

    source = _download(entry)
    card = {
        "licence": entry.licence,
        "description": entry.description,
        "source": entry.url,
        "sha256": entry.sha256,
    }
    model = _io.read_published(source, entry.name, card)
    try:
        if entry.converted_path.is_symlink():  # whose target may be anyone's
            entry.converted_path.unlink()
        model.save(entry.converted_path)
        logger.info("Converted %s to %s.", entry.name, entry.converted_path)
    except OSError as error:
        logger.warning("Could not write %s (%s); the checkpoint is read again next time.", entry.converted_path, error)
    return model


def _download(entry: Entry) -> Path:
    """Fetch the registered file into the cache, or check the one that lies there."""
    return download(
        entry.url,
        entry.download_path,
        sha256=entry.sha256,
        name=entry.name,
        instead=f", or use model={OFFLINE!r}, a small model that comes with the package",
    )


def _sha256(path: Path) -> str:
    import pooch

    return pooch.file_hash(str(path), alg="sha256")
