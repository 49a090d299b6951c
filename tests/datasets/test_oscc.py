"""Sections of oral carcinoma from a loopback server, in files as the real ones are laid out."""

from io import BytesIO

import h5py
import numpy as np
import pandas as pd
import pytest
from fetched import BARCODES, H5, POSITIONS, check_section, put_on_geo, spot_positions

import sagefm as sg


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


def test_oscc_classes_add_up_to_the_papers_counts():
    """Spots by label, and by class in the training and the test set (Methods, downstream task 1)."""
    spots = {
        "SCC": 15_395,
        "Lymphocyte Negative Stroma": 3_241,
        "Lymphocyte Positive Stroma": 2_806,
        "Muscle": 1_190,
        "Glandular Stroma": 566,
        "Keratin": 526,
        "Artifact": 520,
        "Lymphocyte Positive Muscles": 219,
        "Non-cancerous Mucosa": 182,
        "Cautery": 107,
        "Fold": 25,
        "Edge Effects": 16,
        "Artery/Vein": 16,
    }
    classes = sg.datasets.oscc_classes()
    found = pd.Series(spots).groupby(classes).sum().to_dict()
    assert found == {"tumor": 10_773 + 5_148, "stroma": 4_266 + 2_347, "muscle": 1_160 + 249}
    assert set(classes) <= set(spots)


def test_the_papers_split_is_found_from_the_spots_of_each_class():
    """On a table made so that one choice fits, then two."""
    rng = np.random.default_rng(0)
    spots = pd.DataFrame(rng.integers(50, 900, (12, 3)), [f"s{i}" for i in range(1, 13)], ["muscle", "tumor", "stroma"])
    held_out = ["s2", "s5", "s6", "s11"]
    rest = spots.loc[held_out[:-1]].sum()
    spots.loc["s11"] = pd.Series({"tumor": 5_148, "stroma": 2_347, "muscle": 249}) - rest
    assert sg.datasets.oscc_splits(spots) == [held_out]
    spots.loc["s12"] = spots.loc["s11"]
    assert sg.datasets.oscc_splits(spots) == [held_out, [*held_out[:-1], "s12"]]
    assert sg.datasets.oscc_splits(spots + 1) == []
    with pytest.raises(KeyError, match="no column 'tumor'"):
        sg.datasets.oscc_splits(spots[["muscle"]])
    with pytest.raises(ValueError, match="'s1' more than once"):
        sg.datasets.oscc_splits(pd.concat([spots, spots]))


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
