"""Sections of glioblastoma from a loopback server, in files as the real ones are laid out."""

import gzip
import json
import tarfile
import zipfile
from io import BytesIO

import pytest
import scipy.io
from fetched import (
    BARCODES,
    COUNTS,
    H5,
    POSITIONS,
    SYMBOLS,
    TOKEN,
    check_section,
    count_matrix,
    files_below,
    sha256,
    spot_positions,
)
from scipy import sparse

import sagefm as sg
from sagefm._io import download as _download


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
    assert samples["source"].value_counts().to_dict() == {"Ravi 2022": 28, "Ren 2023": 6}
    donors = samples["donor"]
    assert donors["UKF256_TC_ST"] == donors["UKF256_C_ST"] == "UKF256"
    assert donors["GBM5_1"] == donors["GBM5_2"] == "GBM5"


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
    with pytest.raises(RuntimeError, match=r"HTTP 401.*datadryad\.org/account.*DRYAD_TOKEN(?s:.*)archive="):
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


def ren(outs=True, outside=None):
    """The archive of one sample: Space Ranger's folder in a folder of the sample's name."""
    buffer = BytesIO()
    scalefactors = json.dumps({"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 80.0}).encode()
    contents = {
        H5: count_matrix(),
        f"spatial/{POSITIONS}": spot_positions(),
        "spatial/scalefactors_json.json": scalefactors,
    }
    named = {f"GBM4_spaceranger_out/{name}": content for name, content in contents.items()} if outs else {"a": b"b"}
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, content in {**named, **(outside or {})}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, BytesIO(content))
    return buffer.getvalue()


def put_ren_on_geo(server, content, begin="GSM5833536_GBM4"):
    accession = begin.split("_")[0]
    server.files[f"/{accession[:-3]}nnn/{accession}/suppl/{begin}_spaceranger_out.tar.gz"] = content


@pytest.mark.parametrize(
    ("sample", "name", "donor"),
    [("GBM4", "GBM4", "GBM4"), ("GSM5833540_DMG2", "DMG2", "DMG2")],  # one that isn't listed
)
def test_ren(server, log, sample, name, donor):
    put_ren_on_geo(server, ren(), "GSM5833536_GBM4" if sample == "GBM4" else sample)
    adata = sg.datasets.glioblastoma(sample, base_url=server.url)
    check_section(adata, sample=name, donor=donor, tissue="brain")
    assert adata.uns["spatial"]["GBM4_spaceranger_out"]["scalefactors"]["spot_diameter_fullres"] == 80
    assert "GSE194329" in log.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html></html>", "not a gzip file|could not be opened"),
        (ren()[:-40], "end-of-stream|unexpected end|Compressed"),
        (ren(outs=False), "holds 0 folders named spatial"),
        (ren(outside={"../outside": b"text"}), "outside"),
    ],
    ids=["page", "cut", "empty", "outside"],
)
def test_archive_of_ren_of_another_layout(server, content, message):
    put_ren_on_geo(server, content)
    with pytest.raises(ValueError, match=f"(?s)is not an archive of Space Ranger's folder.*({message}).*Delete it"):
        sg.datasets.glioblastoma("GBM4", base_url=server.url)


@pytest.mark.parametrize("sample", ["UKF999_T_ST", "mgh1"])
def test_unknown_glioblastoma(server, sample):
    with pytest.raises(ValueError, match=f"unknown sample '{sample}'"):
        sg.datasets.glioblastoma(sample, base_url=server.url)
    assert server.requests == []


def test_sections_go_into_the_models(server):
    """What the readers return is what the rest of the package reads."""
    put_ren_on_geo(server, ren())
    adata = sg.datasets.glioblastoma("GBM4", base_url=server.url)
    sg.pp.align_genes(adata, min_coverage=0)
    assert adata.uns["sage_genes"]["n_matched"] == 2
