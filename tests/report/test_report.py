"""The report says what the slide holds, as data and as text."""

import base64
import json
import re

import numpy as np
import pandas as pd
import pytest

import sagefm as sg
from sagefm._report.pack import pack
from sagefm.cli import main

EVIL = "</script><script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
GENES = ["KRT8", "COL1A1"]


def data_of(path):
    text = path.read_text()
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.S)
    return json.loads(found)


def unpack(packed):
    values = np.frombuffer(base64.b64decode(packed["values"]), np.uint8).astype(float)
    values[values == 255] = np.nan
    return packed["low"] + values / 254 * (packed["high"] - packed["low"])


def floats(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


@pytest.fixture(scope="module")
def _done():
    """Two slides with all results."""
    adata = sg.datasets.simulated_visium(12, 12, n_genes=9_000)
    adata.obs["slide"] = np.where(adata.obs["array_row"] < 6, "up", "down")
    sg.pp.neighborhood_graph(adata, library_key="slide")
    sg.pp.assess(adata, "sagefm-nano")
    sg.tl.sage_embed(adata, "sagefm-nano")
    sg.tl.cluster(adata)
    sg.tl.impute(adata, None, "sagefm-nano")
    pairs = [("CXCL12", "CXCR4"), ("CSF1", "CSF1R")]
    sg.tl.perturb_lr(adata, pairs, "sagefm-nano", n_controls=5, store_spots=True)
    return adata


@pytest.fixture
def done(_done):
    return _done.copy()


def test_packed_values_come_back():
    values = np.array([0.0, 0.4, 1.7, np.nan, 2.0])
    packed = pack(values, 0.0, 2.0)
    np.testing.assert_allclose(unpack(packed), values, atol=2 / 254 / 2 + 1e-9)
    assert unpack(pack(np.zeros(3), 0.0, 0.0)).tolist() == [0, 0, 0]


def test_what_the_slides_hold_is_on_the_page(done, tmp_path):
    before = done.copy()
    path = sg.report(done, tmp_path / "report.html", "sagefm-nano", genes=GENES, color=["domain"])
    assert list(done.uns) == list(before.uns)
    data = data_of(path)
    assert [slide["name"] for slide in data["slides"]] == ["down", "up"]
    for slide in data["slides"]:
        rows = np.flatnonzero(done.obs["slide"] == slide["name"])
        np.testing.assert_allclose(floats(slide["x"]), done.obsm["spatial"][rows, 0], rtol=1e-6)
        np.testing.assert_allclose(floats(slide["y"]), done.obsm["spatial"][rows, 1], rtol=1e-6)
        for key in ("sage_cluster", "domain"):
            group = slide["groups"][key]
            codes = np.frombuffer(base64.b64decode(group["codes"]), np.uint8)
            assert [group["names"][code] for code in codes] == done.obs[key].iloc[rows].astype(str).tolist()
        for gene in GENES:
            counts = done[rows, gene].X.toarray().ravel()
            packed, step = slide["values"][gene], slide["values"][gene]["measured"]["high"] / 254
            np.testing.assert_allclose(unpack(packed["measured"]), np.log1p(counts), atol=step)
            predicted = done[rows, gene].layers["sage_imputed"].ravel()
            np.testing.assert_allclose(unpack(packed["predicted"]), predicted, atol=step)
            assert packed["measured"]["high"] == packed["predicted"]["high"]  # one color scale, on all slides
        change = done.obsm["perturb_lr"]["CSF1|CSF1R"].to_numpy()
        packed = slide["responses"]["CSF1|CSF1R"]
        np.testing.assert_allclose(unpack(packed), change[rows], atol=(packed["high"] - packed["low"]) / 254)
    table = done.uns["sage_imputed"]["reliability"].loc[GENES]
    assert [row["gene"] for row in data["genes"]] == GENES
    assert [row["r_beyond_depth"] for row in data["genes"]] == pytest.approx(table["r_beyond_depth"].tolist(), rel=1e-3)
    results = done.uns["perturb_lr"]["results"]
    assert {row["pair"]: row["verdict"] for row in data["interactions"]} == results["verdict"].to_dict()
    counts = np.asarray(done.X.sum(axis=1)).ravel()
    medians = [float(np.median(counts[done.obs["slide"] == slide])) for slide in ("down", "up")]
    assert [row["total_counts"] for row in data["quality"]] == pytest.approx(medians, rel=1e-3)
    assert "Computed for this page: quality control." in path.read_text()


def test_default_genes_are_those_with_most_to_reach(done, tmp_path):
    genes = [row["gene"] for row in data_of(sg.report(done, tmp_path / "a.html", "sagefm-nano", n_genes=5))["genes"]]
    table = done.uns["sage_imputed"]["reliability"]
    table = table[table["testable"] & table["share"].notna()]
    assert genes == table["attainable_r"].sort_values(ascending=False, kind="stable").index[:5].tolist()


def test_genes_that_were_not_predicted_are(done, tmp_path):
    sg.tl.impute(done, ["KRT8"], "sagefm-nano")  # the other genes' predictions are NaN now
    data = data_of(sg.report(done, tmp_path / "a.html", "sagefm-nano", genes=GENES))
    assert all(np.isfinite(unpack(data["slides"][0]["values"][gene]["predicted"])).all() for gene in GENES)
    assert np.isnan(done[:, "COL1A1"].layers["sage_imputed"]).all()


@pytest.mark.slow
def test_what_is_missing_is_computed_on_a_copy(tmp_path):
    adata = sg.datasets.simulated_visium(10, 10, n_genes=9_000)
    before = adata.copy()
    path = sg.report(adata, tmp_path / "report.html", "sagefm-nano", genes=GENES, interactions=[("CXCL12", "CXCR4")])
    assert list(adata.uns) == list(before.uns)
    assert list(adata.obsm) == list(before.obsm)
    assert (
        "neighborhoods, trust card, quality control, embedding, clusters, predicted genes, responses to ligands"
        in path.read_text()
    )
    assert len(data_of(path)["interactions"]) == 1
    plain = sg.report(adata, tmp_path / "plain.html", "sagefm-nano", genes=GENES, interactions=None)
    assert data_of(plain)["interactions"] == []


def test_names_stay_text(done, tmp_path):
    done.obs["label"] = pd.Categorical(np.where(done.obs["array_row"] < 5, EVIL, "plain"))
    done.rename_categories("sage_cluster", [EVIL + str(i) for i in range(done.obs["sage_cluster"].nunique())])
    done.uns["sage_assessment"]["text"] = EVIL
    path = sg.report(done, tmp_path / "report.html", "sagefm-nano", genes=GENES, color=["label"], title=EVIL)
    text = path.read_text()
    assert EVIL not in text
    assert text.count("<script") == text.count("</script>")
    assert "<img src=x" not in text
    assert EVIL in data_of(path)["slides"][0]["groups"]["label"]["names"]
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"', text.split('id="data"')[0]) == []


def test_what_cannot_be_reported_is_refused(done, tmp_path):
    report = sg.report
    with pytest.raises(ValueError, match="is not .html"):
        report(done, tmp_path / "report.pdf", "sagefm-nano")
    with pytest.raises(KeyError, match="color='nothing'"):
        report(done, tmp_path / "report.html", "sagefm-nano", color=["nothing"])
    with pytest.raises((KeyError, ValueError), match="XYZ"):
        report(done, tmp_path / "report.html", "sagefm-nano", genes=["XYZ"])
    done.obs["many"] = np.arange(done.n_obs).astype(str)
    with pytest.raises(ValueError, match="obs\\['many'\\] has 144 values"):
        report(done, tmp_path / "report.html", "sagefm-nano", genes=GENES, color=["many"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_command(done, tmp_path, capsys):
    done.write_h5ad(tmp_path / "slide.h5ad")
    out = tmp_path / "report.html"
    command = ["report", str(tmp_path / "slide.h5ad"), "-o", str(out), "--model", "sagefm-nano", "--genes", *GENES]
    assert main([*command, "--interactions", "none", "--title", "Mine"]) == 0
    assert str(out) in capsys.readouterr().out
    assert "<title>Mine</title>" in out.read_text()
    assert main(command) == 1  # it exists
