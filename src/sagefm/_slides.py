"""Slides: their files, and which spots of an object are of which slide."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._anndata import recorded_params
from sagefm._types import Bools, Floats, Ints, Strings
from sagefm._utils import check_key, shorten

if TYPE_CHECKING:
    from anndata import AnnData

SUFFIXES = (".h5ad", ".zarr")
COUNTS = ("filtered_feature_bc_matrix", "raw_feature_bc_matrix")  # files or folders of Space Ranger


def find_counts(folder: Path, name: str) -> list[Path]:
    """Space Ranger's counts of that name in a folder; repositories put the sample's name before the file's."""
    return [*sorted(folder.glob(f"*{name}.h5")), *(found for found in [folder / name] if found.is_dir())]


def is_visium(path: Path) -> bool:
    """Whether :func:`sagefm.read.visium` takes a path; one that may not be read is refused."""
    if path.exists() and not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise PermissionError(f"no permission to read {path}.")
    if path.is_file():
        return path.suffix == ".h5"
    folders = [folder for folder in (path, path / "outs") if folder.is_dir()]
    return any((folder / "binned_outputs").is_dir() or find_counts(folder, COUNTS[0]) for folder in folders)


def section_name(path: Path) -> str:
    """Name of a section by its file, or of Space Ranger's folder by the sample's."""
    if path.suffix in (*SUFFIXES, ".h5"):
        return path.stem
    return (path.parent if path.name == "outs" else path).absolute().name


def list_sections(folder: str | Path) -> list[Path]:
    """Files and folders of sections in a folder, by name; hidden ones are left out."""
    return [
        file
        for file in sorted(Path(folder).expanduser().iterdir())
        if not file.name.startswith(".") and (file.suffix in SUFFIXES or (file.is_dir() and is_visium(file)))
    ]


def find_sections(sections: str | Path | Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, Path]:
    """Files of sections by name.

    Raises
    ------
    FileNotFoundError
        If there are none.
    ValueError
        If two have one name, or a name can't be a file's.
    """
    single = isinstance(sections, str | Path) and is_visium(Path(sections).expanduser())
    listed = isinstance(sections, str | Path) and Path(sections).suffix not in SUFFIXES and not single
    if isinstance(sections, str | Path) and listed:
        files = list_sections(sections) if Path(sections).expanduser().is_dir() else []
        if not files:
            raise FileNotFoundError(f"no {' or '.join(SUFFIXES)} and no outs folder of Space Ranger in {sections}.")
        named = [(section_name(file), file) for file in files]
    elif isinstance(sections, Mapping):
        named = [(str(name), Path(file).expanduser()) for name, file in sections.items()]
    else:
        paths = [sections] if isinstance(sections, str | Path) else sections
        named = [(section_name(Path(file)), Path(file).expanduser()) for file in paths]
    if not named:
        raise ValueError("sections is empty.")
    if bad := [name for name, _ in named if not name or "/" in name or name.startswith(".")]:
        raise ValueError(f"a section's name is its result's file name, which {bad[0]!r} can't be.")
    if twice := repeated(name for name, _ in named):
        raise ValueError(f"several sections are named {shorten(twice)}. Pass them as a mapping by name.")
    # Of a folder that was listed, one that can't be read fails by itself.
    if absent := [file for _, file in named if not listed and not file.exists()]:
        raise FileNotFoundError(f"no section at {shorten(absent)}.")
    return {name: file.absolute() for name, file in named}


def repeated(names: Iterable[str]) -> list[str]:
    """Names that occur more than once, sorted."""
    found = list(names)
    return sorted({name for name in found if found.count(name) > 1})


@dataclass(frozen=True)
class Libraries:
    """The slide, or any other group, of every spot.

    Attributes
    ----------
    names
        Name of each library.
    codes
        Position in ``names`` of every spot's, shape (spots,).
    key
        Column of ``obs`` that they come from; None if all spots are of one library.
    """

    names: list[str]
    codes: Ints
    key: str | None = None

    @property
    def labels(self) -> Strings:
        """Name of every spot's library."""
        return np.asarray(self.names, dtype=str)[self.codes]

    def title(self, name: str) -> str:
        """A library in a message, such as ``slide 'a'``."""
        return name if self.key is None else f"{self.key} {name!r}"

    def __len__(self) -> int:
        return len(self.names)

    def rows(self) -> Iterator[tuple[str, Ints]]:
        """Name and row numbers of each library."""
        for code, name in enumerate(self.names):
            yield name, np.flatnonzero(self.codes == code)

    def members(self, spots: slice | Ints = slice(None)) -> Floats:
        """Indicator of some spots' libraries, shape (libraries, spots); ``members @ values`` sums by library."""
        return (self.codes[spots] == np.arange(len(self.names))[:, None]).astype(float)


def find_library_key(adata: AnnData, library_key: str | None, connectivity_key: str = _keys.GRAPH) -> str | None:
    """Return the user's ``library_key``, else that of the spatial graph; None if it was built without one."""
    if library_key is None:
        graph = connectivity_key.removesuffix("_connectivities")
        recorded = recorded_params(adata, _keys.NEIGHBORS.format(graph)).get("library_key")
        return None if recorded is None else str(recorded)
    return library_key


def split_libraries(
    adata: AnnData,
    library_key: str | None,
    *,
    name: str = "library_key",
    rows: Bools | None = None,
    single: str = "the slide",
) -> Libraries:
    """Library of every spot, sorted by name; all spots are of one, named ``single``, without a key.

    Parameters
    ----------
    adata
        Object with the column.
    library_key
        Column of ``obs``.
    name
        What the user calls this argument.
    rows
        Spots to look at; all by default.
    single
        Name of the only library.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If it is missing at some spots, or two of its values have one name.
    """
    import pandas as pd

    if library_key is None:
        return Libraries([single], np.zeros(adata.n_obs if rows is None else int(rows.sum()), dtype=np.int64))
    check_key(name, library_key)
    if library_key not in adata.obs:
        raise KeyError(f"{name}={library_key!r} not in adata.obs; it has {shorten(adata.obs.columns)}.")
    column = adata.obs[library_key]
    codes, values = pd.factorize(column if rows is None else column[rows], sort=True)
    if (codes < 0).any():
        raise ValueError(f"obs[{library_key!r}] is missing for {(codes < 0).sum()} spots.")
    names = [str(value) for value in values]
    if twice := repeated(names):
        raise ValueError(f"obs[{library_key!r}] has values of different types that are named {shorten(twice)}.")
    return Libraries(names, codes.astype(np.int64), library_key)


def find_libraries(adata: AnnData, library_key: str | None, connectivity_key: str = _keys.GRAPH) -> Libraries:
    """Slide of every spot by the user's ``library_key``, else by that of the spatial graph."""
    return split_libraries(adata, find_library_key(adata, library_key, connectivity_key))


def sample_spots(adata: AnnData, spots: Ints, n: int) -> Ints:
    """At most n of some spots (rows), drawn by name, so that their order doesn't matter; ascending."""
    by_name = spots[np.argsort(adata.obs_names[spots].to_numpy().astype(str), kind="stable")]
    return np.sort(by_name[np.random.default_rng(0).permutation(len(spots))[:n]])
