"""Pseudo-spots of a SpatialData."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from binned import two_slides
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Scale, get_transformation

import sagefm as sg


def as_spatialdata(bins, kind="polygons", factor=2.0):
    """The bins as shapes in pixels, and the table that annotates them in another order."""
    xy, index = bins.obsm["spatial"], np.arange(bins.n_obs) + 7
    if kind == "polygons":
        corners = np.array([[-4, -4], [4, -4], [4, 4], [-4, 4]])
        rings = (xy[:, None] + corners).reshape(-1, 2)
        shapes = ShapesModel.parse(
            rings,
            geometry=3,
            offsets=(np.arange(0, 4 * len(xy) + 1, 4), np.arange(len(xy) + 1)),
            index=index,
            transformations={"global": Scale([factor, factor], axes=("x", "y"))},
        )
    else:
        shapes = ShapesModel.parse(
            xy,
            geometry=0,
            radius=4,
            index=index,
            transformations={"global": Scale([factor, factor], axes=("x", "y"))},
        )
    table = bins.copy()
    table.obs["region"], table.obs["id"] = pd.Categorical(["squares"] * table.n_obs), index
    table = table[np.random.default_rng(5).permutation(table.n_obs)].copy()
    table = TableModel.parse(table, region="squares", region_key="region", instance_key="id")
    return SpatialData(shapes={"squares": shapes}, tables={"table": table})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["polygons", "circles"])
@pytest.mark.parametrize("has_coordinates", [True, False])
def test_spatialdata(bins, kind, has_coordinates, tmp_path):
    expected = sg.pp.pseudospots(bins, microns_per_unit=1)
    sdata = as_spatialdata(bins, kind)
    if not has_coordinates:
        del sdata.tables["table"].obsm["spatial"]
    spots = sg.pp.pseudospots(sdata, microns_per_unit=1)
    np.testing.assert_array_equal(spots.X.toarray(), expected.X.toarray())
    np.testing.assert_allclose(spots.obsm["spatial"], expected.obsm["spatial"])
    assert sdata.tables["pseudospots"] is spots
    circles = sdata.shapes["pseudospots_circles"]
    assert circles.index.tolist() == spots.obs_names.tolist()
    np.testing.assert_allclose(circles.geometry.get_coordinates(), spots.obsm["spatial"])
    assert (circles["radius"] == 27.5).all()
    assert get_transformation(circles, get_all=True) == get_transformation(sdata["squares"], get_all=True)
    assert spots.uns["spatialdata_attrs"]["region"] == ["pseudospots_circles"]
    sg.pp.neighborhood_graph(sdata, table_key="pseudospots")
    spots.obs["score"] = 1.0
    sg.pp.from_pseudospots(sdata, spots, obs=["score"])
    table = sdata.tables["table"]
    assert (table.obs["score"].notna() == table.obs["pseudospot"].notna()).all()
    sg.pp.pseudospots(sdata, 40, microns_per_unit=1)  # its own elements may be replaced
    assert sdata.shapes["pseudospots_circles"]["radius"].iloc[0] == 20
    sdata.write(tmp_path / "slide.zarr")
    assert SpatialData.read(tmp_path / "slide.zarr").tables["pseudospots"].n_obs == spots.n_obs


def test_spatialdata_of_several_regions():
    one, two, _ = two_slides()
    sdata, other = as_spatialdata(one), as_spatialdata(two, factor=3.0)
    table, second = sdata.tables["table"], other.tables["table"]
    second.obs["region"] = pd.Categorical(["more"] * second.n_obs)
    both = ad.concat([table, second], index_unique="-")
    both.obs["batch"] = "one"
    del both.obsm["spatial"]
    both = TableModel.parse(both, region=["squares", "more"], region_key="region", instance_key="id")
    joint = SpatialData(shapes={"squares": sdata["squares"], "more": other["squares"]}, tables={"table": both})
    with pytest.raises(ValueError, match="batch 'one' lies in regions 'more', 'squares'"):
        sg.pp.pseudospots(joint, microns_per_unit=1, library_key="batch")
    spots = sg.pp.pseudospots(joint, microns_per_unit=1, min_bins=5)
    for region, alone in (("squares", one), ("more", two)):
        expected = sg.pp.pseudospots(alone, microns_per_unit=1, min_bins=5)
        of = spots.obs["region"] == region
        np.testing.assert_array_equal(spots[of].X.toarray(), expected.X.toarray())
        circles = joint.shapes[f"pseudospots_circles_{region}"]
        assert circles.index.tolist() == spots.obs_names[of].tolist()
        assert get_transformation(circles) == get_transformation(joint[region])


def test_elements_of_others_are_kept(bins):
    sdata = as_spatialdata(bins)
    sdata.shapes["pseudospots"] = sdata["squares"]
    with pytest.raises(ValueError, match="'pseudospots' that isn't of this function"):
        sg.pp.pseudospots(sdata, microns_per_unit=1)
    assert "pseudospot" not in sdata.tables["table"].obs
    sg.pp.pseudospots(sdata, microns_per_unit=1, key_added="spot")
    assert "spots" in sdata.tables


def test_spatialdata_without_regions(bins):
    sdata = SpatialData(tables={"table": TableModel.parse(bins)})
    sg.pp.pseudospots(sdata, microns_per_unit=1)
    assert list(sdata.shapes) == ["pseudospots_circles"]


def test_labels_give_coordinates():
    labels = np.kron(np.arange(1, 401).reshape(20, 20), np.ones((4, 4), dtype=int))
    table = AnnData(sparse.csr_matrix(np.ones((400, 2), dtype=np.float32)))
    table.obs["region"], table.obs["id"] = pd.Categorical(["cells"] * 400), np.arange(1, 401)
    table = TableModel.parse(table, region="cells", region_key="region", instance_key="id")
    sdata = SpatialData(labels={"cells": Labels2DModel.parse(labels, dims=("y", "x"))}, tables={"table": table})
    spots = sg.pp.pseudospots(sdata, microns_per_unit=2.5)
    assert spots.obsm["spatial"].min(axis=0).tolist() == [2.0, 2.0]
