"""HEST-1k from a loopback server."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from fetched import COUNTS, TOKEN, files_below, sha256
from helpers import SECTIONS
from scipy import sparse

import sagefm as sg
from sagefm.datasets import _hest1k


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


HEST = SECTIONS.parent / "resources" / "hest1k_v1_1_0.csv"


@pytest.mark.skipif(not HEST.exists(), reason="needs the table of HEST-1k 1.1.0 beside the sections")
def test_the_papers_samples():
    samples = sg.datasets.hest1k_samples(HEST)
    assert len(samples) == 416
    assert samples["spots_under_tissue"].sum() == 981_074  # 981,797 in the paper


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
