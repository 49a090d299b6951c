"""Names that a namespace offers and another room holds, imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def attach(namespace: str, rooms: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a namespace.

    Parameters
    ----------
    namespace
        Name of the module whose names these are.
    rooms
        Module that holds each name.
    """

    def __getattr__(name: str) -> Any:
        if name not in rooms:
            raise AttributeError(f"module {namespace!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(rooms[name]), name)
        except ModuleNotFoundError as error:
            if error.name != "lightning":
                raise
            raise ModuleNotFoundError(f"{name} needs Lightning: pip install lightning.") from error

    return __getattr__
