"""Results that go to disk as they are made."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sagefm import _keys
from sagefm._io.files import abandon, clean, temporary
from sagefm.pp._graph import find_coordinates

if TYPE_CHECKING:
    import dask.array
    import pandas as pd
    import zarr
    from anndata import AnnData

# Of a chunk on disk; its rows are a power of two and no more than a block's, so that whole chunks fill a block.
CHUNK_BYTES, CHUNK_ROWS = 2**24, 2048
IDENTITY = "sagefm-store"


class Store:
    """An AnnData in zarr that is filled block by block, and has its name only once it is complete.

    It holds ``obs``, ``var``, coordinates and graph of the slide, and the results; not the counts. A context: what was
    begun is removed if it is left before :meth:`close`.

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

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        abandon(self._partial)

    def begin(self, adata: AnnData, connectivity_key: str) -> None:
        """Write what says which spots and genes these are."""
        import anndata
        import zarr

        clean(self.path)
        slide = anndata.AnnData(obs=adata.obs.copy(), var=adata.var.copy())
        if _keys.SPATIAL in adata.obsm:
            slide.obsm[_keys.SPATIAL] = find_coordinates(adata, _keys.SPATIAL, None)[0]
        with anndata.settings.override(zarr_write_format=3):
            slide.write_zarr(self._partial)
        self._root: zarr.Group = zarr.open_group(self._partial, mode="r+", use_consolidated=False)
        name = _keys.connectivities(connectivity_key).removesuffix("_connectivities")
        for slot, template in (("obsp", _keys.CONNECTIVITIES), ("obsp", _keys.DISTANCES), ("uns", _keys.NEIGHBORS)):
            if (key := template.format(name)) in (found := getattr(adata, slot)):
                self.write(slot, key, found[key])

    def empty(self, slot: str, key: str, shape: tuple[int, int]) -> zarr.Array[Any]:
        """Array of float32 to be filled by rows."""
        rows = min(CHUNK_ROWS, 2 ** max(0, int(np.log2(CHUNK_BYTES / (4 * shape[1])))))
        array = self._root[slot].create_array(  # type: ignore[union-attr]
            key, shape=shape, chunks=(min(rows, shape[0]), shape[1]), dtype="float32", fill_value=np.nan
        )
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0", IDENTITY: self._identity})
        return array

    def write(self, slot: str, key: str, value: object) -> None:
        """Write anything that an AnnData may hold there."""
        from anndata.io import write_elem

        write_elem(self._root[slot], key, dict(value) if isinstance(value, Mapping) else value)

    def write_genes(self, var: pd.DataFrame, report: Mapping[str, Any]) -> None:
        """Write which genes the columns are, as an alignment does, and what else is known of them."""
        from anndata.io import write_elem

        write_elem(self._root, "var", var)
        self.write("uns", _keys.GENES, report)

    def close(self) -> None:
        """Give it its name."""
        import zarr

        zarr.consolidate_metadata(self._root.store)
        self._partial.rename(self.path)

    def read(self, slot: str, key: str) -> dask.array.Array:
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

    def __getitem__(self, item: Any) -> NDArray[np.float32]:
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
