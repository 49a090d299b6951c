"""The folder of a run: its results, what they were made from and with, and a lock while they are made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from sagefm import _keys
from sagefm._io.files import atomic, delete, remove
from sagefm._settings import logger
from sagefm._slides import SUFFIXES
from sagefm._utils import shorten

if TYPE_CHECKING:
    import pandas as pd

RECORD, TABLE, LOCK = "sections.json", "sections.csv", ".lock"
EMBEDDED, KEPT, FAILED = "embedded", "kept", "failed"


@dataclass(frozen=True)
class Result:
    """What came of a section."""

    n_spots: int
    seconds: float
    error: str = ""


class Folder:
    """Results of sections, open while a run writes to it.

    Raises
    ------
    FileExistsError
        If the folder holds something else, results with other settings, or a run that is going on.
    ValueError
        If a section lies in it, or its name is a section's.
    """

    def __init__(self, path: Path, files: Mapping[str, Path], made_with: dict[str, Any], overwrite: bool) -> None:
        self.path = path
        if path.suffix in SUFFIXES:
            raise ValueError(
                f"out={str(path)!r} is to be a folder of results; {path.suffix} is what a section ends in."
            )
        if inside := [str(file) for file in files.values() if file.resolve().is_relative_to(path.resolve())]:
            raise ValueError(f"{shorten(inside)} lies in {path}, where results go. Choose another folder.")
        record, self._lock = path / RECORD, FileLock(path / LOCK)
        self._record: dict[str, Any] = {"settings": made_with, "sections": {}}
        self._replaced: list[str] = []
        if record.exists():
            try:
                found = json.loads(record.read_text(encoding="utf-8"))
                changed, known = found["settings"] != made_with, list(found["sections"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{record} is damaged ({error}). Choose another folder, or delete {path}.") from error
            if changed and not overwrite:
                raise FileExistsError(
                    f"{path} holds embeddings by another model or with other settings. Choose another folder, or pass "
                    "overwrite=True (--overwrite) to start again."
                )
            if changed:
                self._replaced = known
            else:
                self._record = found
        # Hidden ones are what a run leaves that is killed at its very start.
        elif path.exists() and (not path.is_dir() or any(not file.name.startswith(".") for file in path.iterdir())):
            raise FileExistsError(f"{path} exists and holds no embedded sections. Choose another folder.")
        known_here = {*self._replaced, *self._record["sections"]}
        for name in files:
            target = path / f"{name}.zarr"
            if name not in known_here and target.exists() and not _is_ours(target):
                raise FileExistsError(f"{target} exists and holds no embedding. Choose another folder, or move it.")

    def __enter__(self) -> Folder:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)  # let go of by the system, should this process be killed
        except Timeout:
            raise FileExistsError(f"a run is going on in {self.path}. Wait for it.") from None
        self._clean()
        for name in self._replaced:
            remove(self.path / f"{name}.zarr")
        self._save()
        return self

    def __exit__(self, *_: object) -> None:
        self._clean()
        self._lock.release()

    def _clean(self) -> None:
        """Remove what runs and workers that were killed had begun."""
        for left in self.path.glob(".*.part"):
            delete(left)

    def has(self, name: str, stamp: list[int]) -> bool:
        """Whether a section is done, from the file as it is now."""
        known = self._record["sections"].get(name, {})
        return not known.get("error", True) and (self.path / f"{name}.zarr").is_dir() and known["source"] == stamp

    def add(self, name: str, stamp: list[int], result: Result) -> None:
        """Record a section."""
        self._record["sections"][name] = {**asdict(result), "source": stamp}
        self._save()
        if result.error:
            logger.error("%s: %s", name, result.error)

    def table(self, names: Sequence[str], done: Sequence[str]) -> pd.DataFrame:
        """One row a section; of all sections that the folder has, also written there."""
        import pandas as pd

        rows = []
        for name, known in sorted(self._record["sections"].items()):
            status = FAILED if known["error"] else EMBEDDED if name in done else KEPT
            path = "" if known["error"] else str(self.path / f"{name}.zarr")
            row = {"section": name, "status": status, "n_spots": known["n_spots"], "seconds": known["seconds"]}
            rows.append(row | {"error": known["error"], "path": path})
        table = pd.DataFrame(rows).set_index("section")
        with atomic(self.path / TABLE) as partial:
            table.drop(columns="path").to_csv(partial)
        return table.loc[list(names)]

    def _save(self) -> None:
        with atomic(self.path / RECORD) as partial:
            partial.write_text(json.dumps(self._record, indent=1), encoding="utf-8")


def _is_ours(target: Path) -> bool:
    """Whether a folder is a result, perhaps of a run that was killed before it was recorded."""
    import zarr

    try:
        function = zarr.open_group(target, mode="r")[f"uns/{_keys.EMBEDDING}/params/function"]
    except (KeyError, OSError, ValueError):
        return False
    return str(np.asarray(function)) == "tl.sage_embed"


def stamp(source: Path) -> list[int]:
    """Size and time of a file, or of all files of a zarr."""
    files = [source] if source.is_file() else sorted(file for file in source.rglob("*") if file.is_file())
    stats = [file.stat() for file in files]
    return [sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)]
