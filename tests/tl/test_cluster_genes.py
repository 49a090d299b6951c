"""Markers of clusters, and their proportions."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import sagefm as sg


def test_planted_markers_lead(slide):
    sg.tl.cluster_markers(slide, "domain")
    results = slide.uns["sage_cluster_markers"]["results"]
    truth = slide.uns["truth"]["markers"]
    for domain in slide.obs["domain"].unique():
        found = results[results["cluster"] == domain]
        expected = set(truth.loc[truth["domain"] == domain, "gene"])
        assert len(expected & set(found["gene"].head(20))) >= 15
        assert (np.diff(found["score"]) <= 0).all()
    # One gene against scipy; scanpy doesn't correct for ties, scipy's z without ties and continuity is the same.
    gene, domain = truth["gene"].iloc[0], truth["domain"].iloc[0]
    counts = slide.X.toarray()
    x = np.log1p(counts / counts.sum(1, keepdims=True) * np.median(counts.sum(1)))[:, slide.var_names.get_loc(gene)]
    inside = (slide.obs["domain"] == domain).to_numpy()
    n, m = inside.sum(), (~inside).sum()
    u = stats.rankdata(x)[inside].sum() - n * (n + 1) / 2
    z = (u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)
    row = results[(results["cluster"] == domain) & (results["gene"] == gene)].iloc[0]
    assert row["score"] == pytest.approx(z, rel=1e-3)
    assert row["share_in"] == pytest.approx((x[inside] > 0).mean())


def test_markers_at_ten_thousand_counts_are_scanpys(slide):
    """The paper's way, by scanpy's own calls."""
    import scanpy as sc

    sg.tl.cluster_markers(slide, "domain", target_sum=10_000, min_spots=0)
    found = slide.uns["sage_cluster_markers"]["results"].query("cluster == 'immune'").set_index("gene")
    sc.pp.normalize_total(slide, target_sum=10_000)
    sc.pp.log1p(slide)
    sc.tl.rank_genes_groups(slide, "domain", groups=["immune"], method="wilcoxon")
    expected = sc.get.rank_genes_groups_df(slide, "immune").set_index("names")["logfoldchanges"]
    assert found["log2_fold_change"].to_numpy() == pytest.approx(expected[found.index].to_numpy(), rel=1e-4, abs=1e-4)
    with pytest.raises(ValueError, match="target_sum=0 has to be above 0"):
        sg.tl.cluster_markers(slide, "domain", target_sum=0)


def test_clusters_of_one_spot_and_genes_of_one_name(slide, log):
    slide.obs["one"] = np.where(np.arange(slide.n_obs) == 3, "alone", np.where(np.arange(slide.n_obs) < 50, "a", "b"))
    slide.var_names = ["TWIN", "TWIN", *slide.var_names[2:]]
    sg.tl.cluster_markers(slide, "one", min_spots=0)
    results = slide.uns["sage_cluster_markers"]["results"]
    assert set(results["cluster"]) == {"a", "b"}
    assert len(results) == 2 * slide.n_vars
    assert "'alone'" in log.text


def test_cluster_proportions_by_hand():
    adata = ad.AnnData(np.ones((8, 1), dtype=np.float32))
    adata.obs["sage_cluster"] = pd.Categorical(list("00001111"))
    adata.obs["tissue"] = list("aaabbbbb")
    sg.tl.cluster_proportions(adata, "tissue")
    results = adata.uns["sage_cluster_proportions"]["results"].set_index(["cluster", "group"])
    assert results["n_spots"].to_dict() == {("0", "a"): 3, ("0", "b"): 1, ("1", "a"): 0, ("1", "b"): 4}
    row = results.loc[("0", "a")]
    assert row["share"] == 0.75
    assert row["log2_enrichment"] == pytest.approx(np.log2(3.5 / (4 * 3 / 8 + 0.5)))
    assert row["pval"] == pytest.approx(stats.fisher_exact([[3, 1], [0, 4]]).pvalue)


def test_clusters_have_to_be_there(slide):
    with pytest.raises(KeyError, match=r"sg\.tl\.cluster\(adata\)"):
        sg.tl.cluster_markers(slide)
    with pytest.raises(KeyError, match="nowhere"):
        sg.tl.cluster_proportions(slide, "nowhere", "domain")
