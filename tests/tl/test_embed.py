"""Embedding and imputation: containers, batches, orders."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from comparison import assert_close, embed_and_impute
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import TableModel

import sagefm as sg


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


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(slide, model, expected, container):
    slide.X = CONTAINERS[container](slide.X)
    before = slide.X.copy()
    for found, value in zip(embed_and_impute(slide, model), expected, strict=True):
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
    for found, value in zip(embed_and_impute(slide, model, layer="counts"), expected, strict=True):
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
    for found, value in zip(embed_and_impute(backed, model), expected, strict=True):
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
    for found, value in zip(embed_and_impute(view, model), expected, strict=True):
        assert_close(found, value)


def test_spatialdata(slide, model, expected):
    data = SpatialData(tables={"spots": TableModel.parse(slide.copy())})
    sg.pp.neighborhood_graph(data, table_key="spots")
    sg.tl.sage_embed(data, model, table_key="spots", device="cpu")
    assert_close(data.tables["spots"].obsm["X_sage"], expected[0])
    with pytest.raises(KeyError, match="'table' not in the SpatialData"):
        sg.tl.sage_embed(data, model)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 110, 100_000])
def test_batch_size(slide, model, expected, batch_size):
    for found, value in zip(embed_and_impute(slide, model, batch_size=batch_size), expected, strict=True):
        assert_close(found, value)


def test_repeated_call_is_identical(slide, model, expected):
    for found, value in zip(embed_and_impute(slide, model), expected, strict=True):
        np.testing.assert_array_equal(found, value)


def test_order_of_spots_and_genes(slide, model, expected):
    rng = np.random.default_rng(0)
    spots, genes = rng.permutation(slide.n_obs), rng.permutation(slide.n_vars)
    shuffled = slide[spots][:, genes].copy()
    embedding, imputed = embed_and_impute(shuffled, model)
    assert_close(embedding, expected[0][spots])
    assert_close(imputed, expected[1][spots][:, genes])


@pytest.mark.slow
def test_alone_or_among_other_slides(slide, model, expected):
    import anndata as ad

    other = sg.datasets.simulated_visium(6, 8, n_genes=9_000, rng=5)
    both = ad.concat([slide, other], label="slide", keys=["a", "b"], join="outer", index_unique="-")
    sg.pp.neighborhood_graph(both, library_key="slide")
    embedding, imputed = embed_and_impute(both, model)
    first = (both.obs["slide"] == "a").to_numpy()
    assert_close(embedding[first], expected[0])
    assert_close(imputed[first][:, both.var_names.get_indexer(slide.var_names)], expected[1])


def test_bfloat16_is_close_but_not_equal(slide, model, expected):
    for found, value in zip(embed_and_impute(slide, model, dtype="bfloat16"), expected, strict=True):
        assert found.dtype == np.float32
        assert_close(found, value, tolerance=0.05)
        assert np.nanmax(np.abs(found - value)) > 0


@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="no CUDA GPU here")
def test_cuda(slide, model, expected):
    sg.tl.sage_embed(slide, model, device="cuda")
    assert_close(slide.obsm["X_sage"], expected[0], tolerance=1e-4)
