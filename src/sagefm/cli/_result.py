"""What a command has to say, as text or as one JSON object."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """Outcome of a command.

    Attributes
    ----------
    text
        For people, printed as it is.
    written
        Files and folders.
    facts
        For programs: verdicts and figures.
    """

    text: str = ""
    written: tuple[Path, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, **more: Any) -> str:
        """All but the text, as one object."""
        return json.dumps({**more, "written": self.written, **self.facts}, default=_plain)


class Warnings(logging.Handler):
    """Keeps the warnings that the library logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.texts.append(record.getMessage())


def _plain(value: Any) -> Any:
    """Numbers and names of numpy and pandas as Python's."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
