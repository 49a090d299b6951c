"""What the published data sets share: where files go, GEO's files, 10x Visium files as AnnData."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter
from zlib import error as ZlibError

import numpy as np

from sagefm import _keys
from sagefm._io.download import download
from sagefm._settings import settings
from sagefm._utils import shorten

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

GEO = "https://ftp.ncbi.nlm.nih.gov/geo/samples"
MATRIX = "filtered_feature_bc_matrix.h5"
POSITIONS = "tissue_positions_list.csv"
# Of Space Ranger's positions; older versions write them without a header.
COLUMNS = ["barcode", _keys.IN_TISSUE, _keys.ARRAY_ROW, _keys.ARRAY_COL, "pxl_row_in_fullres", "pxl_col_in_fullres"]
# What readers raise at files that are cut short, or are something else (a log-in page, say).
UNREADABLE = (OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, ZlibError)


def folder_of(name: str, folder: str | Path | None) -> Path:
    """Where a data set's files lie: the folder as given, else one in the cache, beside the weights."""
    return settings.cache_dir / name if folder is None else Path(folder).expanduser()


def unreadable(path: Path, expected: str, error: object) -> ValueError:
    """Error for a file that isn't what it should be."""
    return ValueError(
        f"{path} is not {expected} ({error}). Delete it and call again to fetch it anew; if the same comes, its layout "
        "isn't the one that sagefm knows."
    )


def fetch(base_url: str, folder: Path, file: str, sha256: Mapping[str, str] | None, **options: Any) -> Path:
    """Fetch a file of a data set into its folder; see :func:`sagefm._io.download.download` for the options."""
    return download(f"{base_url}/{file}", folder / file, sha256=(sha256 or {}).get(Path(file).name), **options)


def read_csv(path: str | Path, what: str, hint: str = "", **options: Any) -> pd.DataFrame:
    """Read a table of the user's."""
    import pandas as pd

    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}{hint}.")
    try:
        return pd.read_csv(path, **options)
    except UNREADABLE as error:
        raise unreadable(path, "a CSV table", error) from error


def geo_section(
    sample: str, known: Mapping[str, str], *, folder: Path, sha256: Mapping[str, str] | None, base_url: str
) -> tuple[AnnData, str]:
    """Fetch and read the two files that GEO has of one Visium sample, counts and positions; also the sample's name."""
    at, begin, name = on_geo(sample, known, base_url)
    return read_visium(*(fetch(at, folder, f"{begin}_{file}", sha256) for file in (MATRIX, f"{POSITIONS}.gz"))), name


def on_geo(sample: str, known: Mapping[str, str], base_url: str) -> tuple[str, str, str]:
    """Return the address of a sample's files on GEO, what their names begin with, and the sample's own name."""
    if sample in known:
        accession, name = known[sample], sample
    elif match := re.fullmatch(r"(GSM\d{4,})_([\w.-]+)", sample):
        accession, name = match.groups()
    else:
        raise ValueError(
            f"unknown sample {sample!r}: give one of {shorten(known, 40)}, or what its files' names in GEO begin with, "
            "as in 'GSM6339631_s1'."
        )
    # GEO's folders: GSM6339631 lies in GSM6339nnn.
    return f"{base_url}/{accession[:-3]}nnn/{accession}/suppl", f"{accession}_{name}", name


def read_visium(matrix: Path, positions: Path) -> AnnData:
    """Read Space Ranger's counts, an h5 file or a folder of mtx files, with the positions of their spots.

    squidpy's reader wants Space Ranger's folder with its images, of which GEO's files are a part.
    """
    import pandas as pd

    try:
        adata = _read_matrix(matrix)
    except UNREADABLE as error:
        raise unreadable(matrix, "a 10x count matrix", error) from error
    try:
        table = pd.read_csv(positions, header=None, dtype=str, names=COLUMNS).set_index("barcode")
        table = table.drop(index="barcode", errors="ignore").astype(float)  # the header, where there is one
        if table.isna().any(axis=None):
            raise ValueError(f"rows of fewer than {len(COLUMNS)} values")
    except UNREADABLE as error:
        raise unreadable(positions, "a table of spot positions", error) from error
    if missing := sorted(set(adata.obs_names) - set(table.index)):
        raise ValueError(
            f"{positions} has no position for {len(missing)} of {adata.n_obs} spots ({shorten(missing, 3)}): it "
            f"belongs to another sample than {matrix}."
        )
    table = table.loc[adata.obs_names]
    for column in COLUMNS[1:4]:
        adata.obs[column] = table[column].astype(int)
    # x before y, as scanpy and squidpy have it.
    adata.obsm[_keys.SPATIAL] = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    adata.var_names_make_unique()
    return adata


def _read_matrix(path: Path) -> AnnData:
    """Read counts; symbols that several genes share stay as they are."""
    import h5py
    import scanpy as sc

    with catch_warnings():
        simplefilter("ignore", UserWarning)  # of those symbols
        if path.is_dir():
            return sc.read_10x_mtx(path, make_unique=False)
        with h5py.File(path) as file:
            # scanpy takes anything else for a file of Cell Ranger 2.
            if missing := {"barcodes", "data", "features", "indices", "indptr", "shape"} - set(file["matrix"]):
                raise KeyError(f"matrix/ has no {shorten(sorted(missing))}")
        return sc.read_10x_h5(path)


def describe(adata: AnnData, **values: str) -> AnnData:
    """Write what holds for a whole section into ``obs``, as categoricals; counts in rows, ready for the models."""
    import pandas as pd
    from scipy import sparse

    if sparse.issparse(adata.X) and adata.X.format != "csr":
        adata.X = adata.X.tocsr()
    for column, value in values.items():
        adata.obs[column] = pd.Categorical([value] * adata.n_obs)
    return adata


def are_counts(adata: AnnData) -> bool:
    """Whether ``X`` holds counts: finite, whole, not negative."""
    from scipy import sparse

    values = adata.X.data if sparse.issparse(adata.X) else np.asarray(adata.X)
    return bool(np.isfinite(values).all() and (values >= 0).all() and (values == np.round(values)).all())
