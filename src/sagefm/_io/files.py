"""Files and folders that have their name only once they are complete."""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DAY = 86_400


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name to write a file or a folder under, which then replaces what is at ``path``.

    The name says nothing of the format: it ends in ``.part``. It is removed if what is written stays incomplete; what
    processes that were killed have left there is removed before.

    Raises
    ------
    FileNotFoundError, PermissionError
        If the folder isn't there, or can't be written into.
    """
    path = Path(os.path.realpath(path))  # what a link points at is replaced, not the link
    check_writable(path)
    clean(path)
    partial, old = temporary(path), temporary(path)
    try:
        yield partial
        if path.exists() and (path.is_dir() or partial.is_dir()):  # which can't be replaced in one step
            path.rename(old)
            partial.rename(path)
        else:
            partial.replace(path)
    finally:
        if old.exists() and not path.exists():  # interrupted between the two
            old.rename(path)
        abandon(partial)
        delete(old)


def check_writable(path: Path) -> None:
    """Refuse a file whose folder isn't there or can't be written into."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} to write into.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write into {folder}.")


def explain(error: Exception) -> str:
    """Say what went wrong with a file; of an error of HDF5, which names its functions and flags, the reason alone."""
    text = str(error)
    if "unable to lock file" in text:
        return "another program has it open"
    if found := re.search(r"errno = (\d+), error message", text):
        return os.strerror(int(found[1])).lower()
    return text


def temporary(path: Path) -> Path:
    """Hidden name beside ``path`` that no other process, thread or call uses."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:6]}.part")


def clean(path: Path) -> None:
    """Remove temporaries of ``path`` whose process is gone; those of other machines once they are a day old."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(FileNotFoundError):  # it has just got its name
            if _is_left(left):
                delete(left)


def remove(path: Path) -> None:
    """Remove a file or folder in one step, so that no half of it is left under its name."""
    if path.exists() or path.is_symlink():
        gone = temporary(path)
        path.rename(gone)
        delete(gone)


def delete(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def abandon(partial: Path) -> None:
    """Remove what was begun, until it stays away: after Ctrl-C zarr's threads finish what they are writing."""
    for _ in range(50):
        if not partial.exists():
            return
        delete(partial)
        time.sleep(0.2)


def _is_left(partial: Path) -> bool:
    import psutil

    writer = re.fullmatch(r".*\.(\w+)-(\d+)-\w+\.part", partial.name)
    if writer and writer[1] == _machine():
        return not psutil.pid_exists(int(writer[2]))
    return time.time() - partial.stat().st_mtime > DAY


def _machine() -> str:
    """Where a number is one process's: a machine, or a container on it."""
    namespace = Path("/proc/self/ns/pid")
    number = namespace.stat().st_ino if namespace.exists() else 0
    return hashlib.sha256(f"{platform.node()} {number}".encode()).hexdigest()[:8]
