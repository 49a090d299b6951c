"""Scores of held-out genes against their definitions, and calls that keep their promise when nothing is there."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats

import sagefm as sg
from sagefm._depth import DepthSpline, attainable, pearson_beyond_depth
from sagefm.models._baselines import depth_scaled
from sagefm.models._vocabulary import hest1k
from sagefm.tl._impute.blocks import spatial_blocks
from sagefm.tl._impute.reliability import Scores, call_reliable
from sagefm.tl._impute.request import gene_folds

SYMBOLS = hest1k().symbols


def impute(adata, model, genes=None, **options):
    sg.tl.impute(adata, genes, model, **options)
    return adata.uns["sage_imputed"]["reliability"]


@pytest.mark.parametrize("family", [pytest.param("tiny", marks=pytest.mark.slow), "sage"])
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
        number = SYMBOLS.index(gene)
        hidden = folds == folds[number]
        depth = np.expm1(dense[:, ~hidden]).sum(1, dtype=float)
        basis = DepthSpline(depth)(depth)
        rivals = {"": p, "depth_": dense[:, ~hidden].sum(1)}
        rivals |= {"neighbors_": baseline[:, number]} if mask == "center" else {}
        for name, b in rivals.items():
            plain = np.corrcoef(b, t)[0, 1] if np.ptp(b) > 0 else 0
            assert row[f"{name}r"] == pytest.approx(plain, abs=1e-3)
            beyond = pearson_beyond_depth(np.array(b, dtype=float)[:, None], t.to_numpy(dtype=float)[:, None], basis)
            assert row[f"{name}r_beyond_depth"] == pytest.approx(beyond[0], abs=2e-3, nan_ok=True)
        best = attainable(sparse.csr_matrix(t.to_numpy()[:, None]), basis)
        assert row["attainable_r"] == pytest.approx(best.r_beyond_depth[0], abs=1e-4, nan_ok=True)
        assert row["share"] == pytest.approx(best.share(row[["r_beyond_depth"]].to_numpy())[0], abs=1e-3, nan_ok=True)
    assert ("neighbors_r" in table) == (mask == "center")
    assert (table["reliable"] == (table["beyond_padj"] < 0.05)).all()
    assert (table["testable"] == table["beyond_pval"].notna()).all()


N_SIDE = 30


@pytest.fixture(scope="module")
def blocks():
    slide = sg.datasets.simulated_visium(N_SIDE, N_SIDE, n_genes=500)
    sg.pp.neighborhood_graph(slide)
    return spatial_blocks(slide, slide.obsp["sage_connectivities"])


def simulated(blocks, n_genes, model, neighbors, rate=0.5, seed=0):
    """Genes of a signal and a depth, and what predictors see of the signal: a weight, and noise."""
    rng = np.random.default_rng(seed)
    n = len(blocks)
    depth = np.exp(rng.normal(6, 0.7, n))
    signal, *noise = rng.normal(size=(3, n, n_genes))
    truth = np.log1p(rng.poisson(rate * depth[:, None] / depth.mean() * np.exp(0.5 * signal - 0.125)))
    slides = np.zeros(n, dtype=int)
    scores = Scores(blocks, slides, sparse.csr_matrix(truth), DepthSpline(depth)(depth))
    log_depth = np.log(depth)[:, None]  # which all predictors know
    seen = (log_depth + weight * signal + e for weight, e in zip((model, neighbors), noise, strict=True))
    predictions = {"": next(seen), "depth_": np.broadcast_to(log_depth, signal.shape), "neighbors_": next(seen)}
    for rows in (slice(0, 400), slice(400, n)):
        scores.add(rows, {name: values[rows].astype(np.float32) for name, values in predictions.items()})
    return call_reliable(scores.table())


def test_no_gene_is_reliable_that_follows_depth_alone(blocks):
    table = simulated(blocks, 1_000, 0.0, 0.0)
    assert table["r"].mean() > 0.1  # though it is predicted well
    assert (table["padj"] < 0.05).mean() > 0.8
    assert not table["reliable"].any()
    assert (table["beyond_pval"] < 0.05).mean() < 0.05


def test_no_gene_is_reliable_where_the_neighbors_know_as_much(blocks):
    table = simulated(blocks, 1_000, 1.0, 1.0)
    assert table["r_beyond_depth"].mean() > 0.2
    assert (table["beyond_pval"] < 0.05).mean() < 0.09
    assert table["reliable"].sum() <= 3


def test_genes_are_reliable_where_the_model_knows_more(blocks):
    table = simulated(blocks, 200, 2.0, 0.3, rate=2)
    assert table["reliable"].mean() > 0.9
    assert table["share"].mean() == pytest.approx(2 / np.sqrt(5), abs=0.1)  # what the noise leaves of the signal
    assert not simulated(blocks, 200, 0.3, 2.0)["reliable"].any()


@pytest.mark.parametrize("weight", [-1, 0], ids=["wrong way", "nothing"])
def test_worse_neighbors_make_no_gene_reliable(blocks, weight):
    """The neighbors may run against a gene, and the model less so."""
    assert not simulated(blocks, 200, 0.1 * weight, -2.0)["reliable"].any()


@pytest.mark.slow
def test_the_standard_error_is_that_of_other_slides(blocks):
    drawn = [simulated(blocks, 60, 1.0, 0.5, seed=seed) for seed in range(12)]
    spread = np.std([table["r_beyond_depth"] for table in drawn], ddof=1)
    assert np.mean([table["r_beyond_depth_se"] for table in drawn]) == pytest.approx(spread, rel=0.2)


def test_genes_of_few_spots_are_not_tested(blocks):
    table = simulated(blocks, 500, 1.0, 0.0, rate=0.002)
    assert (~table["testable"]).mean() > 0.5
    assert not table["reliable"][~table["testable"]].any()


@pytest.mark.slow
def test_diffusion_is_scored_on_request(slide, tiny):
    table = impute(slide, tiny, ["KRT8", "COL1A1"], reliability="diffusion")
    assert {"diffusion_r", "diffusion_r_beyond_depth"} <= set(table)
    plain = impute(slide, tiny, ["KRT8", "COL1A1"])
    pd.testing.assert_frame_equal(table[plain.columns], plain)
    compared = sg.benchmark.compare_imputation(slide, tiny)
    whole = impute(slide, tiny, reliability="diffusion")
    known = whole["r"].notna() & (whole["rmse"] > 0)
    assert whole["diffusion_r"][known].mean() == pytest.approx(
        compared.loc["depth-scaled diffusion", "r_within"], abs=0.01
    )


def test_scores_of_several_slides_are_within_them(sage):
    """A gene that only differs between slides is not predicted; the tables are those of each slide alone."""
    import anndata as ad

    depths = {"a": 2_000, "b": 9_000}
    alone = {
        name: sg.datasets.simulated_visium(14, 14, n_genes=9_000, depth=depth, rng=1) for name, depth in depths.items()
    }
    genes = ["KRT8", "COL1A1", "CD74", "ACTB"]
    both = ad.concat(alone, label="slide", index_unique="-", merge="first")
    sg.pp.neighborhood_graph(both, library_key="slide")
    together = impute(both, sage, genes)
    by_slide = both.uns["sage_imputed"]["reliability_by_slide"]
    residual = np.zeros((3, len(together)))
    for name, slide in alone.items():
        sg.pp.neighborhood_graph(slide)
        table = impute(slide, sage, genes)
        part = by_slide[by_slide["slide"] == name].drop(columns="slide")
        pd.testing.assert_frame_equal(part, table[part.columns], rtol=1e-4, atol=1e-5)
        predicted, truth = slide[:, table.index].layers["sage_imputed"], np.log1p(slide[:, table.index].X.toarray())
        folds = gene_folds(len(SYMBOLS), 4)
        for at, gene in enumerate(table.index):
            known = slide.var["sage_gene"].to_numpy()
            shown = (known >= 0) & (folds[np.maximum(known, 0)] != folds[SYMBOLS.index(gene)])
            depth = np.asarray(slide.X[:, np.flatnonzero(shown)].sum(axis=1), dtype=float).ravel()
            basis = DepthSpline(depth)(depth)
            p, t = (
                values[:, at] - basis @ np.linalg.lstsq(basis, values[:, at], rcond=None)[0]
                for values in (np.asarray(predicted, dtype=float), truth.astype(float))
            )
            residual[:, at] += (p * t).sum(), (p * p).sum(), (t * t).sum()
    expected = residual[0] / np.sqrt(np.maximum(residual[1], 1e-12) * residual[2])  # 0 where a prediction is constant
    np.testing.assert_allclose(together["r_beyond_depth"], expected, atol=1e-4)
    one = impute(alone["a"], sage, genes)
    assert "reliability_by_slide" not in alone["a"].uns["sage_imputed"]
    assert one.index.equals(together.index)
    with pytest.raises(KeyError, match="library_key='nothing'"):
        impute(both, sage, genes, library_key="nothing")


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
    assert table.index.tolist() == ["KRT8", "COL1A1"]  # as asked
    column = slide.var["sage_reliability"]
    assert column["COL1A1"] == table.loc["COL1A1", "r_beyond_depth"]
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
    with pytest.raises(ValueError, match="reliability"):
        sg.tl.impute(slide, None, tiny, reliability="yes")
    with pytest.raises(KeyError, match="Run sg.tl.impute"):
        sg.pl.reliability(slide)
