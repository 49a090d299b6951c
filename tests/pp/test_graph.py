import numpy as np
import pandas as pd
import pytest
import squidpy as sq
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Scale, get_transformation

import sagefm as sg


def lattice(n_rows=12, n_cols=12):
    row, col = np.divmod(np.arange(n_rows * n_cols), n_cols)
    return make(row, 2 * col + row % 2)


def make(row, col):
    obs = pd.DataFrame({"array_row": row, "array_col": col}, index=[f"s{i}" for i in range(len(row))])
    adata = AnnData(csr_matrix((len(row), 1), dtype=np.float32), obs=obs)
    adata.obsm["spatial"] = np.column_stack([np.asarray(col) / 2.0, np.asarray(row) * np.sqrt(3) / 2])
    return adata


def neighbors_of(adata, i, key="sage_connectivities"):
    return set(adata.obsp[key][i].indices)


def by_brute_force(row, col, k=14):
    """The contract, spelled out one spot at a time."""
    result = []
    for i in range(len(row)):
        candidates = []
        for j in range(len(row)):
            dr, dc = int(row[j] - row[i]), int(col[j] - col[i])
            if j != i:
                candidates.append(((dc**2 + 3 * dr**2, abs(dr), dc, dr), j))
        result.append({j for _, j in sorted(candidates)[:k]})
    return result


def test_interior_spot_has_the_papers_stencil():
    adata = lattice()
    sg.pp.neighborhood_graph(adata)
    row, col = adata.obs["array_row"].to_numpy(), adata.obs["array_col"].to_numpy()
    i = int(np.flatnonzero((row == 6) & (col == 12))[0])
    found = {(row[j] - 6, col[j] - 12) for j in neighbors_of(adata, i)}
    same_row = {(0, -4), (0, -2), (0, 2), (0, 4)}
    adjacent = {(r, c) for r in (-1, 1) for c in (-3, -1, 1, 3)}
    assert found == same_row | adjacent | {(-2, 0), (2, 0)}


def test_written_graph():
    adata = lattice()
    assert sg.pp.neighborhood_graph(adata) is None
    graph = adata.obsp["sage_connectivities"]
    assert isinstance(graph, csr_matrix)
    assert (np.diff(graph.indptr) == 14).all()
    assert (graph.data == 1).all()
    assert graph.diagonal().sum() == 0
    assert graph.has_sorted_indices
    distances = adata.obsp["sage_distances"]
    np.testing.assert_array_equal(distances.indices, graph.indices)
    # On the lattice the unit is the spacing, which is 1 in these coordinates too.
    i, j = graph.nonzero()
    xy = adata.obsm["spatial"]
    np.testing.assert_allclose(distances.data, np.linalg.norm(xy[i] - xy[j], axis=1))
    assert adata.uns["sage_neighbors"]["connectivities_key"] == "sage_connectivities"
    assert adata.uns["sage_neighbors"]["params"]["method"] == "visium"
    assert not adata.obs["sage_far_neighbors"].any()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=16, max_size=90),
    st.randoms(use_true_random=False),
)
def test_visium_matches_brute_force_with_holes_in_any_order(spots, random):
    spots = sorted(spots)
    random.shuffle(spots)
    row = np.array([r for r, _ in spots])
    col = np.array([2 * c + r % 2 for r, c in spots])
    adata = make(row, col)
    sg.pp.neighborhood_graph(adata, "visium")
    expected = by_brute_force(row, col)
    assert [neighbors_of(adata, i) for i in range(len(row))] == expected


def test_visium_reaches_far_islands():
    """Spots beyond every precomputed offset still get the nearest ones, and are flagged."""
    base = lattice(6, 6)
    row = np.concatenate([base.obs["array_row"], [200, 201]])
    col = np.concatenate([base.obs["array_col"], [400, 401]])
    adata = make(row, col)
    sg.pp.neighborhood_graph(adata, "visium")
    assert [neighbors_of(adata, i) for i in range(len(row))] == by_brute_force(row, col)
    assert adata.obs["sage_far_neighbors"].tolist() == [False] * 36 + [True] * 2


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=16, max_size=70),
    st.sampled_from([1.0, 137.3]),
)
def test_knn_matches_brute_force_on_ties_and_coincident_spots(points, scale):
    xy = np.array(points, dtype=float)
    if len(np.unique(xy, axis=0)) < 2:
        return
    distinct = [np.sqrt(((xy - xy[i]) ** 2).sum(1)) for i in range(len(xy))]
    if not any(np.partition(d, 1)[1] > 0 for d in distinct):
        return  # every spot has a double: refused, tested below
    adata = AnnData(csr_matrix((len(xy), 1), dtype=np.float32))
    adata.obsm["spatial"] = xy * scale
    sg.pp.neighborhood_graph(adata, "knn")
    for i in range(len(xy)):
        dx, dy = (xy - xy[i]).T
        order = sorted((j for j in range(len(xy)) if j != i), key=lambda j: (dx[j] ** 2 + dy[j] ** 2, dy[j], dx[j], j))
        assert neighbors_of(adata, i) == set(order[:14])


def test_knn_ties_survive_rounding_errors():
    """A lattice that is turned and scaled keeps its neighborhoods, though its distances are no longer equal."""
    row, col = np.divmod(np.arange(100), 10)
    xy = np.column_stack([col, row]).astype(float)
    exact, noisy = (AnnData(csr_matrix((100, 1), dtype=np.float32)) for _ in range(2))
    exact.obsm["spatial"], noisy.obsm["spatial"] = xy, xy * 0.1 + 1e4 / 3
    for adata in (exact, noisy):
        sg.pp.neighborhood_graph(adata, "knn")
    assert (exact.obsp["sage_connectivities"] != noisy.obsp["sage_connectivities"]).nnz == 0


def test_knn_in_three_dimensions():
    xyz = np.random.default_rng(0).normal(size=(60, 3))
    adata = AnnData(csr_matrix((60, 1), dtype=np.float32), obsm={"spatial": xyz})
    sg.pp.neighborhood_graph(adata)
    distance = np.linalg.norm(xyz[:, None] - xyz, axis=2)
    for i in range(60):
        assert neighbors_of(adata, i) == set(np.argsort(distance[i])[1:15])


@pytest.mark.parametrize("method", ["visium", "knn"])
def test_neighbors_stay_within_their_library(method):
    one = lattice(8, 8)
    both = make(np.tile(one.obs["array_row"], 2), np.tile(one.obs["array_col"], 2))
    order = np.random.default_rng(0).permutation(128)
    both.obs["slide"] = pd.Categorical(["a"] * 64 + ["b"] * 64, categories=["b", "unused", "a"])
    both = both[order].copy()
    sg.pp.neighborhood_graph(both, method, library_key="slide")
    sg.pp.neighborhood_graph(one, method)
    graph = both.obsp["sage_connectivities"]
    slides = both.obs["slide"].to_numpy()
    i, j = graph.nonzero()
    assert (slides[i] == slides[j]).all()
    back = np.argsort(order)
    alone = graph[back][:, back][:64, :64]
    assert (alone != one.obsp["sage_connectivities"]).nnz == 0


def test_squidpy_reads_the_graph(slide):
    slide.X = slide.X.astype(np.float64)
    sq.gr.nhood_enrichment(slide, cluster_key="domain", connectivity_key="sage", n_perms=20, show_progress_bar=False)
    assert slide.uns["domain_nhood_enrichment"]["zscore"].shape == (4, 4)
    sq.gr.spatial_autocorr(slide, connectivity_key="sage_connectivities", genes=["KRT8", "COL1A1"], mode="moran")
    assert set(slide.uns["moranI"].index) == {"KRT8", "COL1A1"}
    assert slide.uns["moranI"]["I"].min() > 0.1  # both mark a domain
    sq.gr.centrality_scores(slide, cluster_key="domain", connectivity_key="sage")


def test_scattered_spots_are_flagged(section, log):
    adata = section("stMCCC_ccRCC_500spots")
    sg.pp.neighborhood_graph(adata)
    assert adata.uns["sage_neighbors"]["params"]["method"] == "visium"
    assert adata.obs["sage_far_neighbors"].mean() > 0.5
    assert "scattered spots" in log.text


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("CRC_16", "visium"),
        ("JEF_eevee_breast", "visium"),
        ("HCC1_2000g", "visium"),
        ("her2st_A1", "knn"),
        ("MSTI_breast_DynaSpatial", "knn"),
        ("PDAC_A_ST1_legacy", "knn"),
    ],
)
def test_auto_on_real_sections(section, name, method):
    adata = section(name)
    sg.pp.neighborhood_graph(adata)
    assert adata.uns["sage_neighbors"]["params"]["method"] == method
    assert (np.diff(adata.obsp["sage_connectivities"].indptr) == 14).all()
    assert adata.obs["sage_far_neighbors"].mean() < 0.02


def test_n_spots_and_keys():
    adata = lattice()
    sg.pp.neighborhood_graph(adata, n_spots=7, key_added="ring")
    assert (np.diff(adata.obsp["ring_connectivities"].indptr) == 6).all()
    assert set(adata.uns) == {"ring_neighbors"}
    assert list(adata.obs.columns[-1:]) == ["ring_far_neighbors"]


def test_copy_leaves_the_original():
    adata = lattice()
    result = sg.pp.neighborhood_graph(adata, copy=True)
    assert not adata.obsp
    assert "sage_connectivities" in result.obsp


@pytest.mark.parametrize(
    ("change", "kwargs", "error", "message"),
    [
        (None, {"method": "delaunay"}, ValueError, "'delaunay'"),
        (None, {"n_spots": 1}, ValueError, "at least 2"),
        (None, {"n_spots": 145}, ValueError, "the slide has 144 spots"),
        (None, {"library_key": "slide"}, KeyError, "'slide' not in adata.obs"),
        (None, {"method": "knn", "spatial_key": "xy"}, KeyError, "'xy' not in adata.obsm"),
        (
            lambda a: a.obs.drop(columns="array_row", inplace=True),
            {"method": "visium"},
            KeyError,
            "'array_row'",
        ),
        (lambda a: a.obs.__setitem__("array_row", 0), {"method": "visium"}, ValueError, "library_key"),
        (
            lambda a: a.obs.__setitem__("array_col", a.obs["array_col"] / 2),
            {"method": "visium"},
            ValueError,
            "whole",
        ),
        (lambda a: a.obs.__setitem__("array_col", "x"), {"method": "visium"}, ValueError, "no numbers"),
        (
            lambda a: a.obs.__setitem__("array_col", a.obs["array_col"] // 2),
            {"method": "visium"},
            ValueError,
            "hexagonal",
        ),
        (lambda a: a.obsm["spatial"].__setitem__((3, 0), np.nan), {"method": "knn"}, ValueError, "'s3'"),
        (
            lambda a: a.obsm.__setitem__("spatial", np.zeros((144, 2))),
            {"method": "knn"},
            ValueError,
            "coincides",
        ),
        (lambda a: a.obsm.__setitem__("spatial", np.zeros((144, 1))), {"method": "knn"}, ValueError, "shape"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(change, kwargs, error, message):
    adata = lattice()
    if change is not None:
        change(adata)
    with pytest.raises(error, match=message):
        sg.pp.neighborhood_graph(adata, **kwargs)
    assert not adata.obsp
    assert not adata.uns
    assert "sage_far_neighbors" not in adata.obs


def test_slides_on_top_of_each_other_are_refused():
    """Coordinates would mix them without a word."""
    one = lattice(6, 6)
    both = make(np.tile(one.obs["array_row"], 2), np.tile(one.obs["array_col"], 2))
    for kwargs in ({}, {"method": "visium"}, {"method": "knn"}):
        with pytest.raises(ValueError, match="library_key="):
            sg.pp.neighborhood_graph(both, **kwargs)


def test_exchanged_rows_and_columns_are_refused():
    adata = lattice()
    adata.obs[["array_row", "array_col"]] = adata.obs[["array_col", "array_row"]].to_numpy()
    with pytest.raises(ValueError, match="look exchanged.*0.58 times"):
        sg.pp.neighborhood_graph(adata)
    # Coordinates that are the positions themselves tell nothing, and are no reason to refuse.
    adata = lattice()
    adata.obsm["spatial"] = adata.obs[["array_col", "array_row"]].to_numpy(float)
    sg.pp.neighborhood_graph(adata)


def test_key_may_have_its_suffix():
    adata = lattice()
    sg.pp.neighborhood_graph(adata, key_added="mine_connectivities")
    assert list(adata.obsp) == ["mine_connectivities", "mine_distances"]


def test_small_library_is_named():
    adata = lattice()
    adata.obs["slide"] = ["big"] * 130 + ["small"] * 14
    with pytest.raises(ValueError, match="slide 'small' has 14 spots"):
        sg.pp.neighborhood_graph(adata, library_key="slide")


# Coordinates from the regions of a SpatialData


def regions(n=49, names=("a",), shuffled=True):
    """Circles on a square lattice in each region, with a scaling, and a table of their rows without coordinates."""
    xy = np.column_stack(np.divmod(np.arange(n), 7)).astype(float)
    scale = {"aligned": Scale([3.0, 5.0], axes=("x", "y"))}
    shapes = {
        name: ShapesModel.parse(xy + i, geometry=0, radius=0.5, index=np.arange(n) + 10, transformations=scale)
        for i, name in enumerate(names)
    }
    obs = pd.DataFrame({"region": np.repeat(names, n), "id": np.tile(np.arange(n) + 10, len(names))})
    obs.index = [f"s{i}" for i in range(len(obs))]
    if shuffled:
        obs = obs.sample(frac=1, random_state=0)
    obs["region"] = obs["region"].astype("category")
    table = AnnData(csr_matrix((len(obs), 1), dtype=np.float32), obs=obs)
    table = TableModel.parse(table, region=list(names), region_key="region", instance_key="id")
    coordinates = xy[obs["id"] - 10] + np.array([names.index(name) for name in obs["region"]])[:, None]
    return SpatialData(shapes=shapes, tables={"table": table}), coordinates


@pytest.mark.parametrize("copy", [False, True])
def test_coordinates_from_regions(copy, log):
    sdata, coordinates = regions()
    result = sg.pp.neighborhood_graph(sdata, copy=copy)
    table = result if copy else sdata.tables["table"]
    assert ("spatial" in sdata.tables["table"].obsm) == (not copy)
    np.testing.assert_allclose(table.obsm["spatial"], coordinates)
    plain = AnnData(csr_matrix((49, 1), dtype=np.float32), obsm={"spatial": coordinates})
    sg.pp.neighborhood_graph(plain)
    assert (table.obsp["sage_connectivities"] != plain.obsp["sage_connectivities"]).nnz == 0
    assert "centroids of the table's regions" in log.text
    # The element keeps its own transformations.
    assert list(get_transformation(sdata["a"], get_all=True)) == ["aligned"]


def test_neighbors_stay_within_their_region(log):
    sdata, coordinates = regions(names=("a", "b"))
    sg.pp.neighborhood_graph(sdata)
    table = sdata.tables["table"]
    np.testing.assert_allclose(table.obsm["spatial"], coordinates)
    i, j = table.obsp["sage_connectivities"].nonzero()
    region = table.obs["region"].to_numpy()
    assert (region[i] == region[j]).all()
    assert table.uns["sage_neighbors"]["params"]["library_key"] == "region"
    assert "neighbors stay within obs['region']" in log.text
    table.obs["all"] = "one"
    sg.pp.neighborhood_graph(sdata, library_key="all")
    i, j = table.obsp["sage_connectivities"].nonzero()
    assert (region[i] != region[j]).any()


def test_lattice_needs_no_regions():
    adata = lattice()
    del adata.obsm["spatial"]
    sdata = SpatialData(tables={"table": TableModel.parse(adata)})
    sg.pp.neighborhood_graph(sdata)
    assert "spatial" not in sdata.tables["table"].obsm
    assert sdata.tables["table"].uns["sage_neighbors"]["params"]["method"] == "visium"


def test_exchanged_positions_are_told_by_regions():
    adata = lattice()
    adata.obs["region"], adata.obs["id"] = pd.Categorical(["a"] * 144), np.arange(144)
    circles = ShapesModel.parse(adata.obsm.pop("spatial"), geometry=0, radius=0.5)
    table = TableModel.parse(adata, region="a", region_key="region", instance_key="id")
    table.obs[["array_row", "array_col"]] = table.obs[["array_col", "array_row"]].to_numpy()
    sdata = SpatialData(shapes={"a": circles}, tables={"table": table})
    with pytest.raises(ValueError, match="look exchanged"):
        sg.pp.neighborhood_graph(sdata)
    assert "spatial" not in table.obsm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.tables["table"].uns.pop("spatialdata_attrs"), "annotates no regions.*TableModel.parse"),
        (lambda s: s.shapes.pop("a"), "region 'a' that the table annotates is not in the SpatialData"),
        (
            lambda s: s.shapes.__setitem__("a", s.shapes["a"].iloc[2:]),
            "2 rows of the table annotate instances that region 'a' lacks: '1[01]', '1[01]'",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_missing_regions_are_named(change, message):
    sdata, _ = regions()
    change(sdata)
    with pytest.raises(KeyError, match=message):
        sg.pp.neighborhood_graph(sdata)
    table = sdata.tables["table"]
    assert not table.obsm
    assert not table.obsp


@pytest.mark.parametrize("scale", [1e-4, 1e5])
def test_ties_dont_hang_on_the_unit_of_coordinates(scale):
    """Whatever order spots come in, and however small their coordinates."""
    lattice = np.stack(np.meshgrid(np.arange(9), np.arange(9)), axis=2).reshape(-1, 2).astype(float)
    order = np.random.default_rng(0).permutation(len(lattice))
    graphs = []
    for coordinates in (lattice, lattice[order] * scale):
        adata = AnnData(np.ones((len(lattice), 2), dtype=np.float32), obsm={"spatial": coordinates})
        sg.pp.neighborhood_graph(adata, "knn")
        graphs.append(adata.obsp["sage_connectivities"].toarray())
    np.testing.assert_array_equal(graphs[1], graphs[0][np.ix_(order, order)])
