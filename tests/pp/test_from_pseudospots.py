"""Values of pseudo-spots back on their bins."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import sagefm as sg
from sagefm.pp._regions.hexagons import lattice_points


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


@pytest.mark.slow
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
