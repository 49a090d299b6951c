"""One logger and one place for what a user may set for the whole session."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

logger = logging.getLogger("sagefm")


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever ``sys.stderr`` is now: notebooks and tests replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


if not logger.handlers:
    _handler = _StderrHandler()
    _handler.setFormatter(logging.Formatter("sagefm: %(message)s"))
    logger.addHandler(_handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


ROWS_AT_A_TIME = 2_048
"""Spots whose counts are read at a time; no result depends on it."""


class Settings:
    """Session-wide settings, available as ``sg.settings``."""

    def __init__(self) -> None:
        self._cache_dir: Path | None = None
        self.progress_bars: bool = True
        """Show a progress bar on anything that takes over a second."""
        self._memory_limit = 1.0

    @property
    def cache_dir(self) -> Path:
        """Folder of downloaded weights: as set here, else ``$SAGEFM_CACHE``, else the OS cache folder."""
        if self._cache_dir is not None:
            return self._cache_dir
        if path := os.environ.get("SAGEFM_CACHE"):
            return Path(path).expanduser()
        import pooch

        return Path(pooch.os_cache("sagefm"))

    @cache_dir.setter
    def cache_dir(self, path: str | Path | None) -> None:
        self._cache_dir = None if path is None else Path(path).expanduser()

    @property
    def memory_limit(self) -> float:
        """GB that the intermediate arrays of one call may take; beyond it they go to a temporary file (``TMPDIR``)."""
        return self._memory_limit

    @memory_limit.setter
    def memory_limit(self, gigabytes: float) -> None:
        if isinstance(gigabytes, bool) or not isinstance(gigabytes, int | float):
            raise TypeError(f"memory_limit={gigabytes!r} has to be a number of GB.")
        if not gigabytes >= 0:
            raise ValueError(f"memory_limit={gigabytes!r} has to be at least 0.")
        self._memory_limit = float(gigabytes)

    @property
    def verbosity(self) -> str:
        """Level of the ``sagefm`` logger: ``"DEBUG"``, ``"INFO"`` (default), ``"WARNING"`` or ``"ERROR"``."""
        return logging.getLevelName(logger.level)

    @verbosity.setter
    def verbosity(self, level: str) -> None:
        logger.setLevel(level.upper())

    def __repr__(self) -> str:
        return (
            f"Settings(cache_dir={str(self.cache_dir)!r}, verbosity={self.verbosity!r}, "
            f"progress_bars={self.progress_bars}, memory_limit={self.memory_limit})"
        )


settings = Settings()
