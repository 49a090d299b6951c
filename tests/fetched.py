"""A loopback server of data, and files as the real ones are laid out."""

import gzip
import hashlib
import http.server
from io import BytesIO

import h5py
import numpy as np
from scipy import sparse

TOKEN = "hf_secret"


H5, POSITIONS = "filtered_feature_bc_matrix.h5", "tissue_positions_list.csv"


BARCODES = [f"{stem}-1" for stem in ("AAAC", "CCCG", "GGGT", "TTTA")]


SYMBOLS = ["EGFR", "VIM", "EGFR"]  # one symbol, two genes: so it is in the 10x references


COUNTS = np.arange(12, dtype=np.int32).reshape(4, 3)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files`` by path; ``server.faults`` says what goes wrong, one an answer."""

    def do_GET(self):
        server = self.server
        authorization = self.headers.get("Authorization")
        server.requests.append((self.path, authorization))
        fault = server.faults.pop(0) if server.faults else None
        body = server.files.get(self.path)
        if self.path in server.gated and authorization != f"Bearer {TOKEN}":
            fault = 401
        if body is None or isinstance(fault, int):
            self.send_error(fault or 404)
            return
        if self.path in server.moved:  # as HuggingFace and Dryad do: on to another host
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{server.server_port}{server.moved[self.path]}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = b"<html>Please log in</html>" if fault == "html" else body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        if fault == "cut":
            self.connection.close()

    def log_message(self, *args):
        pass


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def files_below(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def count_matrix(counts=COUNTS):
    """Space Ranger's h5: genes in rows, compressed by columns."""
    stored = sparse.csc_matrix(counts.T)
    buffer = BytesIO()
    with h5py.File(buffer, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(BARCODES, dtype="S")
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(stored, name)
        matrix["shape"] = np.array(stored.shape)
        features = matrix.create_group("features")
        features["id"] = np.array([f"ENSG{i}" for i in range(len(SYMBOLS))], dtype="S")
        features["name"] = np.array(SYMBOLS, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * len(SYMBOLS), dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(SYMBOLS), dtype="S")
    return buffer.getvalue()


def spot_positions(barcodes=BARCODES, header=False):
    """One row more than the matrix has (a spot off the tissue), in another order."""
    rows = [f"{barcode},1,{i},{2 * i},{100 + i},{200 + i}" for i, barcode in enumerate(barcodes)]
    rows = ["NNNN-1,0,70,70,900,900", *reversed(rows)]
    if header:
        rows.insert(0, "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres")
    return "\n".join(rows).encode()


def check_section(adata, **values):
    assert sparse.issparse(adata.X)
    assert adata.X.format == "csr"
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    assert list(adata.obs_names) == BARCODES
    assert list(adata.var_names) == ["EGFR", "VIM", "EGFR-1"]
    assert adata.obs["array_col"].to_list() == [0, 2, 4, 6]
    np.testing.assert_array_equal(adata.obsm["spatial"], [[200 + i, 100 + i] for i in range(4)])  # x, y
    for column, value in values.items():
        assert adata.obs[column].cat.categories.to_list() == [value]


def put_on_geo(server, accession="GSM6339631", name="s1", matrix=None, positions=None):
    at = f"/{accession[:-3]}nnn/{accession}/suppl/{accession}_{name}_"
    server.files[f"{at}{H5}"] = count_matrix() if matrix is None else matrix
    server.files[f"{at}{POSITIONS}.gz"] = gzip.compress(spot_positions() if positions is None else positions)
