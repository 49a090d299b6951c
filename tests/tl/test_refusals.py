"""Embedding and imputation: what is written, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from mudata import MuData

import sagefm as sg


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
        (lambda a: setattr(a, "X", a.X.log1p()), {}, ValueError, r"not counts, such as 0\.\d+: .*log1p"),
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


def test_wrong_type(slide):
    mdata = MuData({"rna": slide})
    with pytest.raises(TypeError, match="got a MuData. Pass one of its modalities, 'rna'"):
        sg.tl.sage_embed(mdata)
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
    assert "6 to 6 neighbors" in log.text
