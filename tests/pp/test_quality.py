"""Quality control flags what stands out among its neighbors, and removes nothing."""

import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

import sagefm as sg


@pytest.fixture
def graded():
    """A slide whose depth rises tenfold from one side to the other, with mitochondrial genes."""
    adata = sg.datasets.simulated_visium(20, 20, n_genes=300)
    generator, column = np.random.default_rng(0), adata.obs["array_col"].to_numpy()
    depth = 10 ** (column / column.max())
    adata.X = sparse.csr_matrix(generator.poisson(depth[:, None] * generator.random(300) * 4).astype(np.float32))
    adata.var_names = ["MT-CO1", "MT-ND1", *adata.var_names[2:]]
    sg.pp.neighborhood_graph(adata)
    return adata


def test_planted_outliers_are_flagged_and_a_gradient_is_not(graded):
    counts = graded.X.toarray()
    shallow, mitochondrial, empty = 116, 210, 300
    counts[shallow] = np.random.default_rng(1).binomial(counts[shallow].astype(int), 0.3)
    counts[mitochondrial, :2] += 400
    counts[empty] = 0
    graded.X = sparse.csr_matrix(counts)
    n_obs = graded.n_obs
    sg.pp.quality_control(graded, max_zscore=5)
    quality = graded.obs["sage_quality"]
    assert graded.n_obs == n_obs
    assert quality.iloc[[shallow, mitochondrial, empty]].tolist() == ["few counts", "mitochondrial", "no counts"]
    assert (quality != "fine").mean() < 0.02  # corners of the gradient among them
    # One limit for the slide would flag the shallow side instead, and miss the planted spot.
    total = counts.sum(axis=1)
    assert (total < total[shallow]).mean() > 0.02


def test_metrics_are_scanpys_and_zscores_by_hand(graded):
    sg.pp.quality_control(graded)
    table = graded.obsm["sage_quality"]
    other = graded.copy()
    other.var["mt"] = other.var_names.str.startswith("MT-")
    sc.pp.calculate_qc_metrics(other, qc_vars=["mt"], percent_top=None, inplace=True)
    for name in ("total_counts", "n_genes_by_counts", "pct_counts_mt"):
        np.testing.assert_allclose(table[name], other.obs[name], rtol=1e-5)
    logs, graph = np.log1p(table["total_counts"].to_numpy()), graded.obsp["sage_connectivities"]
    difference = np.array([logs[i] - logs[graph[i].indices].mean() for i in range(graded.n_obs)])
    centered = difference - np.median(difference)
    expected = centered / (1.4826 * np.median(np.abs(centered)))
    np.testing.assert_allclose(table["total_counts_zscore"], expected, atol=1e-3)


def test_slides_are_judged_apart(graded):
    graded.obs["slide"] = np.where(graded.obs["array_row"] < 10, "a", "b")
    sg.pp.neighborhood_graph(graded, library_key="slide")
    sg.pp.quality_control(graded)
    slides = graded.uns["sage_quality"]["slides"]
    assert slides["slide"].tolist() == ["a", "b"]
    assert slides["flagged"].sum() == (graded.obs["sage_quality"] != "fine").sum()
    alone = graded[(graded.obs["slide"] == "b").to_numpy()].copy()
    sg.pp.neighborhood_graph(alone)
    sg.pp.quality_control(alone)
    both = graded.obsm["sage_quality"].loc[alone.obs_names, "total_counts_zscore"]
    np.testing.assert_allclose(alone.obsm["sage_quality"]["total_counts_zscore"], both, atol=1e-6)


def test_wrong_arguments(graded):
    with pytest.raises(ValueError, match="max_zscore=0"):
        sg.pp.quality_control(graded, max_zscore=0)
    del graded.obsp["sage_connectivities"]
    with pytest.raises(KeyError, match=r"Run sg\.pp\.neighborhood_graph"):
        sg.pp.quality_control(graded)
