"""The published data sets against a loopback server: small files of the layout that the real ones have."""

import gzip
import hashlib
import http.server
import json
import threading
import zipfile
from io import BytesIO

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
from scipy import sparse

import sagefm as sg
from sagefm._io import download as _download
from sagefm.datasets import _hest1k

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


@pytest.fixture
def server(monkeypatch):
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.files, httpd.faults, httpd.requests, httpd.gated, httpd.moved = {}, [], [], set(), {}
    httpd.url = f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pooch waits between tries
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("DRYAD_TOKEN", raising=False)
    _download.notice.cache_clear()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def files_below(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# ---- Files as the real ones are laid out -----------------------------------------------------------------------------


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


def mtx_files():
    """The same as Space Ranger's folder."""
    buffer = BytesIO()
    scipy.io.mmwrite(buffer, sparse.coo_matrix(COUNTS.T))
    return {
        "matrix.mtx.gz": gzip.compress(buffer.getvalue()),
        "barcodes.tsv.gz": gzip.compress("\n".join(BARCODES).encode()),
        "features.tsv.gz": gzip.compress(
            "\n".join(f"ENSG{i}\t{symbol}\tGene Expression" for i, symbol in enumerate(SYMBOLS)).encode()
        ),
    }


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


# ---- HEST-1k ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def table():
    """Rows of version 1.1.0's kind: one that meets all criteria, and for each criterion one that doesn't."""
    rows = [
        ("A study", "TENX1", "Breast", "Homo sapiens", "Patient 1", "Visium", 18085),
        ("A study", "TENX2", "Breast", "Homo sapiens", "Patient 1", "Visium HD", 18085),
        ("A study", "TENX3", "Bowel", "Mus musculus", "Patient 1", "Visium", 18085),
        ("A study", "TENX4", "Bowel", "Homo sapiens", "Patient 1", "Visium", 10_000),
        ("Another", "NCBI5", "Brain", "Homo sapiens", None, "Visium", 10_001),
        ("Another", "NCBI6", "Brain", "Homo sapiens", "Patient 1", "Visium", 36601),
    ]
    columns = ["dataset_title", "id", "organ", "species", "patient", "st_technology", "nb_genes"]
    return pd.DataFrame(rows, columns=columns)


def h5ad(tmp_path, **changes):
    adata = ad.AnnData(sparse.csr_matrix(COUNTS.astype(np.float32)), obsm={"spatial": np.ones((4, 2))})
    for name, value in changes.items():
        setattr(adata, name, value)
    adata.write_h5ad(tmp_path / "made.h5ad")
    return (tmp_path / "made.h5ad").read_bytes()


def test_paper_criteria(table, tmp_path):
    samples = sg.datasets.hest1k_samples(table)
    assert samples["donor"].to_dict() == {
        "TENX1": "A study: Patient 1",
        "NCBI5": "Another",
        "NCBI6": "Another: Patient 1",
    }
    assert list(sg.datasets.hest1k_samples(table, technology="Visium HD").index) == ["TENX2"]
    assert list(sg.datasets.hest1k_samples(table, species=None, min_genes=18_000).index) == ["TENX1", "TENX3", "NCBI6"]
    assert "donor" not in table  # the caller's own
    pd.testing.assert_frame_equal(sg.datasets.hest1k_samples(samples), samples)  # its own result is a table too
    table.to_csv(tmp_path / "HEST.csv", index=False)
    assert list(sg.datasets.hest1k_samples(tmp_path / "HEST.csv").index) == list(samples.index)


@pytest.mark.parametrize("column", ["id", "species", "st_technology", "nb_genes", "patient"])
def test_table_without_a_column(table, column):
    with pytest.raises(KeyError, match=f"no column '{column}'.*HEST_v"):
        sg.datasets.hest1k_samples(table.drop(columns=column))


def test_table_with_an_id_twice(table):
    with pytest.raises(ValueError, match="'NCBI5' more than once"):
        sg.datasets.hest1k_samples(pd.concat([table, table.iloc[[4]]]))


def test_table_is_fetched_once(server, table, log):
    server.files["/HEST_v1_1_0.csv"] = table.to_csv(index=False).encode()
    for _ in range(2):
        assert len(sg.datasets.hest1k_samples(base_url=server.url)) == 3
    assert len(server.requests) == 1
    assert (sg.settings.cache_dir / "hest1k" / "HEST_v1_1_0.csv").exists()
    assert log.text.count("CC BY-NC-SA 4.0") == 1


def test_no_table_at_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        sg.datasets.hest1k_samples(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("way", ["argument", "variable"])
def test_hest1k(server, table, tmp_path, log, monkeypatch, way):
    content = h5ad(tmp_path)
    server.files |= {"/st/TENX1.h5ad": content, "/elsewhere": content}
    server.gated, server.moved = {"/st/TENX1.h5ad"}, {"/st/TENX1.h5ad": "/elsewhere"}
    if way == "variable":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    token = TOKEN if way == "argument" else None
    for _ in range(2):
        adata = sg.datasets.hest1k("TENX1", table, token=token, base_url=server.url)
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    assert adata.obs[["sample", "donor", "tissue"]].iloc[0].to_list() == ["TENX1", "A study: Patient 1", "Breast"]
    # Once, and the token to the first host alone.
    assert server.requests == [("/st/TENX1.h5ad", f"Bearer {TOKEN}"), ("/elsewhere", None)]
    assert f"TENX1.h5ad, sha256 {sha256(content)}" in log.text
    assert TOKEN not in log.text
    assert log.text.count("CC BY-NC-SA 4.0") == 1
    adata.write_h5ad(tmp_path / "again.h5ad")


def test_hest1k_fetches_its_table(server, table, tmp_path, monkeypatch):
    server.files |= {"/HEST_v1_1_0.csv": table.to_csv(index=False).encode(), "/st/NCBI6.h5ad": h5ad(tmp_path)}
    monkeypatch.setattr(_hest1k, "METADATA_URL", server.url)
    adata = sg.datasets.hest1k("NCBI6", folder=tmp_path / "own", base_url=server.url, token=TOKEN)
    assert adata.obs["tissue"].iloc[0] == "Brain"
    assert files_below(tmp_path / "own") == ["HEST_v1_1_0.csv", "NCBI6.h5ad"]
    assert server.requests[0] == ("/HEST_v1_1_0.csv", None)  # no token where none is needed


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("token", [None, "hf_expired"], ids=["without", "with"])
def test_hest1k_refused(server, table, log, status, token):
    server.files["/st/TENX1.h5ad"] = b""
    server.faults = [status] * 3
    with pytest.raises(RuntimeError) as raised:
        sg.datasets.hest1k("TENX1", table, token=token, base_url=server.url)
    message = str(raised.value)
    assert f"HTTP {status}" in message
    assert "https://huggingface.co/datasets/MahmoodLab/hest" in message
    assert "HF_TOKEN" in message
    assert "hf_expired" not in message + log.text
    assert files_below(sg.settings.cache_dir) == []


def test_hest1k_missing_on_the_server(server, table):
    with pytest.raises(RuntimeError, match=r"could not download TENX1\.h5ad \(HTTP 404") as raised:
        sg.datasets.hest1k("TENX1", table, base_url=server.url)
    assert "accept" not in str(raised.value)
    # What the message says to do works.
    path = sg.settings.cache_dir / "hest1k" / "st" / "TENX1.h5ad"
    assert str(path) in str(raised.value)


def test_hest1k_put_there_by_hand(server, table, tmp_path):
    (tmp_path / "hest_data" / "st").mkdir(parents=True)
    (tmp_path / "hest_data" / "st" / "TENX1.h5ad").write_bytes(h5ad(tmp_path))
    sg.datasets.hest1k("TENX1", table, folder=tmp_path / "hest_data")
    assert server.requests == []


def test_hest1k_unknown_sample(table):
    with pytest.raises(KeyError, match="no sample 'TENX9'.*hest1k_samples"):
        sg.datasets.hest1k("TENX9", table)


@pytest.mark.parametrize("n_cuts", [2, 3])
def test_cut_short(server, table, tmp_path, n_cuts):
    server.files["/st/TENX1.h5ad"] = h5ad(tmp_path)
    server.faults = ["cut"] * n_cuts
    if n_cuts == 2:
        assert sg.datasets.hest1k("TENX1", table, base_url=server.url).n_obs == 4
    else:
        with pytest.raises(RuntimeError, match="could not download"):
            sg.datasets.hest1k("TENX1", table, base_url=server.url)
        assert files_below(sg.settings.cache_dir) == []
    assert len(server.requests) == 3


def test_known_digest(server, table, tmp_path, log):
    content = server.files["/st/TENX1.h5ad"] = h5ad(tmp_path)
    server.faults = ["html"] * 3
    digests = {"TENX1.h5ad": sha256(content)}
    with pytest.raises(RuntimeError, match=r"not TENX1\.h5ad and was discarded"):
        sg.datasets.hest1k("TENX1", table, sha256=digests, base_url=server.url)
    assert files_below(sg.settings.cache_dir) == []
    assert sg.datasets.hest1k("TENX1", table, sha256=digests, base_url=server.url).n_obs == 4
    assert "not checked" not in log.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "is not an h5ad file"),
        ({"obsm": {"pixels": np.ones((4, 2))}}, r"no obsm\['spatial'\], only \['pixels'\]"),
        ({"X": sparse.csr_matrix(COUNTS / 2)}, "other values than counts"),
        ({"X": -COUNTS}, "other values than counts"),
    ],
)
def test_hest1k_of_another_layout(server, table, tmp_path, changes, message):
    server.files["/st/TENX1.h5ad"] = b"<html></html>" if changes is None else h5ad(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"TENX1.*{message}.*Delete it"):
        sg.datasets.hest1k("TENX1", table, base_url=server.url)


# ---- OSCC ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", ["s1", "GSM6339631_s1"])
@pytest.mark.parametrize("header", [False, True])
def test_oscc(server, log, sample, header):
    put_on_geo(server, positions=spot_positions(header=header))
    for _ in range(2):
        adata = sg.datasets.oscc(sample, base_url=server.url)
    check_section(adata, sample="s1", donor="s1", tissue="oral cavity")
    assert "pathologist" not in adata.obs
    assert len(server.requests) == 2
    assert log.text.count("GSE208253") == 1
    assert log.text.count(", sha256 ") == 2


def test_twelve_sections():
    from sagefm.datasets import _oscc

    assert (_oscc.SAMPLES["s1"], _oscc.SAMPLES["s12"], len(_oscc.SAMPLES)) == ("GSM6339631", "GSM6339642", 12)


@pytest.mark.parametrize("form", ["R", "tidyverse", "table"])
def test_oscc_annotations(server, tmp_path, log, form):
    """As ``write.csv`` writes them, as tibbles go, and a table; barcodes end in the sample's number."""
    put_on_geo(server)
    labels = {"AAAC-2": "SCC", "GGGT-2": "Lymphocyte Negative Stroma", "TTTA-2": "Fold", "CCCG-2": None}
    if form == "R":
        table = pd.DataFrame({"pathologist_anno.x": labels})
    else:
        table = pd.DataFrame({"barcode": labels.keys(), "pathologist_annotation": labels.values()})
    path = tmp_path / "s1.csv"
    table.to_csv(path, index=form == "R")
    adata = sg.datasets.oscc("s1", table if form == "table" else path, base_url=server.url)
    found = adata.obs["pathologist"]
    assert found.astype(object).where(found.notna(), None).to_list() == [labels[f"{b[:4]}-2"] for b in BARCODES]
    classes = found.map(sg.datasets.oscc_classes())
    assert classes.astype(object).where(classes.notna(), None).to_list() == ["tumor", None, "stroma", None]
    assert "3 of 4 spots of s1" in log.text
    adata.write_h5ad(tmp_path / "again.h5ad")


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({"region": {"AAAC-1": "SCC"}}, KeyError, "no column 'pathologist_anno.x'.*only 'region'"),
        ({"pathologist": {"CATG-1": "SCC"}}, ValueError, "none of 1 labels.*'CATG'"),
        ({"pathologist": {"AAAC-1": "SCC", "AAAC-2": "Fold"}}, ValueError, "'AAAC' are labelled more than once"),
    ],
)
def test_oscc_annotations_of_something_else(server, table, error, message):
    put_on_geo(server)
    with pytest.raises(error, match=message):
        sg.datasets.oscc("s1", pd.DataFrame(table), base_url=server.url)


def test_no_annotations_at_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv.*figshare\.20304456"):
        sg.datasets.oscc("s1", tmp_path / "nowhere.csv")


def test_few_annotations_are_said(server, log):
    put_on_geo(server)
    sg.datasets.oscc("s1", pd.DataFrame({"pathologist": {"AAAC-1": "SCC"}}), base_url=server.url)
    assert [record.levelname for record in log.records if "1 of 4 spots" in record.getMessage()] == ["WARNING"]


def test_oscc_classes():
    classes = sg.datasets.oscc_classes()
    assert set(classes.values()) == {"tumor", "stroma", "other tissue"}
    assert [label for label, name in classes.items() if name == "tumor"] == ["SCC"]
    assert {"Artifact", "Fold", "Cautery", "Edge Effects", "Keratin"}.isdisjoint(classes)


@pytest.mark.parametrize("sample", ["s13", "GSM6339631", "../s1", "GSM6339631_../s1"])
def test_unknown_section(server, sample):
    with pytest.raises(ValueError, match="unknown sample.*'s1', 's2'"):
        sg.datasets.oscc(sample, base_url=server.url)
    assert server.requests == []


def empty_h5():
    buffer = BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_group("matrix")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"matrix": b"<html></html>"}, f"{H5} is not a 10x count matrix.*Delete it"),
        ({"matrix": empty_h5()}, f"{H5} is not a 10x count matrix.*'barcodes'"),
        ({"positions": b"<html>\nPlease log in"}, "is not a table of spot positions.*Delete it"),
        ({"positions": spot_positions([*BARCODES[:3], "CATG-1"])}, "no position for 1 of 4 spots.*'TTTA-1'"),
    ],
)
def test_section_of_another_layout(server, files, message):
    put_on_geo(server, **files)
    with pytest.raises(ValueError, match=message):
        sg.datasets.oscc("s1", base_url=server.url)


def test_geo_digests_are_by_file(server):
    put_on_geo(server)
    with pytest.raises(RuntimeError, match="positions_list.*discarded"):
        sg.datasets.oscc("s1", sha256={f"GSM6339631_s1_{POSITIONS}.gz": "0" * 64}, base_url=server.url)


# ---- Glioblastoma ----------------------------------------------------------------------------------------------------


def ravi(form="h5", sample="UKF242_T_ST"):
    """The archive: one folder with a space in its name, folders of samples with a hash, and what macOS adds."""
    buffer = BytesIO()
    outs = f"10XVisium 2/#{sample}/outs"
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr(f"__MACOSX/{outs}/{H5.removesuffix('.h5')}/._matrix.mtx.gz", b"no matrix")
        zipped.writestr(f"{outs}/{H5.removesuffix('.h5')}/", b"")
        if form == "h5":
            zipped.writestr(f"{outs}/{H5}", count_matrix())
        for name, content in mtx_files().items():
            zipped.writestr(f"{outs}/{H5.removesuffix('.h5')}/{name}", content)
        zipped.writestr(f"{outs}/raw_feature_bc_matrix.h5", b"no matrix")
        if form != "no positions":
            zipped.writestr(f"{outs}/spatial/{POSITIONS}", spot_positions())
    return buffer.getvalue()


def put_on_dryad(server, content, **entry):
    """Dryad's API: data set, newest version, its files, one of them."""
    files = [
        {"path": "README.md", "_links": {"stash:download": {"href": "/api/v2/files/1/download"}}},
        {"path": "10XVisium_2.zip", "_links": {"stash:download": {"href": "/api/v2/files/2/download"}}, **entry},
    ]
    dataset = {"_links": {"stash:version": {"href": "/api/v2/versions/7"}}}
    server.files |= {
        "/api/v2/datasets/doi%3A10.5061%2Fdryad.h70rxwdmj": json.dumps(dataset).encode(),
        "/api/v2/versions/7/files?per_page=100": json.dumps({"_embedded": {"stash:files": files}}).encode(),
        "/api/v2/files/2/download": content,
    }
    server.gated.add("/api/v2/files/2/download")


def test_sections_and_donors():
    samples = sg.datasets.glioblastoma_samples()
    assert samples.index.is_unique
    assert samples["source"].value_counts().to_dict() == {"Ravi 2022": 28, "Greenwald 2024": 13}
    donors = samples["donor"]
    assert donors["UKF256_TC_ST"] == donors["UKF256_C_ST"] == "UKF256"
    assert donors["zh8812"] == donors["zh881inf"] == "ZH881"


@pytest.mark.parametrize("form", ["h5", "mtx"])
def test_ravi(tmp_path, log, form):
    _download.notice.cache_clear()
    (tmp_path / "mine.zip").write_bytes(ravi(form))
    for _ in range(2):
        adata = sg.datasets.glioblastoma("UKF242_T_ST", tmp_path / "mine.zip")
    check_section(adata, sample="UKF242_T_ST", donor="UKF242", tissue="brain")
    assert log.text.count("CC0") == 1


@pytest.mark.parametrize("stated", [True, False])
def test_ravi_from_dryad(server, log, monkeypatch, stated):
    content = ravi()
    put_on_dryad(server, content, **({"digest": sha256(content), "digestType": "sha-256"} if stated else {}))
    monkeypatch.setenv("DRYAD_TOKEN", TOKEN)
    for _ in range(2):
        adata = sg.datasets.glioblastoma("UKF242_T_ST", base_url=server.url)
    check_section(adata, donor="UKF242")
    # Dryad answers 401 to an invalid token where it needs none, so it gets one for the file alone.
    assert [authorization for _, authorization in server.requests] == [None, None, f"Bearer {TOKEN}"]
    assert (f"10XVisium_2.zip, sha256 {sha256(content)}" in log.text) is not stated
    assert TOKEN not in log.text


def test_dryad_digest_is_held_to(server):
    put_on_dryad(server, ravi(), digest="0" * 64, digestType="sha-256")
    with pytest.raises(RuntimeError, match=r"not 10XVisium_2\.zip and was discarded"):
        sg.datasets.glioblastoma("UKF242_T_ST", token=TOKEN, base_url=server.url)
    assert files_below(sg.settings.cache_dir) == []


def test_dryad_without_token(server):
    put_on_dryad(server, ravi())
    with pytest.raises(RuntimeError, match=r"HTTP 401.*datadryad\.org/account.*DRYAD_TOKEN.*archive="):
        sg.datasets.glioblastoma("UKF242_T_ST", base_url=server.url)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("/api/v2/datasets/doi%3A10.5061%2Fdryad.h70rxwdmj", None, "HTTP 404"),
        ("/api/v2/datasets/doi%3A10.5061%2Fdryad.h70rxwdmj", b"<html></html>", "no answer"),
        ("/api/v2/versions/7/files?per_page=100", b'{"_embedded": {"stash:files": []}}', r"lacks '10XVisium_2\.zip'"),
        ("/api/v2/versions/7/files?per_page=100", b"[]", "answer about"),
    ],
)
def test_dryad_answers_something_else(server, path, content, message):
    put_on_dryad(server, ravi())
    server.files[path] = content
    with pytest.raises(RuntimeError, match=f"{message}.*by hand.*archive="):
        sg.datasets.glioblastoma("UKF242_T_ST", token=TOKEN, base_url=server.url)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html></html>", "is not 10XVisium_2.zip.*Delete it"),
        (ravi()[:-40], "is not 10XVisium_2.zip.*Delete it"),
        (ravi(sample="UKF243_T_ST"), "no counts and positions in #UKF242_T_ST/outs"),
        (ravi("no positions"), "no counts and positions in #UKF242_T_ST/outs"),
    ],
)
def test_archive_of_another_layout(tmp_path, content, message):
    (tmp_path / "mine.zip").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        sg.datasets.glioblastoma("UKF242_T_ST", tmp_path / "mine.zip")


@pytest.mark.parametrize(
    ("sample", "accession", "name", "donor"),
    [
        ("zh8812", "GSM7596599", "zh8812", "ZH881"),
        ("GSM7596600_some_name", "GSM7596600", "some_name", "some_name"),  # a sample that isn't listed
    ],
)
def test_greenwald(server, log, sample, accession, name, donor):
    put_on_geo(server, accession, name)
    adata = sg.datasets.glioblastoma(sample, base_url=server.url)
    check_section(adata, sample=name, donor=donor, tissue="brain")
    assert "GSE237183" in log.text


@pytest.mark.parametrize("sample", ["UKF999_T_ST", "mgh1"])
def test_unknown_glioblastoma(server, sample):
    with pytest.raises(ValueError, match=f"unknown sample '{sample}'"):
        sg.datasets.glioblastoma(sample, base_url=server.url)
    assert server.requests == []


def test_sections_go_into_the_models(server):
    """What the readers return is what the rest of the package reads."""
    put_on_geo(server, "GSM7596587", "mgh258")
    adata = sg.datasets.glioblastoma("mgh258", base_url=server.url)
    sg.pp.align_genes(adata, min_coverage=0)
    assert adata.uns["sage_genes"]["n_matched"] == 2
