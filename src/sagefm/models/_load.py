"""Models from files: inside the package, the user's own, or downloaded once into the cache."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sagefm._io.download import download, notice
from sagefm._io.files import atomic
from sagefm._settings import logger
from sagefm._utils import get_device
from sagefm.models._io import read_published, read_safetensors
from sagefm.models._model import Model
from sagefm.models._registry import ENCODER, Entry, registry

if TYPE_CHECKING:
    import torch

# What else to do where the download fails; the command line says the same in its own words.
INSTEAD = """ (sg.models.install("FILE") checks it and puts it there)
  Without it: model="sagefm-mini", a small model that comes with the package"""
# Files that were written less than a second ago may change again without another time stamp.
SETTLED = 1_000_000_000  # nanoseconds


def load(model: str | Path | Model, *, device: str = "cpu") -> Model:
    """Load a model by name or from a file.

    Parameters
    ----------
    model
        A name of :func:`available`, or the path of a ``.safetensors`` file that sagefm wrote, or of a
        ``.pt`` checkpoint in the published layout. A :class:`Model` is returned as it is, unless it lies elsewhere
        than on ``device``.
    device
        Device of the weights: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``. The functions of ``sg.tl`` move the
        weights themselves.

    Returns
    -------
    The model, in float32. A file is read once a process, and again when it has changed.

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
    Model('sagefm-mini', sage 160-160, 7,057,434 parameters, 14,558 genes)
    """
    target = get_device(device)
    if not isinstance(model, Model):
        model = _load(model)
    return _move(model, target)


def install(file: str | Path) -> str:
    """Check a file of weights that was fetched by hand, and copy it to where :func:`load` looks for it.

    Parameters
    ----------
    file
        File of a model in :func:`available`, as its authors publish it, under any name.

    Returns
    -------
    Name of the model, for :func:`load`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If its SHA-256 is that of no model.

    Examples
    --------
    >>> import sagefm as sg
    >>> sg.models.install("weights.pt")  # doctest: +SKIP
    'sage-fm-hest1k'
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}.")
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    known = {entry.sha256: entry for entry in registry().values() if entry.url and entry.sha256}
    if found not in known:
        asked = "; ".join(f"{entry.name} has {digest}, {entry.size / 1e6:.0f} MB" for digest, entry in known.items())
        raise ValueError(
            f"{path} ({path.stat().st_size / 1e6:.1f} MB, SHA-256 {found}) is no model that sagefm knows: {asked}. "
            "Was the download complete?"
        )
    entry = known[found]
    target = entry.download_path
    if not (target.exists() and target.samefile(path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as partial:
            shutil.copyfile(path, partial)
    logger.info("Installed %s at %s.", entry.name, target)
    return entry.name


def _move(model: Model, device: torch.device) -> Model:
    """Return the model itself if it is there, else a copy."""
    places = {tensor.device for tensor in model.weights.state_dict().values()}
    if all(place.type == device.type and device.index in (None, place.index) for place in places):
        return model
    return replace(model, weights=deepcopy(model.weights).to(device))


def _load(model: str | Path) -> Model:
    if not isinstance(model, str | Path):
        raise TypeError(f"model has to be a name, a path or a Model, got {type(model).__name__}.")
    entry = registry().get(str(model))
    if entry is not None and entry.architecture == ENCODER:
        raise ValueError(
            f"{entry.name} describes histology, not expression. Run sg.tl.histology_embed(adata, {entry.name!r})."
        )
    if entry is not None:
        return _read(entry.package_path, entry) if entry.package_path is not None else _fetch(entry)
    path = Path(model).expanduser().absolute()
    if path.suffix not in (".safetensors", ".pt"):
        names = sorted(name for name, entry in registry().items() if entry.architecture != ENCODER)
        raise ValueError(f"unknown model {str(model)!r}: give one of {names}, or a path ending in .safetensors or .pt.")
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}.")
    return _read(path)


def _read(path: Path, entry: Entry | None = None) -> Model:
    """Read a file, unless it was read before: such models share their weights, which nothing changes."""
    stat = path.stat()
    settled = time.time_ns() - stat.st_mtime_ns > SETTLED
    read = _read_file if settled else _read_file.__wrapped__
    model = read(path, entry, stat.st_size, stat.st_mtime_ns)
    return replace(
        model,
        card=deepcopy(model.card),
        gene_mean=deepcopy(model.gene_mean),
        calibration=deepcopy(model.calibration),
    )


@lru_cache(maxsize=4)
def _read_file(path: Path, entry: Entry | None, size: int, mtime_ns: int) -> Model:
    """Read a file of this size and time; of an entry's it is checked whether it is that entry."""
    if entry is None:
        return read_published(path, path.stem) if path.suffix == ".pt" else read_safetensors(path)
    if entry.package_path is not None:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise ValueError(f"{path} is not the file that sagefm comes with. Install sagefm again.")
        return read_safetensors(path)
    model = read_safetensors(path, needs_digest=True)
    if model.card.get("sha256") != entry.sha256:
        raise ValueError(f"{path} is not {entry.name}.")
    return model


def _fetch(entry: Entry) -> Model:
    """Read the converted file from the cache, or fetch and convert what the authors publish."""
    if entry.notice:
        notice(entry.notice)
    with suppress(ValueError, OSError):
        return _read(entry.converted_path, entry)
    with _one_at_a_time(entry):
        try:
            return _read(entry.converted_path, entry)  # by another process meanwhile
        except FileNotFoundError:
            pass
        except (ValueError, OSError) as error:
            logger.warning("%s Converting the download again.", error)
        return _convert(entry)


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
    source = download(
        entry.url,
        entry.download_path,
        sha256=entry.sha256,
        name=entry.name,
        size=entry.size,
        instead=INSTEAD,
    )
    card = {
        "licence": entry.licence,
        "description": entry.description,
        "source": entry.url,
        "sha256": entry.sha256,
    }
    model = read_published(source, entry.name, card)
    try:
        if entry.converted_path.is_symlink():  # whose target may be anyone's
            entry.converted_path.unlink()
        model.save(entry.converted_path)
        logger.info("Converted %s to %s.", entry.name, entry.converted_path)
    except OSError as error:
        logger.warning("Could not write %s (%s); the checkpoint is read again next time.", entry.converted_path, error)
    return model
