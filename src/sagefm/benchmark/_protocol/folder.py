"""The folder of a run: what is done so far, and what it was done with."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

import sagefm
from sagefm._io.files import atomic, remove
from sagefm._settings import logger
from sagefm.benchmark._protocol.config import Config

RECORD, REPORT = "protocol.json", "report.html"
NAMES = (
    *("representation", "target", "part", "sample", "other", "kind", "other_kind", "kind_of"),
    *("cluster", "gene", "group", "classifier", "settings", "scale", "params"),
)


class Folder:
    """Pieces of tables and figures, each there once it is complete, and a record of settings, time and memory."""

    def __init__(self, config: Config, path: Path, overwrite: bool) -> None:
        self.config, self.path = config, path
        self.parts, self.figures = path / "parts", path / "figures"
        self.record: dict[str, Any] = {}
        fingerprint, record = self._fingerprint(), path / RECORD
        if record.exists():
            try:
                self.record = json.loads(record.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{record} is damaged ({error}). Choose another folder, or delete {path}.") from error
            if self.record.get("fingerprint") != fingerprint:
                if not overwrite:
                    raise FileExistsError(
                        f"{path} holds a run with other settings, files or another version. Choose another folder, "
                        "or pass overwrite=True (--overwrite) to start again."
                    )
                self.record = {}
        # Hidden ones are what a run leaves that is killed at its very start.
        elif path.exists() and any(not file.name.startswith(".") for file in path.iterdir()):
            raise FileExistsError(f"{path} exists and holds no run of this protocol. Choose another folder.")
        self._is_new = not self.record
        self.record |= {"fingerprint": fingerprint, "config": _portable(self.config)}
        self.record.setdefault("seconds", {})
        self.record.setdefault("figures", {})

    def open(self) -> None:
        """Make the folder, once settings and data have passed their checks."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self._is_new:
            for name in ("parts", "figures", "results", REPORT):
                remove(self.path / name)
        # Before anything else is there, and after what another record speaks of is gone: never one without the other.
        self.save()
        for part in (self.parts, self.figures, self.path / "results"):
            part.mkdir(exist_ok=True)

    def _fingerprint(self) -> str:
        paths = [Path(path) for path in self.config.sections]
        for entry in self.config.representations:
            if entry.model is not None and entry.model.endswith((".safetensors", ".pt")):
                pattern = glob.escape(entry.model).replace(glob.escape("{group}"), "*").replace("{group}", "*")
                paths += [Path(found) for found in sorted(glob.glob(pattern))]
        # A zarr is a folder, of which any file may have changed.
        within = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
        files = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in within if file.is_file()]
        config = {**_portable(self.config), "device": None, "title": None}
        text = json.dumps([config, files, sagefm.__version__], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self) -> None:
        """Write the record."""
        write(self.path / RECORD, json.dumps(self.record, indent=2, default=str) + "\n")

    def write_part(self, table: str, name: str, found: pd.DataFrame) -> None:
        """Write one piece of a table."""
        write(self.parts / f"{table}__{slug(name)}.csv", found.to_csv(index=False))

    def part(self, table: str, name: str, compute: Callable[[], pd.DataFrame]) -> None:
        """Compute one piece of a table, unless an earlier run has."""
        path = self.parts / f"{table}__{slug(name)}.csv"
        if path.exists():
            logger.info("%s of %s is there already.", table, name)
            return
        logger.info("%s of %s.", table, name)
        started = time.perf_counter()
        self.write_part(table, name, compute())
        self.took(path.stem, started)

    def figure(self, kind: str, name: str, draw: Callable[[Path], object]) -> None:
        """Draw one figure, unless an earlier run has."""
        path = self.figures / f"{kind}__{slug(name)}.png"
        if not path.exists():
            draw(path)
        self.record["figures"][path.name] = name
        self.save()

    def is_done(self, name: str) -> bool:
        """Whether all pieces and figures of a representation are there."""
        return (self.parts / f"done__{slug(name)}.csv").exists()

    def mark_done(self, name: str) -> None:
        """Nothing is left to do for a representation."""
        write(self.parts / f"done__{slug(name)}.csv", "")

    def took(self, what: str, started: float) -> None:
        """Record the seconds since ``started``."""
        self.record["seconds"][what] = round(time.perf_counter() - started, 1)
        self.save()

    def gather(self) -> dict[str, pd.DataFrame]:
        """Tables of all pieces, representations in the order of the settings."""
        tables: dict[str, pd.DataFrame] = {}
        for path in sorted(self.parts.glob("*.csv")):
            table = path.stem.partition("__")[0]
            if table != "done":
                # What is a name stays one, even if it is "NA" or "1".
                found = pd.read_csv(path, dtype=dict.fromkeys(NAMES, str), keep_default_na=False, na_values=[""])
                tables[table] = pd.concat([tables[table], found], ignore_index=True) if table in tables else found
        order = {entry.name: i for i, entry in enumerate(self.config.representations)}
        by_order: dict[str, Any] = {"key": lambda names: names.map(order), "kind": "stable", "ignore_index": True}
        return {name: table.sort_values("representation", **by_order) for name, table in tables.items()}

    def close(self, sections: list[dict[str, Any]], n_genes: int, seconds: float) -> None:
        """Record what the run was, once it is over."""
        memory = [_peak_memory(), self.record.get("machine", {}).get("peak_memory_gib")]
        peak = max((value for value in memory if value is not None), default=None)
        self.record |= {
            "sections": sections,
            "n_genes": n_genes,
            "versions": _versions(),
            "machine": {"system": platform.system(), "cpus": os.cpu_count(), "peak_memory_gib": peak},
            "seconds_last_run": round(seconds, 1),
            "seconds_parts": round(sum(self.record["seconds"].values()), 1),
        }
        self.save()


def _portable(config: Config) -> dict[str, Any]:
    """Settings with files by name, as they are the same on any machine."""
    found = asdict(config)
    found["sections"] = [Path(path).name for path in config.sections]
    for entry in found["representations"]:
        if entry["model"] is not None:
            entry["model"] = Path(entry["model"]).name
    return found


def slug(name: str) -> str:
    """A name as part of a file's: what any system takes, and no two names alike."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-.')[:60]}-{digest}"


def write(path: Path, text: str) -> None:
    """Complete or not at all."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _peak_memory() -> float | None:
    """Largest resident memory of this process so far, in GiB, where the system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**30 if platform.system() == "Darwin" else 2**20  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("sagefm", "anndata", "scanpy", "scikit-learn", "torch", "mofapy2", "numpy", "scipy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
