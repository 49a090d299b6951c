"""A section from whatever it lies in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sagefm._anndata import get_anndata
from sagefm._io.files import explain
from sagefm._slides import is_visium
from sagefm.read._visium import visium

if TYPE_CHECKING:
    from anndata import AnnData


def read_section(path: Path, table_key: str = "table") -> AnnData:
    """Read an ``.h5ad``, an ``AnnData`` or the table of a ``SpatialData`` in zarr, or Space Ranger's output.

    Raises
    ------
    FileNotFoundError, PermissionError
        If there is nothing at this path, or it may not be read.
    ValueError
        If it can't be read.
    """
    import anndata

    if not path.exists():
        raise FileNotFoundError(f"no slide at {path}.")
    if is_visium(path):
        return visium(path)
    try:
        if path.suffix == ".h5ad":
            return anndata.read_h5ad(path)
        if not (path / "tables").is_dir():
            return anndata.read_zarr(path)
        import spatialdata

        sdata = spatialdata.read_zarr(path)
    except Exception as error:  # whatever the readers raise on a damaged file
        raise ValueError(f"{path} can't be read as an AnnData: {explain(error)}") from error
    return get_anndata(sdata, table_key)
