"""Pseudo-spots: which bin goes where, what is added up, and the way back."""

import warnings

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Scale, get_transformation

import sagefm as sg
from sagefm.pp._regions import pseudospots as _pseudospots
from sagefm.pp._regions.hexagons import lattice_points, nearest_centers


def make_bins(n=60, size=8.0, n_genes=7, rng=0, shuffled=True):
    """Square bins, ``n`` a side, in µm."""
    generator = np.random.default_rng(rng)
    counts = generator.poisson(0.6, (n * n, n_genes)).astype(np.float32)
    xy = size * np.argwhere(np.ones((n, n)))[:, ::-1] + [500.0, 80.0]
    if shuffled:
        xy = generator.permutation(xy)
    var = pd.DataFrame({"id": range(n_genes)}, index=[f"g{i}" for i in range(n_genes)])
    obs = pd.DataFrame(index=[f"b{i}" for i in range(n * n)])
    return AnnData(sparse.csr_matrix(counts), obs=obs, var=var, obsm={"spatial": xy})


@pytest.fixture
def bins():
    return make_bins()


def by_brute_force(bins, diameter, spacing, scale=1.0):
    """Sums of the bins by nearest centre, over all centres of a lattice larger than the slide."""
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


# Spacings at which no bin is as far from two centres.
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
    # Every bin is nearer to its own centre than half the diameter where it is counted, and nearer than to others.
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
    # Distances in the graph are in spacings, and so are those of the centres.
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


def two_slides():
    one, two = make_bins(), make_bins(40, rng=1)
    both = ad.concat({"b": one, "a": two}, label="slide", index_unique="-")
    order = np.random.default_rng(2).permutation(both.n_obs)
    return one, two, both[order].copy()


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
        (lambda a: a.X.data.__imul__(0.3), {"microns_per_unit": 1}, ValueError, "no counts"),
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


# The way back


@pytest.fixture
def mapped(bins):
    spots = sg.pp.pseudospots(bins, microns_per_unit=1, min_bins=30)
    n = spots.n_obs
    spots.obs["cluster"] = pd.Categorical([str(i % 3) for i in range(n)])
    spots.obs["text"] = [f"t{i}" for i in range(n)]
    spots.obs["flag"] = np.arange(n) % 2 == 0
    spots.obs["score"] = np.arange(n) / 2
    spots.obsm["X_sage"] = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    spots.obsm["whole"] = np.arange(n)[:, None]
    spots.obsm["frame"] = pd.DataFrame({"a": np.arange(n), "b": 0.5}, index=spots.obs_names)
    return bins, spots


def test_mapping_back(mapped, log):
    bins, spots = mapped
    names = ["cluster", "text", "flag", "score", "n_bins"]
    assert sg.pp.from_pseudospots(bins, spots, obs=names, obsm=["X_sage", "whole", "frame"]) is None
    row = {name: i for i, name in enumerate(spots.obs_names)}
    has = bins.obs["pseudospot"].notna().to_numpy()
    assert 0 < has.sum() < bins.n_obs
    for i, name in enumerate(bins.obs["pseudospot"]):
        for column in names:
            value = bins.obs[column].iloc[i]
            assert value == spots.obs[column].iloc[row[name]] if has[i] else pd.isna(value)
        for key in ("X_sage", "whole"):
            value = bins.obsm[key][i]
            assert (value == spots.obsm[key][row[name]]).all() if has[i] else np.isnan(value).all()
    assert bins.obsm["X_sage"].dtype == np.float32
    assert bins.obsm["frame"].index.equals(bins.obs_names)
    assert (bins.obsm["frame"]["a"].isna().to_numpy() == ~has).all()
    assert bins.obs["cluster"].cat.categories.tolist() == ["0", "1", "2"]
    assert bins.obs["flag"].dtype == "boolean"
    assert bins.obs["n_bins"].dtype == "Int64"
    assert "obsm['X_sage']" in log.text


def test_what_is_written_can_be_saved(mapped, tmp_path):
    bins, spots = mapped
    sg.pp.from_pseudospots(bins, spots, obs=["cluster", "text", "flag"], obsm=["X_sage", "frame"])
    for name, adata in (("bins", bins), ("spots", spots)):
        for write, read in ((adata.write_h5ad, ad.read_h5ad), (adata.write_zarr, ad.read_zarr)):
            path = tmp_path / f"{name}.{write.__name__[6:]}"
            write(path)
            back = read(path)
            assert back.obs.columns.tolist() == adata.obs.columns.tolist()
            assert back.uns["pseudospot"]["params"]["function"] == "pp.pseudospots"
    # Mapped again from files: its own keys may be overwritten.
    back = ad.read_h5ad(tmp_path / "bins.h5ad")
    again = ad.read_h5ad(tmp_path / "spots.h5ad")
    again.obs["flag"] = ~again.obs["flag"].astype(bool)
    sg.pp.from_pseudospots(back, again, obs=["flag"])
    known = bins.obs["pseudospot"].notna()
    assert (back.obs["flag"][known] != bins.obs["flag"][known]).all()


def test_mapping_defaults_copies_and_parts(mapped):
    bins, spots = mapped
    result = sg.pp.from_pseudospots(bins, spots, copy=True)
    assert "X_sage" not in bins.obsm
    assert result.uns["pseudospot"]["mapped"] == {"obs": [], "obsm": ["X_sage"]}
    part = spots[:4]  # a view
    sg.pp.from_pseudospots(bins, part, obs=["score"])
    assert (bins.obs["score"].notna() == bins.obs["pseudospot"].isin(part.obs_names)).all()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"obs": ["nothing"]}, KeyError, "'nothing' not in spots.obs"),
        ({"obsm": ["nothing"]}, KeyError, "'nothing' not in spots.obsm"),
        ({"obs": "score"}, TypeError, "list of keys"),
        ({"obsm": []}, ValueError, "nothing to map"),
        ({"obsm": ["spatial"]}, ValueError, r"obsm\['spatial'\] exists"),
        ({"key": "other"}, KeyError, "'other' not in adata.obs"),
        ({"obsm": ["sparse"]}, TypeError, "neither array nor data frame"),
    ],
)
def test_bad_mapping_is_refused_and_nothing_written(mapped, kwargs, error, message):
    bins, spots = mapped
    spots.obsm["sparse"] = sparse.csr_matrix((spots.n_obs, 2))
    columns = bins.obs.columns.tolist()
    with pytest.raises(error, match=message):
        sg.pp.from_pseudospots(bins, spots, **kwargs)
    assert bins.obs.columns.tolist() == columns
    assert list(bins.obsm) == ["spatial"]


def test_pseudospots_of_another_call_are_refused(mapped):
    bins, spots = mapped
    sg.pp.pseudospots(bins, spacing=90, microns_per_unit=1)
    with pytest.raises(ValueError, match="another call.*spacing"):
        sg.pp.from_pseudospots(bins, spots)
    del spots.uns["pseudospot"]
    spots.obs_names = [f"x{i}" for i in range(spots.n_obs)]
    with pytest.raises(ValueError, match="no bin lies in a pseudo-spot"):
        sg.pp.from_pseudospots(bins, spots)


def test_embedding_goes_the_whole_way(slide, tiny):
    """Bins that are the slide's spots, four in each: the embedding of the pseudo-spots is that of four-fold counts."""
    row, col = (slide.obs[key].to_numpy() for key in ("array_row", "array_col"))
    corner = lattice_points(row, col, 100.0) + 10
    xy = np.concatenate([corner + offset for offset in ([-5, -5], [-5, 5], [5, -5], [5, 5])])
    bins = AnnData(sparse.vstack([slide.X] * 4, format="csr"), var=slide.var[[]], obsm={"spatial": xy})
    bins.obs_names = [f"b{i}" for i in range(bins.n_obs)]
    spots = sg.pp.pseudospots(bins, microns_per_unit=1)
    assert spots.n_obs == slide.n_obs
    slide.X = slide.X * 4
    for adata in (spots, slide):
        sg.pp.neighborhood_graph(adata)
        sg.tl.sage_embed(adata, tiny, device="cpu")
    sg.pp.from_pseudospots(bins, spots)
    for part in range(4):
        rows = slice(part * slide.n_obs, (part + 1) * slide.n_obs)
        np.testing.assert_allclose(bins.obsm["X_sage"][rows], slide.obsm["X_sage"], rtol=1e-4, atol=1e-5)


# SpatialData


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
