"""Results that go to disk as they are made."""

from __future__ import annotations

import glob
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm import _keys

if TYPE_CHECKING:
    import dask.array
    import zarr
    from anndata import AnnData

# Of a chunk on disk; its rows are a power of two, so that whole chunks fill a block of rows.
CHUNK_BYTES = 2**24


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
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        if self.path.suffix != ".zarr":
            raise ValueError(f"store={str(path)!r} has to be the name of a folder that ends in .zarr.")
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists already; delete it or choose another store.")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"no folder {self.path.parent} to write into.")
        # A name of its own: a worker thought dead may still be writing its copy.
        self._partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.part")

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)

    def begin(self, adata: AnnData, connectivity_key: str) -> None:
        """Write what says which spots and genes these are."""
        import anndata
        import zarr

        for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.part"):  # by runs that were killed
            shutil.rmtree(left, ignore_errors=True)
        slide = anndata.AnnData(obs=adata.obs.copy(), var=adata.var.copy())
        if _keys.SPATIAL in adata.obsm:
            slide.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL])
        with anndata.settings.override(zarr_write_format=3):
            slide.write_zarr(self._partial)
        self._root: zarr.Group = zarr.open_group(self._partial, mode="r+", use_consolidated=False)
        name = _keys.connectivities(connectivity_key).removesuffix("_connectivities")
        for slot, template in (("obsp", _keys.CONNECTIVITIES), ("obsp", _keys.DISTANCES), ("uns", _keys.NEIGHBORS)):
            if (key := template.format(name)) in (found := getattr(adata, slot)):
                self.write(slot, key, found[key])

    def empty(self, slot: str, key: str, shape: tuple[int, int]) -> zarr.Array[Any]:
        """Array of float32 to be filled by rows."""
        rows = 2 ** max(0, int(np.log2(CHUNK_BYTES / (4 * shape[1]))))
        array = self._root[slot].create_array(  # type: ignore[union-attr]
            key, shape=shape, chunks=(min(rows, shape[0]), shape[1]), dtype="float32", fill_value=np.nan
        )
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return array

    def write(self, slot: str, key: str, value: object) -> None:
        """Write anything that an AnnData may hold there."""
        from anndata.io import write_elem

        write_elem(self._root[slot], key, dict(value) if isinstance(value, Mapping) else value)

    def close(self) -> None:
        """Give it its name."""
        import zarr

        zarr.consolidate_metadata(self._root.store)
        self._partial.rename(self.path)

    def read(self, slot: str, key: str) -> dask.array.Array:
        """Array that was filled, to be read from disk when it is needed."""
        import dask.array

        return dask.array.from_zarr(str(self.path), component=f"{slot}/{key}")
