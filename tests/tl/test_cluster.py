"""Clusters of an embedding."""

import sys

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import sagefm as sg


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


def test_the_best_of_some_numbers_is_taken(slide, tiny):
    sg.tl.sage_embed(slide, tiny)
    sg.tl.cluster(slide, n_clusters=range(2, 5))
    scores = slide.uns["sage_cluster"]["scores"]["silhouette"]
    assert scores.index.tolist() == ["2", "3", "4"]
    assert slide.uns["sage_cluster"]["params"]["n_clusters"] == int(scores.idxmax())
    with pytest.raises(ValueError, match="n_clusters is empty"):
        sg.tl.cluster(slide, n_clusters=[])
    with pytest.raises(ValueError, match="n_clusters"):
        sg.tl.cluster(slide, n_clusters=[1, 3])


def test_what_a_new_result_makes_stale_is_said(slide, tiny, log):
    sg.pp.neighborhood_graph(slide)
    sg.tl.sage_embed(slide, tiny)
    sg.tl.cluster(slide, n_clusters=3)
    assert slide.uns["X_sage"]["params"]["n_spots"] == 15
    log.clear()
    sg.tl.sage_embed(slide, tiny)  # the same again
    assert "earlier" not in log.text
    sg.tl.sage_embed(slide, tiny, scale="slide")
    assert "'sage_cluster' came from the earlier 'X_sage'" in log.text
    log.clear()
    sg.pp.neighborhood_graph(slide, "knn", n_spots=8)
    assert "'X_sage', 'sage_cluster' came from the earlier 'sage_neighbors'" in log.text


@pytest.mark.slow
def test_leiden_is_scanpys(slide, tiny, monkeypatch):
    import scanpy as sc

    sg.tl.sage_embed(slide, tiny)
    before = set(slide.obsp)
    sg.tl.leiden(slide, resolution=0.4)
    theirs = AnnData(obsm={"X_sage": slide.obsm["X_sage"]})
    seed = slide.uns["sage_leiden"]["params"]["seed"]
    sc.pp.neighbors(theirs, use_rep="X_sage", random_state=seed)
    sc.tl.leiden(theirs, 0.4, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    assert slide.obs["sage_leiden"].tolist() == theirs.obs["leiden"].tolist()
    assert set(slide.obsp) == before
    assert sg.pl.cluster(slide, "sage_leiden", show=False).get_title() == "clusters of X_sage"
    with pytest.raises(ValueError, match="resolution"):
        sg.tl.leiden(slide, resolution=-1)
    with pytest.raises(ValueError, match="9 spots are too few for n_neighbors=15"):
        sg.tl.leiden(slide[:9].copy())
    slide.obsm["X_sage"][0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        sg.tl.leiden(slide)
    slide.obsm["X_sage"][0, 0] = 0
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(ImportError, match=r"pip install igraph, or use sg\.tl\.cluster"):
        sg.tl.leiden(slide)
