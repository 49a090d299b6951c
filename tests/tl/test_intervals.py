"""Intervals and priors of predictions: they cover, and are split conformal."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from references import SYMBOLS, N, calibration
from scipy import sparse

import sagefm as sg
from sagefm.models._calibration import EDGES, ends, misfit, spread
from sagefm.models._vocabulary import hest1k
from sagefm.tl._impute.blocks import spatial_blocks
from sagefm.tl._impute.intervals import of_measured


@pytest.fixture(scope="module")
def large():
    adata = sg.datasets.simulated_visium(26, 24, n_genes=9000, rng=3)
    sg.pp.neighborhood_graph(adata)
    return adata


def absent_gene(adata):
    return next(symbol for symbol in SYMBOLS[100:] if symbol not in adata.var_names)


def frequent(adata, n):
    share = np.asarray((adata.X > 0).mean(axis=0)).ravel()
    known = hest1k().find_symbols(adata.var_names) >= 0
    return adata.var_names[np.argsort(-share * known)[:n]].tolist()


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_intervals_of_measured_genes_cover(large, sage, level):
    adata, genes = large.copy(), frequent(large, 40)
    sg.tl.impute(adata, genes, sage, intervals=level)
    lower, upper = adata.obsm["sage_imputed_lower"], adata.obsm["sage_imputed_upper"]
    truth = np.log1p(adata.to_df())[lower.columns]
    inside = ((truth >= lower - 1e-4) & (truth <= upper + 1e-4)).mean()
    table = adata.uns["sage_imputed"]["intervals"]
    np.testing.assert_allclose(table["coverage"], inside, atol=1e-9)
    np.testing.assert_allclose(table["width"], (upper - lower).mean(), rtol=1e-4)
    assert table["coverage"].mean() > level - 0.02
    assert (table["source"] == "slide").all()
    assert (table["level"] == level).all()


def test_an_interval_is_split_conformal(large, sage):
    """One gene by hand: sorted misfits of the other tiles' spots with like predictions, the k-th of them."""
    adata, gene = large.copy(), frequent(large, 3)[2]
    sg.tl.impute(adata, gene, sage, intervals=0.9)
    p = sc.get.obs_df(adata, [gene], layer="sage_imputed")[gene].to_numpy(dtype=float)
    t = np.log1p(sc.get.obs_df(adata, [gene])[gene].to_numpy())
    part = spatial_blocks(adata, adata.obsp["sage_connectivities"]) % 5
    fifths = np.array_split(np.argsort(p, kind="stable"), 5)
    for spot in (0, 99, 300, adata.n_obs - 1):
        alike = next(rows for rows in fifths if spot in rows)
        others = sorted(misfit(p, t)[alike][part[alike] != part[spot]])
        reach = others[int(np.ceil(0.9 * (len(others) + 1))) - 1] * spread(p[spot])
        lower, upper = ends(p[[spot]], np.array([reach]))
        assert adata.obsm["sage_imputed_lower"][gene].iloc[spot] == pytest.approx(lower.item(), abs=1e-5)
        assert adata.obsm["sage_imputed_upper"][gene].iloc[spot] == pytest.approx(upper.item(), abs=1e-5)


def test_intervals_cover_where_a_gene_is_high_as_well():
    """Errors that grow with the prediction; one reach for all would cover 0.50 of the highest fifth."""
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(0, 1, (1000, 20)))
    counts = rng.poisson(rate * rng.gamma(1 / (0.2 * rate), 0.2 * rate)).astype(float)
    found = of_measured([""] * 20, np.log1p(rate), sparse.csr_matrix(np.log1p(counts)), np.arange(1000) // 50, 0.8)
    inside = (np.log1p(counts) >= found.lower - 1e-4) & (np.log1p(counts) <= found.upper + 1e-4)
    high = rate > np.quantile(rate, 0.8, axis=0)
    assert 0.79 < inside.mean() < 0.88
    assert 0.78 < inside[high].mean() < 0.85


def test_intervals_of_a_wrong_model_are_wide(large, sage):
    """Coverage holds however bad the model is; width tells."""
    found = {}
    for model in ("sagefm-mini", sage):
        adata = large.copy()
        sg.tl.impute(adata, frequent(large, 20), model, intervals=0.9)
        found[model] = adata.uns["sage_imputed"]["intervals"]
        assert found[model]["coverage"].mean() > 0.88
    assert found[sage]["width"].mean() > 1.5 * found["sagefm-mini"]["width"].mean()


def test_too_few_spots_for_a_level_give_no_upper_end(slide, sage):
    sg.tl.impute(slide, "KRT8", sage, intervals=0.999)
    assert np.isinf(slide.obsm["sage_imputed_upper"].to_numpy()).all()
    assert (slide.obsm["sage_imputed_lower"].to_numpy() == 0).all()


def test_a_later_call_takes_intervals_away(slide, sage):
    sg.tl.impute(slide, "KRT8", sage, intervals=0.8)
    sg.tl.impute(slide, "KRT8", sage)
    assert "sage_imputed_lower" not in slide.obsm
    assert "intervals" not in slide.uns["sage_imputed"]


@pytest.mark.parametrize(
    ("genes", "options", "error", "match"),
    [
        (None, {"intervals": 0.9}, ValueError, "name them"),
        ("KRT8", {"intervals": 1.0}, ValueError, "between 0 and 1"),
        ("KRT8", {"intervals": "wide"}, TypeError, "has to be a share"),
        ("KRT8", {"intervals": True}, TypeError, "has to be a share"),
        ("absent", {"intervals": 0.9}, ValueError, "carries no calibration.*sg.train.calibrate"),
    ],
)
def test_interval_refusals(slide, sage, genes, options, error, match):
    before = slide.copy()
    genes = absent_gene(slide) if genes == "absent" else genes
    with pytest.raises(error, match=match):
        sg.tl.impute(slide, genes, sage, **options)
    assert slide.obsm.keys() == before.obsm.keys()
    assert slide.layers.keys() == before.layers.keys()
    assert slide.uns.keys() == before.uns.keys()


def test_a_key_of_the_users_is_kept(slide, sage):
    slide.obsm["mine_lower"] = np.zeros((slide.n_obs, 2))
    with pytest.raises(ValueError, match="mine_lower.*Choose another key_added"):
        sg.tl.impute(slide, "KRT8", sage, intervals=0.9, key_added="mine")


def test_a_slide_of_one_tile_is_too_small(sage):
    tiny_slide = sg.datasets.simulated_visium(6, 6, n_genes=9000)
    sg.pp.neighborhood_graph(tiny_slide)
    with pytest.raises(ValueError, match="too few for intervals"):
        sg.tl.impute(tiny_slide, "KRT8", sage, intervals=0.8)


def test_absent_genes_get_priors_and_intervals(slide, sage):
    model = replace(sage, calibration=calibration())
    absent = absent_gene(slide)
    number = SYMBOLS.index(absent)
    sg.tl.impute(slide, ["KRT8", absent], model, intervals=0.9)
    lacking = 1 - slide.uns["sage_genes"]["coverage"]
    prior = slide.uns["sage_imputed"]["prior"]
    assert prior.index.tolist() == [absent]
    assert prior.loc[absent, "r"] == pytest.approx(model.calibration.prior(lacking)[number])
    assert prior.loc[absent, "r_beyond_depth"] == pytest.approx(model.calibration.prior_given_depth(lacking)[number])
    assert prior.loc[absent, "r_sd"] == pytest.approx(model.calibration.prior_sd[number])
    p = slide.obsm["sage_imputed"][[absent]].to_numpy()
    lower, upper = ends(p.astype(float), model.calibration.reach(p, np.array([number]), lacking, 0.9))
    np.testing.assert_allclose(slide.obsm["sage_imputed_lower"][[absent]], lower, atol=1e-5)
    np.testing.assert_allclose(slide.obsm["sage_imputed_upper"][[absent]], upper, rtol=1e-5, atol=1e-5)
    table = slide.uns["sage_imputed"]["intervals"]
    assert table["source"].tolist() == ["slide", "left-out donors"]
    assert np.isnan(table.loc[absent, "coverage"])
    with pytest.raises(ValueError, match=r"known at \[0.8, 0.9\], not at 0.5"):
        sg.tl.impute(slide, absent, model, intervals=0.5)


def test_results_can_be_written(slide, sage, tmp_path):
    model = replace(sage, calibration=calibration())
    sg.tl.impute(slide, ["KRT8", absent_gene(slide)], model, intervals=0.9)
    sg.pp.assess(slide, model)
    slide.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert read.uns["sage_assessment"]["verdict"] == slide.uns["sage_assessment"]["verdict"]
    pd.testing.assert_frame_equal(
        read.uns["sage_assessment"]["checks"], slide.uns["sage_assessment"]["checks"], check_names=False
    )
    assert sg.pl.assessment(read) is not None
    assert sg.pl.imputation(read, "KRT8", return_fig=True) is not None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda xy: xy.__setitem__((3, 0), np.nan), "coordinates: .*is not finite .*for 1 spots"),
        (lambda xy: xy.__setitem__(slice(None), 1.0), "same coordinates"),
    ],
)
def test_intervals_need_places(slide, sage, change, match):
    slide.obsm["spatial"] = slide.obsm["spatial"].astype(float)
    change(slide.obsm["spatial"])
    with pytest.raises(ValueError, match=match):
        sg.tl.impute(slide, "KRT8", sage, intervals=0.9)
    assert "sage_imputed" not in slide.layers


def test_levels_of_any_number_type(slide, sage):
    model = replace(sage, calibration=calibration())
    sg.tl.impute(slide, ["KRT8", absent_gene(slide)], model, intervals=np.float32(0.9))
    assert slide.uns["sage_imputed"]["intervals"]["level"].to_numpy() == pytest.approx([0.9, 0.9])


def test_intervals_of_absent_genes_are_widened_until_they_hold_on_this_slide(large, sage):
    """Errors of left-out donors larger than here, a little smaller, and much smaller."""
    genes, rng = frequent(large, 300), np.random.default_rng(0)
    absent = rng.permutation(genes)[:60].tolist()
    truth = np.log1p(large.to_df())[absent]
    adata = large[:, ~large.var_names.isin(absent)].copy()
    errors, found = np.ones((2, len(EDGES) + 1, 50)), {}
    for size in (6.0, 1.0, 0.5):
        known = calibration(errors=size * errors, ranks=np.full((2, 2, N), 0.8))
        model = replace(sg.models.load("sagefm-mini"), calibration=known)
        sg.tl.impute(adata, absent, model, intervals=0.8, reliability=False)
        lower, upper = adata.obsm["sage_imputed_lower"][absent], adata.obsm["sage_imputed_upper"][absent]
        table = adata.uns["sage_imputed"]["intervals"]
        inside = ((truth >= lower - 1e-4) & (truth <= upper + 1e-4)).to_numpy().mean()
        found[size] = (table["widened"].iloc[0], inside, table["trusted"].all())
    assert found[6.0][0] == 1
    assert 1 < found[1.0][0] < 1.5
    assert 0.4 < found[1.0][1] < 0.9  # these are more frequent than those it is judged by
    assert found[1.0][2]
    assert found[0.5][0] == 1.5
    assert not found[0.5][2]


def test_each_slide_is_widened_by_itself(large, sage):
    """Three slides, one of them unlike the others: its intervals alone are widened."""
    genes, rng = frequent(large, 300), np.random.default_rng(0)
    absent = rng.permutation(genes)[:20].tolist()
    odd = large[:, rng.permutation(large.n_vars)].copy()
    odd.var_names = large.var_names  # genes exchanged
    both = ad.concat([large, large, odd], keys=list("abc"), label="slide", index_unique="-")
    sg.pp.neighborhood_graph(both, library_key="slide")
    known = calibration(errors=np.full((2, len(EDGES) + 1, 50), 3.5), ranks=np.full((2, 2, N), 0.8))
    model = replace(sg.models.load("sagefm-mini"), calibration=known)
    widths, widened = {}, {}
    for name, adata in (("two", both[both.obs["slide"] != "c"]), ("three", both)):
        adata = adata[:, ~both.var_names.isin(absent)].copy()
        sg.tl.impute(adata, absent, model, intervals=0.8, reliability=False)
        width = (adata.obsm["sage_imputed_upper"] - adata.obsm["sage_imputed_lower"])[absent].mean(axis=1)
        widths[name] = width.groupby(adata.obs["slide"], observed=True).mean()
        widened[name] = adata.uns["sage_imputed"]["intervals"]["widened"].iloc[0]
    assert widened["two"] == 1 < widened["three"]
    assert widths["two"].to_dict() == pytest.approx(widths["three"][["a", "b"]].to_dict())
