"""Embedding and imputation: containers, masks, orders, what is written."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import TableModel

import sagefm as sg
from sagefm.models._vocabulary import hest1k
from sagefm.tl._impute.request import gene_folds


def assert_close(found, expected, tolerance=1e-5):
    """Equal in the sense of the design: within a share of the largest value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert (np.isnan(found) == np.isnan(expected)).all()
    assert np.nanmax(np.abs(found - expected)) <= tolerance * np.nanmax(np.abs(expected))


def run(adata, model, **kwargs):
    sg.tl.sage_embed(adata, model, device="cpu", **kwargs)
    sg.tl.impute(adata, None, model, device="cpu", **kwargs)
    return np.array(adata.obsm["X_sage"]), np.array(adata.layers["sage_imputed"])


def unsorted(matrix):
    """The same matrix with the columns of each row in another order."""
    result = matrix.copy()
    for i in range(matrix.shape[0]):
        row = slice(matrix.indptr[i], matrix.indptr[i + 1])
        result.indices[row], result.data[row] = matrix.indices[row][::-1], matrix.data[row][::-1]
    result.has_sorted_indices = False
    return result


def doubled_entries(matrix):
    """The same matrix, every stored value split in two entries."""
    coo = matrix.tocoo()
    half = np.floor(coo.data / 2)
    result = sparse.csr_matrix(coo.shape, dtype=np.float32)
    order = np.argsort(np.concatenate([coo.row, coo.row]), kind="stable")
    result.indices = np.concatenate([coo.col, coo.col])[order].astype(np.int32)
    result.data = np.concatenate([half, coo.data - half])[order].astype(np.float32)
    result.indptr = np.concatenate([[0], np.cumsum(np.bincount(coo.row, minlength=coo.shape[0]) * 2)]).astype(np.int32)
    return result


def wide_indices(matrix):
    result = matrix.copy()
    result.indices, result.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return result


CONTAINERS = {
    "csr": lambda x: x,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "dense": lambda x: x.toarray(),
    "fortran": lambda x: np.asfortranarray(x.toarray()),
    "int32": lambda x: x.astype(np.int32),
    "uint16": lambda x: x.astype(np.uint16),
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.toarray().astype(np.float16),
    "int64 indices": wide_indices,
    "unsorted": unsorted,
    "doubled entries": doubled_entries,
    "dask of dense": lambda x: da.from_array(x.toarray(), chunks=(30, 4000)),
    "dask of sparse": lambda x: da.from_array(x.toarray(), chunks=(30, -1)).map_blocks(sparse.csr_matrix),
}


@pytest.fixture(scope="module", params=["tiny", "sage"])
def model(request):
    """Both families go through one engine."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def expected(_slide, model):
    return run(_slide.copy(), model)


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(slide, model, expected, container):
    slide.X = CONTAINERS[container](slide.X)
    before = slide.X.copy()
    for found, value in zip(run(slide, model), expected, strict=True):
        assert_close(found, value)
    after = slide.X
    if container.startswith("dask"):
        before, after = before.compute(), after.compute()
    assert type(before) is type(after)
    assert (abs(before - after)).max() == 0  # the counts are as they were


def test_layer(slide, model, expected):
    slide.layers["counts"] = slide.X.copy()
    slide.X = slide.X * 0.5
    with pytest.raises(ValueError, match="Pass layer='counts'"):
        sg.tl.sage_embed(slide, model)
    for found, value in zip(run(slide, model, layer="counts"), expected, strict=True):
        assert_close(found, value)
    assert slide.uns["X_sage"]["params"]["layer"] == "counts"


@pytest.mark.parametrize(("raw", "mend"), [(True, r"adata\.raw\.to_adata\(\)"), (False, r"Pass layer=\.\.\.")])
def test_where_counts_may_be(slide, tiny, raw, mend):
    if raw:
        slide.raw = slide
    slide.X = slide.X * 0.5
    with pytest.raises(ValueError, match=mend):
        sg.tl.sage_embed(slide, tiny)


def test_backed(slide, model, expected, tmp_path):
    slide.write_h5ad(tmp_path / "slide.h5ad")
    backed = read_h5ad(tmp_path / "slide.h5ad", backed="r")
    for found, value in zip(run(backed, model), expected, strict=True):
        assert_close(found, value)
    with pytest.raises(ValueError, match=r"to_memory\(\)"):
        sg.tl.sage_embed(backed, model, copy=True)


def test_view(slide, model, expected):
    wide = AnnData(
        sparse.hstack([slide.X, slide.X[:, :50]], format="csr"),
        obs=slide.obs,
        var=pd.DataFrame(index=[*slide.var_names, *(f"extra{i}" for i in range(50))]),
    )
    view = wide[:, : slide.n_vars]
    sg.pp.neighborhood_graph(view)
    for found, value in zip(run(view, model), expected, strict=True):
        assert_close(found, value)


def test_spatialdata(slide, model, expected):
    data = SpatialData(tables={"spots": TableModel.parse(slide.copy())})
    sg.pp.neighborhood_graph(data, table_key="spots")
    sg.tl.sage_embed(data, model, table_key="spots", device="cpu")
    assert_close(data.tables["spots"].obsm["X_sage"], expected[0])
    with pytest.raises(KeyError, match="'table' not in the SpatialData"):
        sg.tl.sage_embed(data, model)


@pytest.mark.parametrize("batch_size", [1, 7, 110, 100_000])
def test_batch_size(slide, model, expected, batch_size):
    for found, value in zip(run(slide, model, batch_size=batch_size), expected, strict=True):
        assert_close(found, value)


def test_repeated_call_is_identical(slide, model, expected):
    for found, value in zip(run(slide, model), expected, strict=True):
        np.testing.assert_array_equal(found, value)


def test_order_of_spots_and_genes(slide, model, expected):
    rng = np.random.default_rng(0)
    spots, genes = rng.permutation(slide.n_obs), rng.permutation(slide.n_vars)
    shuffled = slide[spots][:, genes].copy()
    embedding, imputed = run(shuffled, model)
    assert_close(embedding, expected[0][spots])
    assert_close(imputed, expected[1][spots][:, genes])


def test_alone_or_among_other_slides(slide, model, expected):
    import anndata as ad

    other = sg.datasets.simulated_visium(6, 8, n_genes=9_000, rng=5)
    both = ad.concat([slide, other], label="slide", keys=["a", "b"], join="outer", index_unique="-")
    sg.pp.neighborhood_graph(both, library_key="slide")
    embedding, imputed = run(both, model)
    first = (both.obs["slide"] == "a").to_numpy()
    assert_close(embedding[first], expected[0])
    assert_close(imputed[first][:, both.var_names.get_indexer(slide.var_names)], expected[1])


def test_bfloat16_is_close_but_not_equal(slide, model, expected):
    for found, value in zip(run(slide, model, dtype="bfloat16"), expected, strict=True):
        assert found.dtype == np.float32
        assert_close(found, value, tolerance=0.05)
        assert np.nanmax(np.abs(found - value)) > 0


@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="no CUDA GPU here")
def test_cuda(slide, model, expected):
    sg.tl.sage_embed(slide, model, device="cuda")
    assert_close(slide.obsm["X_sage"], expected[0], tolerance=1e-4)


def test_no_value_sees_itself(slide, model):
    """Change a fold's counts at one spot: its predictions of that fold there stay as they are."""
    sg.tl.impute(slide, None, model, device="cpu")
    before = slide.layers["sage_imputed"].copy()
    spot = 57
    index = hest1k().find_symbols(slide.var_names)
    fold = gene_folds(len(hest1k()), 4)[index]
    counts = slide.X.toarray()
    counts[spot, fold == 2] += np.random.default_rng(0).integers(1, 9, (fold == 2).sum())
    slide.X = sparse.csr_matrix(counts)
    sg.tl.impute(slide, None, model, device="cpu")
    after = slide.layers["sage_imputed"]
    # Not to the bit: which genes go through the sparse product depends on all counts.
    assert_close(after[spot, fold == 2], before[spot, fold == 2], tolerance=1e-6)
    assert (after[spot, fold == 1] != before[spot, fold == 1]).any()
    neighbor = slide.obsp["sage_connectivities"][:, spot].nonzero()[0][0]
    assert (after[neighbor, fold == 2] != before[neighbor, fold == 2]).any()  # neighbours may read it

    # Masked everywhere, nobody does.
    sg.tl.impute(slide, None, model, mask="everywhere", device="cpu")
    everywhere = slide.layers["sage_imputed"][:, fold == 2].copy()
    counts[:, fold == 2] = 0
    slide.X = sparse.csr_matrix(counts)
    sg.tl.impute(slide, None, model, mask="everywhere", device="cpu")
    assert_close(slide.layers["sage_imputed"][:, fold == 2], everywhere, tolerance=1e-6)


def test_asking_for_some_genes_gives_the_values_of_all(slide, model, expected):
    genes = slide.var_names[[5, 3000, 7, 9000]].tolist()
    sg.tl.impute(slide, genes, model, device="cpu")
    layer = slide.layers["sage_imputed"]
    columns = slide.var_names.get_indexer(genes)
    assert_close(layer[:, columns], expected[1][:, columns])
    assert np.isnan(np.delete(layer, columns, axis=1)).all()
    assert "sage_imputed" not in slide.obsm


def test_absent_genes_by_any_name(slide, tiny):
    sg.pp.align_genes(slide)
    vocabulary = hest1k()
    missing = vocabulary.find_symbols(slide.uns["sage_genes"]["missing"])
    renamed = next(gene for gene in missing[2:] if vocabulary.other_symbols[gene])
    names = [
        vocabulary.symbols[missing[0]],
        vocabulary.ensembl_ids[missing[1]] + ".3",
        vocabulary.other_symbols[renamed][0],
        vocabulary.symbols[missing[0]],  # twice
    ]
    sg.tl.impute(slide, names, tiny, device="cpu")
    table = slide.obsm["sage_imputed"]
    assert table.columns.tolist() == [vocabulary.symbols[gene] for gene in (missing[0], missing[1], renamed)]
    assert "sage_imputed" not in slide.layers


@pytest.mark.parametrize(
    ("call", "slot", "key"),
    [
        (lambda a, m: sg.tl.impute(a, "KRT8", m, layer="counts", key_added="counts"), "layers", "counts"),
        (lambda a, m: sg.tl.impute(a, "COL6A1", m, key_added="spatial"), "obsm", "spatial"),
        (lambda a, m: sg.tl.sage_embed(a, m, key_added="spatial"), "obsm", "spatial"),
        (lambda a, m: sg.tl.sage_embed(a, m, key_added="sage_neighbors"), "uns", "sage_neighbors"),
        (lambda a, m: sg.tl.cluster(a, "spatial", key_added="domain"), "obs", "domain"),
    ],
)
def test_the_users_own_data_is_not_overwritten(slide, tiny, call, slot, key):
    slide.layers["counts"] = slide.X.copy()
    before = getattr(slide, slot)[key].copy()
    with pytest.raises(ValueError, match="exists and wasn't written by this function"):
        call(slide, tiny)
    after = getattr(slide, slot)[key]
    assert (after != before).sum() == 0 if slot != "uns" else after == before


def test_own_results_are_overwritten(slide, tiny):
    for _ in range(2):
        sg.tl.sage_embed(slide, tiny, key_added="X_mine")
        sg.tl.impute(slide, "KRT8", tiny, key_added="mine")
        sg.tl.cluster(slide, "X_mine", n_clusters=3, key_added="groups")


def test_a_second_call_leaves_nothing_of_the_first(slide, tiny):
    """One key holds one result: parameters in uns describe all of it."""
    sg.pp.align_genes(slide)
    sg.tl.impute(slide, slide.var_names[0], tiny)
    sg.tl.impute(slide, slide.uns["sage_genes"]["missing"][0], tiny)
    assert "sage_imputed" not in slide.layers
    sg.tl.impute(slide, slide.var_names[0], tiny)
    assert "sage_imputed" not in slide.obsm


def test_results_are_saved_and_read(slide, tiny, tmp_path):
    sg.tl.sage_embed(slide, tiny)
    sg.pp.align_genes(slide)
    sg.tl.impute(slide, [slide.var_names[0], slide.uns["sage_genes"]["missing"][0]], tiny)
    sg.tl.cluster(slide, n_clusters=3)
    slide.write_h5ad(tmp_path / "slide.h5ad")
    slide.write_zarr(tmp_path / "slide.zarr")
    import anndata as ad

    for back in (ad.read_h5ad(tmp_path / "slide.h5ad"), ad.read_zarr(tmp_path / "slide.zarr")):
        np.testing.assert_array_equal(back.obsm["X_sage"], slide.obsm["X_sage"])
        pd.testing.assert_frame_equal(back.obsm["sage_imputed"], slide.obsm["sage_imputed"])
        assert back.uns["X_sage"]["params"]["model"] == "random"
        assert list(back.uns["sage_genes"]["missing"]) == slide.uns["sage_genes"]["missing"]
        sg.tl.sage_embed(back, tiny)  # and can go on from there
        np.testing.assert_array_equal(back.obsm["X_sage"], slide.obsm["X_sage"])


@pytest.mark.parametrize(
    ("change", "kwargs", "error", "message"),
    [
        (lambda a: a.obsp.clear(), {}, KeyError, r"Run sg.pp.neighborhood_graph\(adata\) first"),
        (None, {"connectivity_key": "spatial"}, KeyError, "'spatial_connectivities' not in adata.obsp"),
        (None, {"layer": "counts"}, KeyError, "layer 'counts' not in adata.layers"),
        (None, {"model": "sage-fm-mini"}, ValueError, "unknown model 'sage-fm-mini'"),
        (None, {"device": "gpu"}, ValueError, "device 'gpu'"),
        (None, {"batch_size": 0}, ValueError, "batch_size=0"),
        (None, {"dtype": "float16"}, ValueError, "'float16'"),
        (lambda a: setattr(a, "X", a.X.log1p()), {}, ValueError, r"no counts, such as 0\.\d+: .*log1p"),
        (lambda a: setattr(a, "X", -a.X), {}, ValueError, "negative"),
        (lambda a: a.X.data.__setitem__(1234, np.nan), {}, ValueError, "not finite"),
        (lambda a: a.X.data.__setitem__(1234, np.inf), {}, ValueError, "not finite"),
        (lambda a: setattr(a, "X", None), {}, ValueError, "adata.X is empty"),
        (lambda a: setattr(a, "X", np.ma.array(a.X.toarray())), {}, ValueError, "masked array"),
        (
            lambda a: a.X.__setitem__((0, 0), 0) or setattr(a, "X", a.X.astype(float) * 1e39),
            {},
            ValueError,
            "more than a spot has molecules",
        ),
        (lambda a: a.obsp["sage_connectivities"].data.fill(0), {}, ValueError, "connects no spots"),
        (lambda a: a.obsp["sage_connectivities"].data.fill(np.nan), {}, ValueError, "not finite"),
        (None, {"connectivity_key": None}, TypeError, "connectivity_key"),
        (None, {"device": "meta"}, ValueError, "'meta'"),
        (None, {"batch_size": "a"}, TypeError, "batch_size='a'"),
    ],
)
@pytest.mark.parametrize("tool", ["sage_embed", "impute"])
def test_bad_input_is_refused_and_nothing_written(slide, tiny, tool, change, kwargs, error, message):
    if change is not None:
        change(slide)
    slots = {name: list(getattr(slide, name).keys()) for name in ("obs", "var", "obsm", "layers", "obsp", "uns")}
    kwargs = {"model": tiny, **kwargs}
    with pytest.raises(error, match=message):
        getattr(sg.tl, tool)(slide, **kwargs)
    assert slots == {name: list(getattr(slide, name).keys()) for name in slots}


@pytest.mark.parametrize(
    ("genes", "kwargs", "error", "message"),
    [
        ("FOO", {}, KeyError, "'FOO'"),
        ("col1a1", {}, KeyError, "Symbols are in capitals: 'COL1A1'"),
        ([], {}, ValueError, "genes is empty"),
        (None, {"mask": "neighbors"}, ValueError, "'neighbors'"),
        (None, {"n_folds": 1}, ValueError, "n_folds=1"),
        (None, {"n_folds": 2.5}, TypeError, "n_folds=2.5"),
        (5, {}, TypeError, "got 5"),
        ([["KRT8"]], {}, TypeError, r"got \['KRT8'\]"),
        ("KRT8", {"key_added": "a/b"}, ValueError, "'a/b'"),
        ("KRT8", {"key_added": None}, TypeError, "key_added"),
        ("KRT8", {"key_added": "spatial"}, ValueError, r"adata.obsm\['spatial'\] exists"),
    ],
)
def test_bad_requests_to_impute(slide, tiny, genes, kwargs, error, message):
    with pytest.raises(error, match=message):
        sg.tl.impute(slide, genes, tiny, **kwargs)
    assert "sage_imputed" not in slide.layers


def test_wrong_type():
    with pytest.raises(TypeError, match="expected an AnnData or a SpatialData, got ndarray"):
        sg.tl.sage_embed(np.zeros((3, 3)))


def test_default_model_is_never_substituted(slide, monkeypatch):
    """Without a network the default raises; it doesn't fall back to the small model."""
    import dataclasses

    from sagefm.models import _registry

    name = "sage-fm-hest1k"
    entry = dataclasses.replace(_registry.registry()[name], url="http://127.0.0.1:1/file.pt")
    monkeypatch.setitem(_registry.registry(), name, entry)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(RuntimeError, match="could not download"):
        sg.tl.sage_embed(slide)
    assert "X_sage" not in slide.obsm


def test_graph_of_another_size_is_told(slide, tiny, log):
    sg.pp.neighborhood_graph(slide, n_spots=7, key_added="ring")
    sg.tl.sage_embed(slide, tiny, connectivity_key="ring")
    assert "6 to 6 neighbours" in log.text


def test_folds():
    fold = gene_folds(14_558, 4)
    assert sorted(np.bincount(fold)) == [3639, 3639, 3640, 3640]
    np.testing.assert_array_equal(fold, gene_folds(14_558, 4))


def test_mini_predicts_what_it_does_not_see(section):
    """Quality is for the evaluation to tell; this holds the shipped weights to being weights."""
    adata = section("her2st_G2")
    sg.pp.neighborhood_graph(adata)
    sg.tl.impute(adata, None, "sagefm-mini")
    known = adata.var["sage_gene"].to_numpy() >= 0
    truth = np.log1p(adata.X.toarray()[:, known])
    predicted = adata.layers["sage_imputed"][:, known]
    expressed = (truth > 0).mean(axis=0) > 0.3
    r = [np.corrcoef(t, p)[0, 1] for t, p in zip(truth.T[expressed], predicted.T[expressed], strict=True) if p.std()]
    assert np.mean(r) > 0.15


class TestCluster:
    @pytest.fixture
    def blobs(self):
        rng = np.random.default_rng(0)
        centers = rng.normal(scale=20, size=(5, 6))
        label = np.repeat(np.arange(5), [60, 50, 40, 30, 20])
        adata = AnnData(sparse.csr_matrix((200, 1), dtype=np.float32))
        adata.obsm["X_sage"] = centers[label] + rng.normal(size=(200, 6))
        return adata, label

    def test_finds_planted_groups_and_their_number(self, blobs):
        adata, label = blobs
        sg.tl.cluster(adata)
        found = adata.obs["sage_cluster"]
        assert found.cat.categories.tolist() == list("01234")
        assert (found.cat.codes.to_numpy() == label).all()  # numbered by size
        scores = adata.uns["sage_cluster"]["scores"]
        assert scores.index.tolist() == [str(k) for k in range(4, 11)]
        assert scores["silhouette"].idxmax() == "5"
        assert adata.uns["sage_cluster"]["params"]["n_clusters"] == 5

    def test_given_number_and_keys(self, blobs):
        adata, _ = blobs
        adata.obsm["mine"] = adata.obsm["X_sage"]
        result = sg.tl.cluster(adata, "mine", n_clusters=2, key_added="halves", copy=True)
        assert result.obs["halves"].nunique() == 2
        assert "halves" not in adata.obs

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"use_rep": "X_pca"}, KeyError, "'X_pca' not in adata.obsm"),
            ({"n_clusters": 1}, ValueError, "n_clusters=1"),
            ({"n_clusters": "4"}, TypeError, "n_clusters='4'"),
            ({"n_clusters": 200}, ValueError, "200 clusters"),
        ],
    )
    def test_bad_input(self, blobs, kwargs, error, message):
        with pytest.raises(error, match=message):
            sg.tl.cluster(blobs[0], **kwargs)

    def test_embedding_comes_first(self):
        with pytest.raises(KeyError, match=r"Run sg.tl.sage_embed\(adata\) first"):
            sg.tl.cluster(AnnData(np.ones((20, 2), dtype=np.float32)))
