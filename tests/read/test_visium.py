"""Reading Space Ranger's output, by the layouts that its versions have."""

import json

import numpy as np
import pytest
import squidpy as sq
from outs import FACTORS, write_h5, write_outs

import sagefm as sg
from sagefm.cli import main


def named(slide):
    slide.obs_names = [f"{i:016d}-1" for i in range(slide.n_obs)]
    return slide


@pytest.fixture
def plain(_slide):
    """A slide as it comes from a reader, with few genes."""
    return named(_slide[:, :200].copy())


@pytest.fixture
def whole(_slide):
    """The same with enough genes for a model."""
    return named(_slide.copy())


def assert_read(found, slide):
    np.testing.assert_array_equal(found.X.toarray(), slide.X.toarray())
    assert found.obs_names.tolist() == slide.obs_names.tolist()
    assert found.var_names.tolist() == slide.var_names.tolist()
    assert found.var["gene_ids"].tolist() == slide.var["gene_ids"].tolist()
    np.testing.assert_allclose(found.obsm["spatial"], slide.obsm["spatial"])
    for key in ("in_tissue", "array_row", "array_col"):
        assert found.obs[key].tolist() == slide.obs[key].tolist()


@pytest.mark.parametrize("counts", ["h5", "mtx"])
@pytest.mark.parametrize("positions", ["list", "csv", "parquet"])
def test_layouts_of_all_versions(plain, tmp_path, positions, counts):
    outs = write_outs(tmp_path / "sample" / "outs", plain, positions=positions, counts=counts)
    for path in (outs, str(outs), outs.parent):
        assert_read(found := sg.read.visium(path), plain)
    name = "sample345" if counts == "h5" else "sample"
    assert list(found.uns["spatial"]) == [name]
    entry = found.uns["spatial"][name]
    assert set(entry["images"]) == {"hires", "lowres"}
    assert entry["scalefactors"] == FACTORS
    if counts == "h5":
        assert entry["metadata"]["software_version"] == "spaceranger-2.0.0"
        assert_read(sg.read.visium(outs / "filtered_feature_bc_matrix.h5"), plain)
    sg.pp.neighborhood_graph(found)
    found.write_h5ad(tmp_path / "read.h5ad")


def test_it_reads_what_squidpy_does(plain, tmp_path):
    outs = write_outs(tmp_path / "outs", plain)
    found, theirs = sg.read.visium(outs), sq.read.visium(outs)
    assert_read(found, theirs)
    assert set(theirs.uns["spatial"]) == set(found.uns["spatial"])
    np.testing.assert_array_equal(*(a.uns["spatial"]["sample345"]["images"]["hires"] for a in (found, theirs)))


@pytest.mark.parametrize("images", [("lowres",), ()])
def test_missing_images_are_said_and_done_without(plain, tmp_path, log, images):
    outs = write_outs(tmp_path / "outs", plain, images=images)
    (outs / "spatial" / "scalefactors_json.json").unlink()
    found = sg.read.visium(outs)
    assert_read(found, plain)
    assert "tissue_hires_image.png" in log.text
    assert "scalefactors_json.json" in log.text
    assert set(found.uns["spatial"]["sample345"]["images"]) == set(images)
    found.obs["sage_cluster"] = "0"
    found.uns["sage_cluster"] = {"params": {"use_rep": "none"}}
    assert sg.pl.cluster(found, show=False).collections


def test_raw_counts_and_names(plain, tmp_path):
    outs = write_outs(tmp_path / "outs", plain)
    plain.obs["in_tissue"] = (np.arange(plain.n_obs) % 2).astype(int)
    raw = write_outs(tmp_path / "raw", plain, name="raw")
    assert sg.read.visium(raw, filtered=False, library_id="mine").obs["in_tissue"].sum() == plain.n_obs // 2
    with pytest.raises(
        FileNotFoundError, match=r"no filtered_feature_bc_matrix.h5 .* Is it Space Ranger's outs folder"
    ):
        sg.read.visium(raw)
    # As repositories name files of several samples.
    (outs / "filtered_feature_bc_matrix.h5").rename(outs / "GSM123_filtered_feature_bc_matrix.h5")
    assert sg.read.visium(outs).n_obs == plain.n_obs
    write_h5(outs / "GSM124_filtered_feature_bc_matrix.h5", plain)
    with pytest.raises(ValueError, match="counts of several slides: 'GSM123"):
        sg.read.visium(outs)


def test_visium_hd(plain, tmp_path):
    outs = tmp_path / "hd" / "outs"
    for size in (8, 16):
        binned = write_outs(outs / "binned_outputs" / f"square_{size:03d}um", plain, positions="parquet")
        factors = FACTORS | {"microns_per_pixel": 0.27, "bin_size_um": float(size)}
        (binned / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    for path in (outs, outs.parent):
        found = sg.read.visium(path, bin_size=16)
        assert_read(found, plain)
        assert found.uns["spatial"]["sample345"]["scalefactors"]["bin_size_um"] == 16
    with pytest.raises(FileNotFoundError, match=r"no bins of 4 µm in .*; it has 'square_008um', 'square_016um'"):
        sg.read.visium(outs, bin_size=4)


def test_genes_of_one_symbol_are_made_unique(plain, tmp_path):
    names = plain.var_names.tolist()
    names[1] = names[0]
    plain.var_names = names
    found = sg.read.visium(write_outs(tmp_path / "outs", plain))
    assert found.var_names[1] == f"{names[0]}-1"
    assert found.var_names.is_unique


def test_what_is_not_of_one_slide_is_refused(plain, tmp_path):
    outs = write_outs(tmp_path / "outs", plain)
    other = plain.copy()
    other.obs_names = [f"{name}x" for name in other.obs_names]
    write_h5(outs / "filtered_feature_bc_matrix.h5", other)
    with pytest.raises(ValueError, match=r"110 of 110 spots in .* have no position in .*Are the two of one slide"):
        sg.read.visium(outs)
    (outs / "spatial" / "tissue_positions.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match="no tissue_positions.csv, tissue_positions_list.csv, tissue_positions.parq"
    ):
        sg.read.visium(outs)
    (outs / "filtered_feature_bc_matrix.h5").write_text("no counts")
    with pytest.raises(ValueError, match="can't be read as 10x counts"):
        sg.read.visium(outs)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        sg.read.visium(tmp_path / "nothing")


@pytest.mark.parametrize("path", ["sample/outs", "sample", "sample/outs/filtered_feature_bc_matrix.h5"])
def test_commands_take_it(whole, tmp_path, path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_outs(tmp_path / "sample" / "outs", whole)
    assert main(["--quiet", "embed", path, "-o", "out.h5ad", "--model", "sagefm-mini"]) == 0
    assert main(["--quiet", "assess", path, "-o", "card.txt", "--model", "sagefm-mini"]) == 0
    assert (tmp_path / "card.txt").exists()


@pytest.mark.slow
def test_collections_take_it(whole, tmp_path):
    for name in ("one", "two"):
        write_outs(tmp_path / "raw" / name / "outs", whole)
    table = sg.tl.embed_sections(tmp_path / "raw", tmp_path / "embedded", "sagefm-mini")
    assert table.index.tolist() == ["one", "two"]
    assert set(table["status"]) == {"embedded"}
