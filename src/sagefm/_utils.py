"""Small helpers that every room needs: arguments checked, names shortened, progress shown."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

from sagefm._settings import settings

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def get_device(device: str) -> torch.device:
    """Resolve ``"auto"`` to cuda, then mps, then cpu; check that a named device is there."""
    import torch

    if not isinstance(device, str) or device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"device {device!r} is none of 'auto', 'cpu', 'cuda', 'mps'.")
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not known to torch.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but torch finds no CUDA GPU here; use device='auto' or 'cpu'.")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r}, but torch finds no Apple GPU here; use device='auto' or 'cpu'.")
    return found


def check_key(name: str, key: object) -> None:
    """Refuse what can't name a slot: anything but text, nothing, or a name that h5ad and zarr can't store."""
    if not isinstance(key, str):
        raise TypeError(f"{name} has to be a string, got {key!r}.")
    if not key or "/" in key:
        raise ValueError(f"{name}={key!r} can't name a slot: it is empty or has a '/'.")


def check_whole(name: str, value: object, least: int) -> int:
    """Return a whole number, whatever integer type it has."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name}={value!r} has to be a whole number.")
    number = index(value)
    if number < least:
        raise ValueError(f"{name}={value!r} has to be at least {least}.")
    return number


def check_positive(name: str, value: Any) -> float:
    """Return a number above 0."""
    import numpy as np

    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}={value!r} has to be a number.")
    if not 0 < value < np.inf:
        raise ValueError(f"{name}={value!r} has to be above 0 and finite.")
    return float(value)


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in (choices := list(choices)):
        raise ValueError(f"{name}={value!r} is none of {', '.join(map(repr, choices))}.")


def progress(items: Iterable[T], desc: str, total: int | None = None, unit: str = "block") -> Iterable[T]:
    """Iterate with a progress bar that appears once the loop has taken a second."""
    return progress_bar(desc, total, unit, items)


def progress_bar(desc: str, total: int | None, unit: str, items: Iterable[Any] | None = None) -> Any:
    """Progress bar to be updated by hand; it appears once it is a second old."""
    from tqdm.auto import tqdm

    return tqdm(items, desc=desc, total=total, unit=unit, delay=1, leave=False, disable=not settings.progress_bars)


def shorten(names: Iterable[object], n: int = 5) -> str:
    """First few names for an error or log message: ``'A', 'B' and 7 more``."""
    listed = list(names)
    text = ", ".join(repr(str(name)) for name in listed[:n])
    return f"{text} and {len(listed) - n} more" if len(listed) > n else text
