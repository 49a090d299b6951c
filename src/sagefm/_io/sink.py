"""Where a tool's large results go while it computes them: memory, or an AnnData on disk."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm import _keys
from sagefm._io.files import abandon, clean, temporary
from sagefm._types import Floats32

if TYPE_CHECKING:
    import dask.array
    import zarr
    from anndata import AnnData

# Of a chunk on disk. Its rows are a power of two and at most a block's, so that whole chunks fill a block.
CHUNK_BYTES, CHUNK_ROWS = 2**24, 2048
IDENTITY = "sagefm-store"

Slot = tuple[str, str]


class Sink:
    """Memory, which needs nothing done; :class:`Store` has the same methods."""

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove what was begun and not completed."""

    def begin(self, adata: AnnData, connectivity_key: str) -> None:
        """Write what identifies the spots and genes."""

    def empty(self, slot: str, key: str, shape: tuple[int, int]) -> Any:
        """Array of float32, NaN at first, to be filled by rows."""
        return np.full(shape, np.nan, dtype=np.float32)

    def complete(self, written: Mapping[Slot, Any], stale: Iterable[Slot]) -> Mapping[Slot, Any]:
        """Add all other results, drop entries of an earlier call, and return what ``adata`` gets for each."""
        return written

    @property
    def name(self) -> str:
        """Where results went, for messages; empty for memory."""
        return ""


def open_sink(store: str | Path | None) -> Sink:
    """Memory, or a store of that name."""
    return Sink() if store is None else Store(store)


class Store(Sink):
    """An AnnData in zarr that is filled block by block, and has its name only once it is complete.

    It holds ``obs``, ``var``, coordinates and graph of the slide, and the results; not the counts.

    Parameters
    ----------
    path
        Folder to make.

    Raises
    ------
    ValueError
        If the name doesn't end in .zarr.
    FileNotFoundError
        If the folder to make it in isn't there.
    FileExistsError
        If there is something already.
    TypeError
        If it is no name.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | Path):
            raise TypeError(f"store={path!r} has to be the name of a folder.")
        self.path = Path(path).expanduser().absolute()
        if self.path.suffix != ".zarr":
            raise ValueError(f"store={str(path)!r} has to be the name of a folder that ends in .zarr.")
        if self.path.exists() or self.path.is_symlink():
            raise FileExistsError(f"{self.path} exists already; delete it or choose another store.")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"no folder {self.path.parent} to write into.")
        self._identity = uuid.uuid4().hex
        self._partial = temporary(self.path)  # a worker thought dead may still be writing its copy
        self._filled: set[Slot] = set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        abandon(self._partial)

    @property
    def name(self) -> str:
        return str(self.path)

    def begin(self, adata: AnnData, connectivity_key: str) -> None:
        import anndata
        import zarr

        clean(self.path)
        slide = anndata.AnnData(obs=adata.obs.copy(), var=adata.var.copy())
        if _keys.SPATIAL in adata.obsm:
            found = adata.obsm[_keys.SPATIAL]
            slide.obsm[_keys.SPATIAL] = np.asarray(found.toarray() if hasattr(found, "toarray") else found)
        with anndata.settings.override(zarr_write_format=3):
            slide.write_zarr(self._partial)
        self._tables = {"obs": slide.obs, "var": slide.var}
        self._root: zarr.Group = zarr.open_group(self._partial, mode="r+", use_consolidated=False)
        name = _keys.connectivities(connectivity_key).removesuffix("_connectivities")
        for slot, template in (("obsp", _keys.CONNECTIVITIES), ("obsp", _keys.DISTANCES), ("uns", _keys.NEIGHBORS)):
            if (key := template.format(name)) in (found := getattr(adata, slot)):
                self._write(slot, key, found[key])

    def empty(self, slot: str, key: str, shape: tuple[int, int]) -> zarr.Array[Any]:
        rows = min(CHUNK_ROWS, 2 ** max(0, int(np.log2(CHUNK_BYTES / (4 * shape[1])))))
        array = self._root[slot].create_array(  # type: ignore[union-attr]
            key, shape=shape, chunks=(min(rows, shape[0]), shape[1]), dtype="float32", fill_value=np.nan
        )
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0", IDENTITY: self._identity})
        self._filled.add((slot, key))
        return array

    def complete(self, written: Mapping[Slot, Any], stale: Iterable[Slot]) -> Mapping[Slot, Any]:
        import zarr
        from anndata.io import write_elem

        for slot, table in self._tables.items():
            columns = {key: value for (of, key), value in written.items() if of == slot}
            table = table.drop(columns=[key for of, key in stale if of == slot], errors="ignore")
            write_elem(self._root, slot, table.assign(**columns))
        for (slot, key), value in written.items():
            if slot not in self._tables and (slot, key) not in self._filled:
                self._write(slot, key, value)
        zarr.consolidate_metadata(self._root.store)
        self._partial.rename(self.path)
        return {**written, **{slot: self._read(*slot) for slot in self._filled}}

    def _write(self, slot: str, key: str, value: object) -> None:
        from anndata.io import write_elem

        write_elem(self._root[slot], key, dict(value) if isinstance(value, Mapping) else value)

    def _read(self, slot: str, key: str) -> dask.array.Array:
        """Array that was filled, to be read from disk when it is needed."""
        import dask.array
        import zarr

        component = f"{slot}/{key}"
        found = zarr.open_array(self.path, path=component, mode="r")
        reader = _Reader(self.path, component, self._identity, found.shape, found.dtype)
        return dask.array.from_array(reader, chunks=found.chunks, lock=False)


@dataclass(frozen=True)
class _Reader:
    """An array on disk that is still the one it was: zarr reads chunks of a folder that is gone as missing values."""

    path: Path
    component: str
    identity: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, item: Any) -> Floats32:
        import zarr

        try:
            array = zarr.open_array(self.path, path=self.component, mode="r")
        except FileNotFoundError:
            array = None
        if array is None or array.attrs.get(IDENTITY) != self.identity:
            raise FileNotFoundError(
                f"{self.path} no longer holds the {self.component} that was written there: it was moved, deleted or "
                "written over. Put it back, or compute it again."
            )
        return np.asarray(array[item])
