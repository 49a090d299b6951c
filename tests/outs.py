"""Space Ranger's output, as 10x documents its files."""

import gzip
import json

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy.io import mmwrite

FACTORS = {
    "spot_diameter_fullres": 89.45,
    "tissue_hires_scalef": 0.17,
    "fiducial_diameter_fullres": 144.5,
    "tissue_lowres_scalef": 0.053,
}
NAMES = ["in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


def write_h5(path, adata, library="sample345"):
    """``feature_bc_matrix.h5`` of Space Ranger 1 to 4."""
    counts = adata.X.tocsr().astype(np.int32)
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = np.array([library.encode()])
        file.attrs["chemistry_description"] = b"Spatial 3' v1"
        file.attrs["software_version"] = b"spaceranger-2.0.0"
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(adata.obs_names.tolist(), dtype="S")
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(counts, name)
        matrix["shape"] = np.array(adata.shape[::-1])
        features = matrix.create_group("features")
        features["id"] = np.array(adata.var["gene_ids"].tolist(), dtype="S")
        features["name"] = np.array(adata.var_names.tolist(), dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * adata.n_vars, dtype="S")
        features["genome"] = np.array(["GRCh38"] * adata.n_vars, dtype="S")


def write_mtx(folder, adata):
    """``filtered_feature_bc_matrix/`` of three compressed files."""
    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        mmwrite(file, adata.X.T.astype(int))
    with gzip.open(folder / "barcodes.tsv.gz", "wt") as file:
        file.write("\n".join(adata.obs_names) + "\n")
    rows = zip(adata.var["gene_ids"], adata.var_names, strict=True)
    with gzip.open(folder / "features.tsv.gz", "wt") as file:
        file.write("".join(f"{gene}\t{symbol}\tGene Expression\n" for gene, symbol in rows))


def write_positions(spatial, adata, kind):
    """Positions as Space Ranger 1 (``"list"``), 2 and later (``"csv"``) or Visium HD (``"parquet"``) write them."""
    x, y = adata.obsm["spatial"].T
    table = adata.obs[["in_tissue", "array_row", "array_col"]].astype(int).assign(**{NAMES[3]: y, NAMES[4]: x})
    # Those outside the tissue are listed as well.
    outside = pd.DataFrame([[0, 70, 100, 9e3, 9e3]], columns=NAMES, index=["TTTTTTTTTTTTTTTT-1"])
    table = pd.concat([outside, table])[NAMES].rename_axis("barcode")
    if kind == "list":
        table.to_csv(spatial / "tissue_positions_list.csv", header=False)
    elif kind == "csv":
        table.to_csv(spatial / "tissue_positions.csv")
    else:
        table.reset_index().to_parquet(spatial / "tissue_positions.parquet")


def write_outs(folder, adata, *, positions="csv", counts="h5", images=("hires", "lowres"), name="filtered"):
    """Folder as Space Ranger leaves it."""
    spatial = folder / "spatial"
    spatial.mkdir(parents=True)
    if counts == "h5":
        write_h5(folder / f"{name}_feature_bc_matrix.h5", adata)
    else:
        write_mtx(folder / f"{name}_feature_bc_matrix", adata)
    write_positions(spatial, adata, positions)
    for size in images:
        Image.fromarray(np.full((20, 30, 3), 200, dtype=np.uint8)).save(spatial / f"tissue_{size}_image.png")
    (spatial / "scalefactors_json.json").write_text(json.dumps(FACTORS))
    return folder
