"""Models by name: which there are, and where their files lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sagefm._settings import settings

if TYPE_CHECKING:
    import pandas as pd

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
        if self.package_path is not None or os.path.isfile(self.converted_path):
            return True
        is_there = os.path.isfile(self.download_path)
        # Without a digest to hold it to, whatever lies there is taken.
        return is_there and (not self.sha256 or os.path.getsize(self.download_path) == self.size)


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
    {'sage-fm-hest1k': 'gcn', 'sagefm-mini': 'sage', 'sagefm-nano': 'sage', 'spafoundation': 'vit'}
    """
    import pandas as pd

    columns = ["name", "architecture", "size_mb", "local", "licence", "description"]
    rows = [
        (entry.name, entry.architecture, round(entry.size / 1e6), entry.is_local, entry.licence, entry.description)
        for entry in registry().values()
    ]
    return pd.DataFrame(rows, columns=columns).set_index("name")
