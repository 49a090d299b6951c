"""Dense maps of predicted expression."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel

import sagefm as sg
from sagefm.histology import expression as _expression
from sagefm.tl._points import standardize

KEY = "histology_expression"


def test_a_point_at_a_spot_gets_its_prediction(predicted):
    dense = sg.tl.superresolve_expression(predicted, 50, min_tissue=0)
    place = pd.MultiIndex.from_arrays(dense.obsm["spatial"].round(3).T)
    spots = pd.MultiIndex.from_arrays(predicted.obsm["spatial"].round(3).T)
    both = np.flatnonzero(spots.isin(place))
    assert len(both) >= 6, "the grid starts at the first spots' row, whose spots are 100 apart"
    points = place.get_indexer(spots[both])
    assert (dense.obs["nearest_spot"].iloc[points].to_numpy() == predicted.obs_names[both]).all()
    np.testing.assert_allclose(dense.X[points], predicted.obsm[KEY].iloc[both], atol=1e-4)


@pytest.mark.slow
def test_aggregated_to_spots_it_agrees(predicted):
    dense = sg.tl.superresolve_expression(predicted, 25)
    assert dense.shape == (dense.n_obs, 40)
    assert dense.n_obs > 8 * predicted.n_obs
    assert dense.X.dtype == np.float32
    near = np.linalg.norm(
        dense.obsm["spatial"] - predicted.obsm["spatial"][predicted.obs_names.get_indexer(dense.obs["nearest_spot"])],
        axis=1,
    )
    frame = pd.DataFrame(dense.X, columns=dense.var_names)[near < 30]
    mean = frame.groupby(dense.obs["nearest_spot"].to_numpy()[near < 30], observed=True).mean()
    spots = predicted.obsm[KEY].loc[mean.index]
    varied = spots.columns[predicted.var[f"{KEY}_reliability"][spots.columns] > 0.3]
    assert len(varied) > 5
    r = [pearsonr(mean[gene], spots[gene])[0] for gene in varied]
    assert np.median(r) > 0.9
    np.testing.assert_allclose(dense.var["reliability"], predicted.var.loc[dense.var_names, f"{KEY}_reliability"])
    assert dense.uns["superresolved"]["params"]["stride"] == 25
    assert (dense.obs["histology_tissue"] >= 0.25).all()
    assert set(dense.uns["spatial"]) == set(predicted.uns["spatial"])


def test_points_are_of_a_fit_that_has_not_seen_them(predicted):
    """The upper half is predicted by what the lower one shows: a model of that half alone says the same."""
    alone = predicted[predicted.obs["half"] == "lower"].copy()
    upper = predicted[predicted.obs["half"] == "upper"].copy()
    depth = predicted.uns[KEY]["params"]["depth"]
    target = _expression.read_expression(alone, list(predicted.obsm[KEY].columns), None, depth)
    scale = predicted.uns[KEY]["params"]["scale"]
    points = standardize(predicted.obsm["X_histology"], np.full(predicted.n_obs, "a"))
    points = points if scale == "slide" else predicted.obsm["X_histology"]
    rows = (predicted.obs["half"] == "lower").to_numpy()
    groups, lower = np.full(rows.sum(), "lower"), np.arange(rows.sum())
    fitted = _expression.RidgeRegressor().fit(points[rows], target.values, groups, lower)
    np.testing.assert_allclose(fitted(points[~rows]), upper.obsm[KEY], atol=1e-4)


def test_it_is_told_if_the_slide_has_changed(predicted):
    changed = predicted.copy()
    changed.X[:, :] = changed.X[np.random.default_rng(0).permutation(changed.n_obs)]
    with pytest.raises(ValueError, match="isn't what counts and features give now"):
        sg.tl.superresolve_expression(changed, 50)


def test_dense_map_from_a_reference(predicted):
    query = predicted[predicted.obs["half"] == "upper"].copy()
    reference = predicted[predicted.obs["half"] == "lower"].copy()
    query.X[:] = 0
    sg.tl.predict_expression(query, 10, reference=reference)
    with pytest.raises(ValueError, match="pass it as reference"):
        sg.tl.superresolve_expression(query, 50)
    dense = sg.tl.superresolve_expression(query, 50, reference=reference)
    assert dense.n_vars == 10
    with pytest.raises(ValueError, match="without a reference: leave it out"):
        sg.tl.superresolve_expression(predicted, 50, reference=reference)


def forget_the_unit(adata):
    adata.uns["histology"]["params"].pop("microns_per_unit")
    adata.uns["spatial"]["simulated"]["scalefactors"].pop("microns_per_pixel", None)


DENSE_WRONG = {
    "no prediction": (lambda a: a.uns.pop(KEY), {}, KeyError, "Run sg.tl.predict_expression"),
    "features of others": (lambda a: a.uns.pop("X_histology"), {}, ValueError, "isn't of sg.tl.histology_embed"),
    "no patches": (lambda a: a.uns.pop("histology"), {}, KeyError, "Run sg.pp.histology_patches"),
    "no stride": (lambda a: None, {"stride": 0}, ValueError, "stride"),
    "a tiny stride": (lambda a: None, {"stride": 0.01}, ValueError, "larger stride"),
    "glass": (lambda a: None, {"min_tissue": 1.1}, ValueError, "no point"),
    "no unit": (lambda a: forget_the_unit(a), {}, ValueError, "Pass microns_per_unit"),
}


@pytest.mark.parametrize("case", DENSE_WRONG)
def test_what_gives_no_dense_map(case, predicted):
    change, options, error, message = DENSE_WRONG[case]
    adata = predicted.copy()
    change(adata)
    with pytest.raises(error, match=message):
        sg.tl.superresolve_expression(adata, **{"stride": 50, **options})


def in_spatialdata(adata):
    pixels = adata.uns["spatial"]["simulated"]["images"]["hires"]
    image = Image2DModel.parse(np.moveaxis(pixels, 2, 0), dims=("c", "y", "x"))
    shapes = ShapesModel.parse(adata.obsm["spatial"], geometry=0, radius=20, index=adata.obs_names)
    table = ad.AnnData(adata.X.copy(), obs=adata.obs.copy(), var=adata.var[[]].copy())
    table.obs["region"], table.obs["spot"] = pd.Categorical(["spots"] * adata.n_obs), adata.obs_names.to_numpy()
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="spot")
    return SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table})


@pytest.mark.slow
def test_dense_map_of_a_spatialdata(predicted):
    sdata = in_spatialdata(predicted)
    sg.pp.histology_patches(sdata, size=48, microns_per_unit=1.0)
    sg.tl.histology_embed(sdata)
    sg.tl.predict_expression(sdata, 10, group_key="half")
    dense = sg.tl.superresolve_expression(sdata, 50)
    assert sdata.tables["superresolved"] is dense
    shapes = sdata.shapes["superresolved_circles"]
    assert (shapes.radius == 25).all()
    np.testing.assert_allclose(np.column_stack([shapes.geometry.x, shapes.geometry.y]), dense.obsm["spatial"])
    sg.tl.superresolve_expression(sdata, 60)
    del sdata.tables["superresolved"]
    with pytest.raises(ValueError, match="isn't of this function"):
        sg.tl.superresolve_expression(sdata, 60)
