"""Scores of held-out genes against their definitions, and calls that keep their promise when nothing is there."""

import numpy as np
import pytest
import torch
from scipy import stats

import sagefm as sg
from sagefm.models._baselines import depth_scaled
from sagefm.models._vocabulary import hest1k
from sagefm.tl._impute.reliability import Scores, spatial_blocks
from sagefm.tl._impute.request import gene_folds

SYMBOLS = hest1k().symbols


def impute(adata, model, genes=None, **options):
    sg.tl.impute(adata, genes, model, **options)
    return adata.uns["sage_imputed"]["reliability"]


@pytest.mark.parametrize("family", ["tiny", "sage"])
@pytest.mark.parametrize("mask", ["center", "everywhere"])
def test_scores_are_what_they_are_called(slide, family, mask, request):
    model = request.getfixturevalue(family)
    table = impute(slide, model, mask=mask)
    assert table.index.tolist() == [SYMBOLS[i] for i in np.sort(slide.var["sage_gene"][slide.var["sage_gene"] >= 0])]
    truth = np.log1p(slide.to_df())[table.index]
    predicted = slide.to_df(layer="sage_imputed")[table.index]
    # The baseline, fold by fold, from dense arrays.
    dense = np.zeros((slide.n_obs, len(SYMBOLS)), dtype=np.float32)
    index = slide.var["sage_gene"].to_numpy()
    dense[:, index[index >= 0]] = np.log1p(slide.X.toarray()[:, index >= 0])
    around = (slide.obsp["sage_connectivities"] @ dense) / 14
    folds = gene_folds(len(SYMBOLS), 4)
    baseline = np.empty_like(dense)
    for fold in range(4):
        masked = folds == fold
        center = np.where(masked, 0, dense)
        if mask == "everywhere":
            baseline[:, masked] = center.sum(1)[:, None]
        else:
            scaled = depth_scaled(*map(torch.from_numpy, (center, around, np.broadcast_to(masked, dense.shape).copy())))
            baseline[:, masked] = scaled.numpy()[:, masked]
    rng = np.random.default_rng(0)
    for gene in rng.choice(table.index[table["r"].notna() & (table["r"] != 0)], 25, replace=False):
        row, t, p = table.loc[gene], truth[gene], predicted[gene]
        found = stats.pearsonr(p, t)
        assert row["r"] == pytest.approx(found.statistic, abs=1e-4)
        assert row["pval"] == pytest.approx(found.pvalue, rel=0.02, abs=1e-6)
        assert row["rmse"] == pytest.approx(np.sqrt(((p - t) ** 2).mean()), rel=1e-4)
        assert row["r2"] == pytest.approx(1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum(), abs=1e-3)
        b = baseline[:, SYMBOLS.index(gene)]
        assert row["baseline_r"] == pytest.approx(np.corrcoef(b, t)[0, 1] if np.ptp(b) > 0 else 0, abs=1e-3)
        assert row["difference"] == pytest.approx(row["r"] - row["baseline_r"])
    ahead, follows = table["difference_padj"] < 0.05, (table["padj"] < 0.05) & (table["r"] > 0)
    assert (table["reliable"] == (ahead & follows)).all()


def simulated_scores(n_genes, model_noise, baseline_noise, rate=0.5, seed=0, sign=(1, 1)):
    """Genes that follow a signal, and two predictors that see it with noise, or turned around."""
    slide = sg.datasets.simulated_visium(30, 30, n_genes=500)
    sg.pp.neighborhood_graph(slide)
    rng = np.random.default_rng(seed)
    signal, one, two = rng.normal(size=(3, slide.n_obs, n_genes))
    truth = np.log1p(rng.poisson(rate * np.exp(0.5 * signal)))
    scores = Scores(spatial_blocks(slide, slide.obsp["sage_connectivities"]), n_genes)
    arrays = (sign[0] * signal + model_noise * one, truth, sign[1] * signal + baseline_noise * two)
    for rows in (slice(0, 400), slice(400, 900)):
        scores.add(rows, slice(0, n_genes), *(array[rows].astype(np.float32) for array in arrays))
    return scores.table([str(i) for i in range(n_genes)])


def test_no_gene_is_reliable_where_the_baseline_knows_as_much():
    table = simulated_scores(1000, 1.0, 1.0)
    assert 0.02 < (table["difference_pval"] < 0.05).mean() < 0.09
    assert table["reliable"].sum() <= 2
    assert (table["padj"] < 0.05).mean() > 0.9  # though it is predicted well


def test_genes_are_reliable_where_the_model_knows_more():
    table = simulated_scores(200, 0.3, 2.0)
    assert table["reliable"].mean() > 0.9
    worse = simulated_scores(200, 2.0, 0.3)
    assert not worse["reliable"].any()


@pytest.mark.parametrize("model", [-1, 0], ids=["wrong way", "nothing"])
def test_a_worse_baseline_makes_no_gene_reliable(model):
    """The neighbours may run against a gene, and the model less so."""
    table = simulated_scores(200, 3.0, 0.3, sign=(model, -1))
    assert (table["difference_padj"] < 0.05).mean() > 0.9
    assert table["reliable"].mean() < 0.05


def test_each_key_has_its_reliability(slide):
    sg.pp.neighborhood_graph(slide)
    sg.tl.impute(slide, ["COL1A1", "CD74"], "sagefm-mini")
    before = slide.var["sage_reliability"].copy()
    sg.tl.impute(slide, ["KRT8"], "sagefm-mini", mask="everywhere", key_added="other")
    assert slide.var["sage_reliability"].equals(before)
    assert slide.var.index[slide.var["other_reliability"].notna()].tolist() == ["KRT8"]
    sg.tl.impute(slide, ["CD74"], "sagefm-mini", reliability=False, key_added="other")
    assert "other_reliability" not in slide.var
    assert "sage_reliability" in slide.var
    slide.var["mine_reliability"] = 1.0
    with pytest.raises(ValueError, match=r"adata.var\['mine_reliability'\] exists"):
        sg.tl.impute(slide, ["CD74"], "sagefm-mini", key_added="mine")


def test_genes_of_few_spots_are_not_called():
    table = simulated_scores(500, 1.0, 1.0, rate=0.002)
    assert table["difference_pval"].isna().mean() > 0.5
    assert not table["reliable"].any()


def test_blocks_are_tiles_of_the_tissue(slide):
    sg.pp.neighborhood_graph(slide)
    blocks = spatial_blocks(slide, slide.obsp["sage_connectivities"])
    position = slide.obsm["spatial"]
    extent = np.ptp(position, axis=0).max()
    assert blocks.max() >= 3
    for block in np.unique(blocks):
        assert np.ptp(position[blocks == block], axis=0).max() < 0.75 * extent


def test_two_slides_share_no_block(slide):
    import anndata as ad

    both = ad.concat({"a": slide, "b": slide}, label="library", index_unique="-")
    sg.pp.neighborhood_graph(both, library_key="library")
    blocks = spatial_blocks(both, both.obsp["sage_connectivities"])
    assert not set(blocks[: slide.n_obs]) & set(blocks[slide.n_obs :])


@pytest.mark.slow
def test_order_of_spots_and_genes_does_not_matter(slide, sage):
    table = impute(slide, sage)
    rng = np.random.default_rng(1)
    other = slide[rng.permutation(slide.n_obs), rng.permutation(slide.n_vars)].copy()
    sg.pp.neighborhood_graph(other)
    shuffled = impute(other, sage)
    for column in table:
        assert shuffled[column].to_numpy(dtype=float) == pytest.approx(
            table[column].to_numpy(dtype=float), rel=1e-3, abs=1e-4, nan_ok=True
        )


def test_only_genes_asked_for_are_scored(slide, tiny):
    table = impute(slide, tiny, ["KRT8", "COL1A1"])
    assert table.index.tolist() == ["COL1A1", "KRT8"]
    column = slide.var["sage_reliability"]
    assert column["COL1A1"] == table.loc["COL1A1", "r"]
    assert column.notna().sum() == 2
    everything = impute(slide, tiny)
    assert everything.loc["KRT8", "r"] == pytest.approx(table.loc["KRT8", "r"], abs=1e-5)


def test_scores_can_be_left_out_and_take_old_ones_along(slide, tiny):
    impute(slide, tiny)
    sg.tl.impute(slide, None, tiny, reliability=False)
    assert "reliability" not in slide.uns["sage_imputed"]
    assert "sage_reliability" not in slide.var


def test_saved_with_the_slide(slide, tiny, tmp_path):
    import anndata as ad

    table = impute(slide, tiny, ["KRT8", "COL1A1"])
    slide.write_h5ad(tmp_path / "slide.h5ad")
    again = ad.read_h5ad(tmp_path / "slide.h5ad").uns["sage_imputed"]["reliability"]
    assert again["reliable"].tolist() == table["reliable"].tolist()
    assert again["r"].to_numpy() == pytest.approx(table["r"].to_numpy())


def test_slide_without_coordinates(slide, tiny):
    del slide.obsm["spatial"]
    slide.obs = slide.obs.drop(columns=["array_row", "array_col"])
    before = set(slide.layers), set(slide.var), set(slide.uns)
    with pytest.raises(KeyError, match="reliability=False"):
        sg.tl.impute(slide, None, tiny)
    assert (set(slide.layers), set(slide.var), set(slide.uns)) == before
    sg.tl.impute(slide, None, tiny, reliability=False)
    with pytest.raises(TypeError, match="reliability"):
        sg.tl.impute(slide, None, tiny, reliability="yes")
    with pytest.raises(KeyError, match="Run sg.tl.impute"):
        sg.pl.reliability(slide)
