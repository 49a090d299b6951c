"""Pseudo-spots of bins: sums against brute force, containers, units, refusals."""

import warnings

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from binned import two_slides
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import sagefm as sg
from sagefm.pp._regions import pseudospots as _pseudospots
from sagefm.pp._regions.hexagons import lattice_points, nearest_centers


def by_brute_force(bins, diameter, spacing, scale=1.0):
    """Sums of the bins by nearest center, over all centers of a lattice larger than the slide."""
    xy = bins.obsm["spatial"] * scale
    xy = xy - xy.min(axis=0)
    reach = int(xy.max() / spacing * 2) + 4
    positions = [(r, c) for r in range(reach) for c in range(reach) if (r + c) % 2 == 0]
    centers = np.array([(c * spacing / 2, r * spacing * 3**0.5 / 2) for r, c in positions])
    distance = np.sqrt(((xy[:, None] - centers) ** 2).sum(axis=2))
    sums = {}
    for i, best in enumerate(distance.argmin(axis=1)):
        if diameter is None or distance[i, best] <= diameter / 2 + 1e-9:
            sums[positions[best]] = sums.get(positions[best], 0) + bins.X[i].toarray()[0]
    return sums


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 1000)), min_size=1, max_size=40),
    st.sampled_from([52.4, 100.0, 333.3]),
)
def test_nearest_center(points, spacing):
    xy = np.array(points)
    position, distance = nearest_centers(xy, spacing)
    assert (position >= 0).all()
    assert (position.sum(axis=1) % 2 == 0).all()
    row, col = (grid.ravel() for grid in np.meshgrid(np.arange(-2, 30), np.arange(-2, 50)))
    even = (row + col) % 2 == 0
    centers = lattice_points(row[even], col[even], spacing)
    nearest = np.linalg.norm(xy[:, None] - centers, axis=2).min(axis=1)
    np.testing.assert_allclose(distance, nearest, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(xy - lattice_points(*position.T, spacing), axis=1), nearest, atol=1e-9)


# Spacings at which no bin is as far from two centers.
@pytest.mark.parametrize(("diameter", "spacing"), [(55.0, 100.3), (55, 57.7), (None, 61.3)])
@pytest.mark.parametrize("scale", [1.0, 0.2738])
def test_sums_match_brute_force(bins, diameter, spacing, scale):
    bins.obsm["spatial"] = bins.obsm["spatial"] / scale
    spots = sg.pp.pseudospots(bins, diameter, spacing=spacing, microns_per_unit=scale, min_bins=1)
    expected = by_brute_force(bins, diameter, spacing, scale)
    found = dict(zip(zip(spots.obs["array_row"], spots.obs["array_col"], strict=True), spots.X.toarray(), strict=True))
    assert found.keys() == expected.keys()
    for position, counts in expected.items():
        np.testing.assert_array_equal(found[position], counts)
    counted = bins.obs["in_pseudospot"]
    np.testing.assert_array_equal(
        bins.obs["pseudospot"][counted].value_counts()[spots.obs_names], spots.obs["n_bins"].to_numpy()
    )
    assert spots.obs["n_bins"].sum() == counted.sum()


def test_whole_hexagons_lose_nothing(bins):
    spots = sg.pp.pseudospots(bins, None, spacing=60, microns_per_unit=1, min_bins=1)
    np.testing.assert_array_equal(spots.X.sum(axis=0), bins.X.sum(axis=0))
    assert bins.obs["in_pseudospot"].all()
    assert bins.obs["pseudospot"].notna().all()


def test_what_is_made(bins, log):
    spots = sg.pp.pseudospots(bins, microns_per_unit=1)
    assert isinstance(spots.X, sparse.csr_matrix)
    assert spots.X.dtype == np.float32
    assert spots.X.has_canonical_format
    assert spots.var.equals(bins.var)
    assert spots.obs.columns.tolist() == ["array_row", "array_col", "n_bins"]
    for name, row, col in zip(spots.obs_names, spots.obs["array_row"], spots.obs["array_col"], strict=True):
        assert name == f"pseudospot_{row:04d}x{col:04d}"
    # Every bin is nearer to its own center than half the diameter where it is counted, and nearer than to others.
    center = pd.DataFrame(spots.obsm["spatial"], index=spots.obs_names).reindex(bins.obs["pseudospot"]).to_numpy()
    distance = np.linalg.norm(bins.obsm["spatial"] - center, axis=1)
    has = bins.obs["pseudospot"].notna().to_numpy()
    np.testing.assert_array_equal(bins.obs["in_pseudospot"], has & (np.nan_to_num(distance, nan=1e9) <= 27.5 + 1e-6))
    assert spots.uns["pseudospot"]["params"]["diameter"] == 55
    assert spots.uns["pseudospot"]["params"]["bin_size"] == [8.0]
    assert f"{bins.obs['in_pseudospot'].sum()} of 3600 bins to {spots.n_obs} pseudo-spots" in log.text


def test_graph_takes_the_lattice(bins):
    spots = sg.pp.pseudospots(bins, 30, spacing=40, microns_per_unit=1)
    sg.pp.neighborhood_graph(spots)
    assert spots.uns["sage_neighbors"]["params"]["method"] == "visium"
    # Distances in the graph are in spacings, and so are those of the centers.
    i, j = spots.obsp["sage_distances"].nonzero()
    xy = spots.obsm["spatial"]
    np.testing.assert_allclose(np.linalg.norm(xy[i] - xy[j], axis=1), 40 * spots.obsp["sage_distances"].data)
    assert spots.obsp["sage_distances"].data.min() == 1


def test_small_pseudospots_are_dropped(bins):
    all_spots = sg.pp.pseudospots(bins, microns_per_unit=1, min_bins=1, key_added="all")
    limit = np.ceil(all_spots.obs["n_bins"].median() / 4)
    spots = sg.pp.pseudospots(bins, microns_per_unit=1)
    assert spots.obs["n_bins"].min() >= limit
    assert set(spots.obs_names) == set(all_spots.obs_names[all_spots.obs["n_bins"] >= limit])
    spots = sg.pp.pseudospots(bins, microns_per_unit=1, min_bins=30)
    assert 0 < spots.n_obs < all_spots.n_obs
    dropped = ~bins.obs["all"].isin(spots.obs_names)
    assert dropped.any()
    assert (bins.obs["pseudospot"].isna() == dropped).all()
    assert not bins.obs["in_pseudospot"][dropped].any()


def test_slide_cut_into_bins_comes_back():
    """Planted: the counts of every Visium spot are dealt out to the bins within it."""
    slide = sg.datasets.simulated_visium(8, 9, n_genes=100, rng=3)
    row, col = (slide.obs[key].to_numpy() for key in ("array_row", "array_col"))
    centers = lattice_points(row, col, 100.0)
    grid = 8.0 * np.argwhere(np.ones((112, 80)))
    distance = np.linalg.norm(grid[:, None] - centers, axis=2)
    spot = np.where(distance.min(axis=1) <= 27.5, distance.argmin(axis=1), -1)
    generator = np.random.default_rng(0)
    counts = np.zeros((len(grid), slide.n_vars), dtype=np.int32)
    for i, depth in enumerate(slide.X.toarray().astype(int)):
        own = np.flatnonzero(spot == i)
        counts[own] = generator.multinomial(depth, np.full(len(own), 1 / len(own))).T
    bins = AnnData(counts, var=slide.var, obsm={"spatial": grid})
    spots = sg.pp.pseudospots(bins, microns_per_unit=1)
    assert spots.n_obs >= slide.n_obs
    at = {position: i for i, position in enumerate(zip(spots.obs["array_row"], spots.obs["array_col"], strict=True))}
    order = [at[position] for position in zip(row, col, strict=True)]
    np.testing.assert_array_equal(spots.X.toarray()[order], slide.X.toarray())


def as_dask(matrix):
    return da.from_array(matrix.toarray(), chunks=(700, 3))


@pytest.mark.parametrize(
    "container",
    [sparse.csc_matrix, sparse.csr_array, lambda x: x.toarray(), lambda x: x.astype(np.uint8), as_dask, "h5ad", "lazy"],
    ids=["csc", "csr_array", "dense", "uint8", "dask", "h5ad", "lazy"],
)
def test_containers(bins, container, tmp_path, monkeypatch):
    expected = sg.pp.pseudospots(bins.copy(), microns_per_unit=1)
    monkeypatch.setattr(_pseudospots, "BLOCK_VALUES", 400 * bins.n_vars)
    if container == "h5ad":
        bins.write_h5ad(tmp_path / "bins.h5ad")
        bins = ad.read_h5ad(tmp_path / "bins.h5ad", backed="r")
    elif container == "lazy":
        bins.write_zarr(tmp_path / "bins.zarr")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bins = ad.experimental.read_lazy(tmp_path / "bins.zarr")
    else:
        bins.layers["raw"] = container(bins.X)
        bins.X = bins.X * 0.5
    layer = "raw" if "raw" in bins.layers else None
    spots = sg.pp.pseudospots(bins, microns_per_unit=1, layer=layer)
    assert (spots.X != expected.X).nnz == 0
    assert spots.obs.equals(expected.obs)
    assert bins.obs["in_pseudospot"].sum() == expected.obs["n_bins"].sum()


def test_libraries_have_lattices_of_their_own():
    one, two, both = two_slides()
    both.obsm["spatial"][both.obs["slide"] == "a"] /= 0.5
    both.uns["spatial"] = {name: {"scalefactors": {"microns_per_pixel": f}} for name, f in (("a", 0.5), ("b", 1.0))}
    spots = sg.pp.pseudospots(both, library_key="slide", min_bins=5)
    for name, alone in (("b", one), ("a", two)):
        expected = sg.pp.pseudospots(alone, microns_per_unit=1, min_bins=5)
        found = spots[spots.obs["slide"] == name]
        assert found.obs_names.tolist() == [f"{name}_{spot}" for spot in expected.obs_names]
        np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
        factor = 0.5 if name == "a" else 1.0
        np.testing.assert_allclose(found.obsm["spatial"] * factor, expected.obsm["spatial"])
        assert spots.uns["spatial"][name]["scalefactors"]["spot_diameter_fullres"] == 55 / factor
    assert "spot_diameter_fullres" not in both.uns["spatial"]["a"]["scalefactors"]


def test_unit_from_scale_factors(bins):
    bins.uns["spatial"] = {"is_single": True, "s1": {"scalefactors": {"microns_per_pixel": 1.0}, "images": {}}}
    found = sg.pp.pseudospots(bins)
    assert found.uns["pseudospot"]["params"]["microns_per_unit"] == [1.0]
    assert found.uns["spatial"] == {
        "s1": {"scalefactors": {"microns_per_pixel": 1.0, "spot_diameter_fullres": 55.0}, "images": {}}
    }
    # Of other coordinates they say nothing.
    bins.obsm["um"] = bins.obsm["spatial"]
    with pytest.raises(ValueError, match="the unit of the coordinates isn't known.*microns_per_unit"):
        sg.pp.pseudospots(bins, spatial_key="um")


def test_single_cells():
    xy = np.random.default_rng(0).uniform(0, 800, (4000, 2))
    cells = AnnData(sparse.csr_matrix(np.ones((4000, 2), dtype=np.float32)), obsm={"spatial": xy})
    spots = sg.pp.pseudospots(cells, microns_per_unit=1)
    np.testing.assert_array_equal(spots.X[:, 0].toarray().ravel(), spots.obs["n_bins"])
    assert spots.n_obs > 50


def three_dimensions(bins):
    bins.obsm["spatial"] = np.column_stack([bins.obsm["spatial"], np.zeros(bins.n_obs)])


@pytest.mark.parametrize(
    ("change", "kwargs", "error", "message"),
    [
        (None, {}, ValueError, "unit of the coordinates isn't known.*Pass microns_per_unit"),
        (None, {"microns_per_unit": 0}, ValueError, "microns_per_unit=0 has to be above 0"),
        (None, {"microns_per_unit": "1"}, TypeError, "has to be a number"),
        (None, {"microns_per_unit": 1, "diameter": -5}, ValueError, "diameter=-5 has to be above 0"),
        (None, {"microns_per_unit": 1, "diameter": np.inf}, ValueError, "finite"),
        (None, {"microns_per_unit": 1, "diameter": 101}, ValueError, "a bin belongs to one pseudo-spot only"),
        (None, {"microns_per_unit": 1, "spacing": 0}, ValueError, "spacing=0"),
        (None, {"microns_per_unit": 1, "min_bins": 0}, ValueError, "min_bins=0 has to be at least 1"),
        (None, {"microns_per_unit": 1, "min_bins": 1000}, ValueError, "no pseudo-spot has min_bins=1000 bins"),
        (None, {"microns_per_unit": 1, "spatial_key": "xy"}, KeyError, "'xy' not in adata.obsm"),
        (None, {"microns_per_unit": 1, "library_key": "slide"}, KeyError, "'slide' not in adata.obs"),
        (None, {"microns_per_unit": 1, "layer": "raw"}, KeyError, "layer 'raw'"),
        (None, {"microns_per_unit": 7}, ValueError, "56 µm apart and pseudo-spots 55 µm wide.*nothing to add up"),
        (None, {"microns_per_unit": 14, "diameter": None}, ValueError, "112 µm apart and pseudo-spots 100 µm"),
        (three_dimensions, {"microns_per_unit": 1}, ValueError, "3 dimensions"),
        (lambda a: a.obsm["spatial"].__setitem__((3, 0), np.nan), {"microns_per_unit": 1}, ValueError, "'b3'"),
        (lambda a: a.obsm["spatial"].__imul__(0), {"microns_per_unit": 1}, ValueError, "coincide.*library_key"),
        (lambda a: a.X.data.__setitem__(5, -1), {"microns_per_unit": 1}, ValueError, "negative values"),
        (lambda a: a.X.data.__imul__(0.3), {"microns_per_unit": 1}, ValueError, "not counts"),
        (
            lambda a: a.obs.__setitem__("mine", 1),
            {"microns_per_unit": 1, "key_added": "mine"},
            ValueError,
            r"obs\['mine'\] exists",
        ),
        (
            lambda a: a.obs.__setitem__("in_pseudospot", 1),
            {"microns_per_unit": 1},
            ValueError,
            r"obs\['in_pseudospot'\] exists",
        ),
    ],
)
def test_bad_input_is_refused_and_nothing_written(bins, change, kwargs, error, message):
    if change is not None:
        change(bins)
    before = bins.copy()
    with pytest.raises(error, match=message):
        sg.pp.pseudospots(bins, **kwargs)
    assert bins.obs.equals(before.obs)
    assert not bins.uns


def test_one_bin_is_too_few(bins):
    with pytest.raises(ValueError, match="the slide has 1 bins"):
        sg.pp.pseudospots(bins[:1].copy(), microns_per_unit=1)
