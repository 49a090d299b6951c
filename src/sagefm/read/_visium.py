"""Space Ranger's output, of all versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._settings import logger
from sagefm._slides import COUNTS, find_counts, section_name
from sagefm._utils import shorten

if TYPE_CHECKING:
    from anndata import AnnData

# Space Ranger 2 and later; 1; Visium HD.
POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
COLUMNS = [_keys.IN_TISSUE, _keys.ARRAY_ROW, _keys.ARRAY_COL, "pxl_row_in_fullres", "pxl_col_in_fullres"]


def visium(path: str | Path, *, bin_size: int = 8, filtered: bool = True, library_id: str | None = None) -> AnnData:
    """Read what Space Ranger wrote of a slide, versions 1 to 4, Visium and Visium HD.

    Parameters
    ----------
    path
        Folder ``outs``, the folder that holds it, or the file of counts (``.h5``) in it.
    bin_size
        Width of the bins in µm, of Visium HD: 2, 8, 16, or what Space Ranger was asked for.
    filtered
        Read the spots under tissue alone. Otherwise ``obs["in_tissue"]`` is 0 for the others.
    library_id
        Name of the slide in ``uns["spatial"]``. By default, the one in the file of counts, or else the folder's name.

    Returns
    -------
    Raw counts, with

    ``obs``
        ``in_tissue``, ``array_row``, ``array_col``.
    ``obsm["spatial"]``
        x and y of the spots in pixels of the full-resolution image, shape (spots, 2).
    ``uns["spatial"][library_id]``
        ``images`` (``hires`` and ``lowres``, as far as they are there), ``scalefactors`` and ``metadata``, as squidpy
        reads them.
    ``var``
        Symbols as the index, made unique; ``gene_ids`` are Ensembl ids.

    Raises
    ------
    FileNotFoundError
        If there are no counts or no positions of spots.
    ValueError
        If the counts are of other spots than the positions.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.read.visium("outs")  # doctest: +SKIP
    """
    folder, counts_path = _find_counts(Path(path).expanduser(), bin_size, COUNTS[0 if filtered else 1])
    adata = _read_counts(counts_path)
    positions = _read_positions(folder)
    if lacking := adata.obs_names.difference(positions.index).tolist():
        raise ValueError(
            f"{len(lacking)} of {adata.n_obs} spots in {counts_path} have no position in {folder / 'spatial'}: "
            f"{shorten(lacking)}. Are the two of one slide?"
        )
    positions = positions.loc[adata.obs_names]
    adata.obs[COLUMNS[:3]] = positions[COLUMNS[:3]].astype(int)
    adata.obsm[_keys.SPATIAL] = positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=float)
    found, metadata = _read_attributes(counts_path)
    name = library_id or found or section_name(folder)
    adata.uns[_keys.SPATIAL] = {name: {**_read_images(folder), "metadata": metadata}}
    logger.info("Read %d spots and %d genes of %r.", adata.n_obs, adata.n_vars, name)
    return adata


def _find_counts(path: Path, bin_size: int, name: str) -> tuple[Path, Path]:
    """Folder of a slide, and its counts."""
    if path.is_file():
        return path.parent, path
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}.")
    for folder in (path, path / "outs"):
        if (folder / "binned_outputs").is_dir():
            binned = folder / "binned_outputs" / f"square_{bin_size:03d}um"
            if not binned.is_dir():
                sizes = [part.name for part in sorted(binned.parent.glob("square_*um"))]
                raise FileNotFoundError(f"no bins of {bin_size} µm in {binned.parent}; it has {shorten(sizes)}.")
            folder = binned
        found = find_counts(folder, name)
        if len(found) > 1 and found[0].suffix == found[1].suffix:
            raise ValueError(
                f"{folder} holds counts of several slides: {shorten(f.name for f in found)}. Name the file."
            )
        if found:
            return folder, found[0]
    raise FileNotFoundError(f"no {name}.h5 and no folder {name} in {path}. Is it Space Ranger's outs folder?")


def _read_counts(path: Path) -> AnnData:
    """Counts of genes, by scanpy."""
    import warnings

    import scanpy as sc

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Variable names are not unique")
            adata = sc.read_10x_h5(path) if path.is_file() else sc.read_10x_mtx(path, make_unique=False)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} can't be read as 10x counts: {error}") from error
    adata.var_names_make_unique()
    adata.X = adata.X.tocsr()
    return adata


def _read_positions(folder: Path) -> pd.DataFrame:
    """Positions by barcode, from whichever file there is."""
    for file in (folder / "spatial" / name for name in POSITIONS):
        if not file.exists():
            continue
        if file.suffix == ".parquet":
            return pd.read_parquet(file).set_index("barcode")[COLUMNS]
        with file.open() as text:
            header = 0 if text.readline().startswith("barcode") else None
        return pd.read_csv(file, header=header, index_col=0).set_axis(COLUMNS, axis=1)
    raise FileNotFoundError(f"no {', '.join(POSITIONS)} in {folder / 'spatial'}, so where the spots lie isn't known.")


def _read_attributes(path: Path) -> tuple[str | None, dict[str, str]]:
    """Name of the library and what made the file, as far as the counts say."""
    import h5py

    if path.is_dir():
        return None, {}
    with h5py.File(path) as file:
        attributes: dict[str, Any] = dict(file.attrs)
    texts = {
        key: value.decode() if isinstance(value, bytes) else str(value)
        for key in ("chemistry_description", "software_version", "library_ids")
        for value in np.atleast_1d(attributes.get(key, []))[:1].tolist()
    }
    return texts.pop("library_ids", None), texts


def _read_images(folder: Path) -> dict[str, Any]:
    """Images and scale factors; a warning names those that are missing."""
    from PIL import Image

    spatial, missing, images = folder / "spatial", [], {}
    for size in ("hires", "lowres"):
        file = spatial / f"tissue_{size}_image.png"
        if file.exists():
            with Image.open(file) as image:
                images[size] = np.asarray(image)
        else:
            missing.append(file.name)
    factors, file = {}, spatial / "scalefactors_json.json"
    if file.exists():
        factors = json.loads(file.read_text())
    else:
        missing.append(file.name)
    if missing:
        logger.warning("%s lacks %s, so maps are drawn without.", spatial, " and ".join(missing))
    return {"images": images, _keys.SCALEFACTORS: factors}
