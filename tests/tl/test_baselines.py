"""Embeddings to compare with, against plain arrays and planted domains."""

import anndata as ad
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import sagefm as sg


def normalized(slide):
    counts = slide.X.toarray().astype(float)
    total = counts.sum(axis=1, keepdims=True)
    return np.log1p(counts / total * np.median(total))


def test_nichepca_is_pca_of_the_neighborhood_mean(slide):
    sg.tl.nichepca_embed(slide, n_components=6)
    x = normalized(slide)
    mean = (x + slide.obsp["sage_connectivities"] @ x) / 15
    u, s, _ = np.linalg.svd(mean - mean.mean(axis=0), full_matrices=False)
    found = slide.obsm["X_nichepca"]
    assert found.dtype == np.float32
    for component in range(6):
        expected = u[:, component] * s[component]
        assert abs(np.corrcoef(found[:, component], expected)[0, 1]) > 0.999
        assert found[:, component].std() == pytest.approx(expected.std(), rel=1e-3)
    share = s**2 / (s**2).sum()
    np.testing.assert_allclose(slide.uns["X_nichepca"]["variance_ratio"], share[:6], rtol=1e-2)


@pytest.fixture(scope="module")
def domains():
    adata = sg.datasets.simulated_visium(22, 20, n_genes=3000, rng=2)
    sg.pp.neighborhood_graph(adata)
    return adata


def agreement(adata, key):
    labels = KMeans(4, n_init=5, random_state=0).fit_predict(adata.obsm[key])
    return adjusted_rand_score(adata.obs["domain"], labels)


def test_planted_domains_are_found(domains):
    adata = domains.copy()
    sg.tl.nichepca_embed(adata, n_components=10)
    sg.tl.mofa_embed(adata, n_factors=5, n_top_genes=500, n_iterations=30)
    assert agreement(adata, "X_nichepca") > 0.5
    assert agreement(adata, "X_mofa") > 0.3


def test_mofa_repeats_itself_and_fits(domains, capsys):
    first, again = domains.copy(), domains.copy()
    for adata in (first, again):
        sg.tl.mofa_embed(adata, n_factors=4, n_top_genes=200, n_iterations=15)
    assert capsys.readouterr().out == ""
    np.testing.assert_array_equal(first.obsm["X_mofa"], again.obsm["X_mofa"])
    weights = first.uns["X_mofa"]["weights"]
    assert weights.shape == (200, 4)
    x = normalized(domains)[:, domains.var_names.isin(weights.index)]
    x = x - x.mean(axis=0)
    left = x - first.obsm["X_mofa"] @ weights.loc[domains.var_names[domains.var_names.isin(weights.index)]].T.to_numpy()
    assert (left**2).sum() < 0.9 * (x**2).sum()


def test_mofa_centres_each_slide(domains):
    other = domains.copy()
    other.X = other.X * 3
    both = ad.concat([domains, other], keys=["a", "b"], label="slide", index_unique="-")
    sg.tl.mofa_embed(both, n_factors=3, n_top_genes=200, n_iterations=10, library_key="slide")
    found = both.obsm["X_mofa"]
    assert found.shape == (both.n_obs, 3)
    assert np.isfinite(found).all()
    for name in ("a", "b"):
        part = found[both.obs["slide"] == name]
        assert (abs(part.mean(axis=0)) < 0.2 * part.std(axis=0) + 1e-6).all()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda a: sg.tl.nichepca_embed(a, n_components=500), ValueError, "too few for n_components=500"),
        (lambda a: sg.tl.mofa_embed(a, n_factors=500), ValueError, "too few for n_factors=500"),
        (lambda a: sg.tl.mofa_embed(a, library_key="x"), KeyError, "library_key='x' not in adata.obs"),
        (lambda a: sg.tl.nichepca_embed(a, layer="x"), KeyError, "layer 'x'"),
        (lambda a: sg.tl.nichepca_embed(a, connectivity_key="x"), KeyError, "Set connectivity_key"),
        (lambda a: sg.tl.nichepca_embed(a, n_top_genes=1), ValueError, "n_top_genes=1"),
        (lambda a: sg.tl.nichepca_embed(a, key_added="spatial"), ValueError, "exists"),
        (lambda a: sg.tl.mofa_embed(a, rng=-1), ValueError, "rng=-1"),
        (lambda a: a.X.__setitem__((0, 0), 0.5) or sg.tl.mofa_embed(a), ValueError, "not counts"),
    ],
)
def test_refusals(slide, call, error, match):
    keys = set(slide.obsm), set(slide.uns)
    with pytest.raises(error, match=match):
        call(slide)
    assert (set(slide.obsm), set(slide.uns)) == keys


def test_results_can_be_written(domains, tmp_path):
    adata = domains.copy()
    sg.tl.nichepca_embed(adata, n_components=3, n_top_genes=100)
    sg.tl.mofa_embed(adata, n_factors=2, n_top_genes=100, n_iterations=5)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(read.obsm["X_mofa"], adata.obsm["X_mofa"])
    assert read.uns["X_nichepca"]["params"]["n_top_genes"] == 100
