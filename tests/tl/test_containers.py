"""Every tool gives the same in every container, also those that lie on disk."""

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata.experimental import read_lazy
from comparison import assert_close, bare, run_tools, spatial
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

import sagefm as sg
from sagefm.pp._counts import Counts


def with_x(change):
    def make(slide, folder):
        adata = spatial(slide)
        adata.X = change(adata.X)
        return adata

    return make


def backed(slide, folder):
    spatial(slide).write_h5ad(folder / "slide.h5ad")
    return ad.read_h5ad(folder / "slide.h5ad", backed="r")


def backed_by_columns(slide, folder):
    with_x(sparse.csc_matrix)(slide, folder).write_h5ad(folder / "slide.h5ad")
    return ad.read_h5ad(folder / "slide.h5ad", backed="r")


def lazy_zarr(slide, folder):
    spatial(slide).write_zarr(folder / "slide.zarr")
    return read_lazy(folder / "slide.zarr")


def lazy_h5ad(slide, folder):
    spatial(slide).write_h5ad(folder / "slide.h5ad")
    return read_lazy(folder / "slide.h5ad")


def view(slide, folder):
    twice = ad.concat([spatial(slide), spatial(slide)], keys=["a", "b"], index_unique="-")
    return twice[: slide.n_obs]


def spatialdata(slide, folder):
    """Coordinates in the regions alone, in another order than the table."""
    table = bare(slide)
    table.obs["region"], table.obs["instance"] = pd.Categorical(["spots"] * slide.n_obs), np.arange(slide.n_obs)
    order = np.random.default_rng(0).permutation(slide.n_obs)
    shapes = ShapesModel.parse(slide.obsm["spatial"][order], geometry=0, radius=30, index=order)
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    return SpatialData(shapes={"spots": shapes}, tables={"table": table})


def libraries(slide, folder):
    return ad.concat([spatial(slide), spatial(slide)], label="library", keys=["a", "b"], index_unique="-")


CONTAINERS = {
    "csr": with_x(sparse.csr_matrix),
    "csc": with_x(sparse.csc_matrix),
    "dense": with_x(lambda x: x.toarray()),
    "dask": with_x(lambda x: da.from_array(x.toarray(), chunks=(30, 4000))),
    "dask of sparse": with_x(lambda x: da.from_array(x, chunks=(30, x.shape[1]))),
    "backed h5ad": backed,
    "backed h5ad, CSC": backed_by_columns,
    "lazy zarr": lazy_zarr,
    "lazy h5ad": lazy_h5ad,
    "view": view,
    "SpatialData": spatialdata,
    "two libraries": libraries,
}


FAST = {"dask of sparse", "backed h5ad", "lazy h5ad", "SpatialData"}


@pytest.mark.parametrize(
    "container", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in CONTAINERS]
)
def test_results_are_equal_in_every_container(slide, sage, expected_of_sage, container, tmp_path):
    data = CONTAINERS[container](slide, tmp_path)
    sg.pp.neighborhood_graph(data, library_key="library" if container == "two libraries" else None)
    for found, value in zip(run_tools(data, sage), expected_of_sage, strict=True):
        for start in range(0, len(found), slide.n_obs):
            assert_close(found[start : start + slide.n_obs], value)


def test_columns_on_disk_are_told(slide, tmp_path, log):
    Counts(backed_by_columns(slide, tmp_path), np.arange(slide.n_vars))
    assert "stored by columns (CSC), so all of it is read into memory" in log.text
