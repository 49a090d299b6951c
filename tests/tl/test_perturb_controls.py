"""Controls, null pairs and planted responses."""

import literal
import numpy as np
import pandas as pd
import pytest
import torch
from perturbation import PAIRS, SYMBOLS, awake, gene, planted_model, run
from scipy import stats

from sagefm._stats import adjust_pvalues
from sagefm.tl._perturb.controls import compare, match_controls
from sagefm.tl._perturb.grid import compare_pairing, repair


@pytest.mark.parametrize("mask", ["all", "pair"])
def test_controls_change_nothing_else(slide, sage, mask):
    """Nor does their number."""
    columns = ["n_up", "n_down", "effect", "mean_delta", "reference_r"]
    plain = run(slide, PAIRS, sage, mask=mask)
    assert (plain["verdict"] == "not testable").all()
    controlled = run(slide, PAIRS, sage, mask=mask, n_controls=6, control_spots=50)
    pd.testing.assert_frame_equal(plain[columns], controlled[columns])
    pd.testing.assert_frame_equal(plain[columns], run(slide, PAIRS, sage, mask=mask, n_controls=9)[columns])
    assert controlled[["control_mean", "ligand_control_sd", "zscore", "pval", "padj"]].notna().all(axis=None)
    again = run(slide, PAIRS, sage, mask=mask, n_controls=6, control_spots=50)
    pd.testing.assert_frame_equal(controlled, again)


def test_controls_are_scored_with_both_masked(patch, sage):
    """The statistic of a pair and of its controls, from the literal protocol with receptors and controls masked."""
    results = run(patch, PAIRS[:1], sage, n_controls=5, control_spots=None)
    dense = literal.dense_log1p(patch, SYMBOLS)
    ligand, receptor = map(gene, PAIRS[0])
    measured = np.flatnonzero(pd.Index(SYMBOLS).isin(patch.var_names))
    statistics = type("S", (), {"mean": dense.mean(0), "sd": dense.std(0), "detection": (dense > 0).mean(0)})
    controls, ligands = (
        match_controls([own], statistics, measured, {ligand, receptor}, 5, 1000)[own] for own in (receptor, ligand)
    )
    neighborhoods = literal.neighborhoods_of(patch.obsp["sage_connectivities"])
    masked = np.array([receptor, *controls])

    def change(source):
        low, high = (
            literal.perturbed(sage.network, dense, neighborhoods, {source: pick(dense[:, source])}, masked)
            for pick in (np.min, np.max)
        )
        return ((high - low).mean(0) / np.maximum(dense.std(0), 1e-12))[masked]

    own, *of_receptor = change(ligand)
    of_ligand = [change(other)[0] for other in ligands]
    row = results.iloc[0]
    for prefix, others in (("", of_receptor), ("ligand_", of_ligand)):
        assert row[f"{prefix}control_mean"] == pytest.approx(np.mean(others), rel=1e-3, abs=1e-7)
        assert row[f"{prefix}control_sd"] == pytest.approx(np.std(others, ddof=1), rel=1e-3)
        expected = (own - np.mean(others)) / np.std(others, ddof=1)
        assert row[f"{prefix}zscore"] == pytest.approx(expected, rel=1e-2, abs=1e-3)
    assert row["pval"] == max(row["receptor_pval"], row["ligand_pval"])


def test_controls_are_alike_and_no_part_of_the_call():
    rng = np.random.default_rng(0)
    mean = np.sort(rng.gamma(0.5, size=3000))
    statistics = type("S", (), {"mean": mean, "sd": np.sqrt(mean), "detection": 1 - np.exp(-3 * mean)})
    genes = [100, 101, 1500, 2900]
    excluded = {*genes, 102, 1501}
    controls = match_controls(genes, statistics, np.arange(3000), excluded, 20, 10_000)
    for number, found in controls.items():
        assert len(set(found)) == 20
        assert not excluded & set(found.tolist())
        assert np.abs(found - number).max() <= 45  # ranks: the genes are sorted
    few = match_controls(range(0, 3000, 10), statistics, np.arange(3000), excluded, 20, 200)
    assert len(np.unique(np.concatenate(list(few.values())))) <= 200
    with pytest.raises(ValueError, match="can serve as controls"):
        match_controls([5], statistics, np.arange(10), {5}, 20, 100)


def test_rank_among_controls():
    rng = np.random.default_rng(0)
    controls = rng.normal(size=(300, 20))
    statistic = rng.normal(size=300)
    statistic[:5] = 30
    null = compare(statistic, controls, rng.random(300))
    assert null.mean == pytest.approx(controls.mean(1))
    assert null.zscore == pytest.approx((statistic - controls.mean(1)) / controls.std(1, ddof=1))
    assert null.pval[:5] == pytest.approx(1 / 2001, rel=0.5)  # the smallest there is, in bins of 2,000 ranks
    assert stats.kstest(null.pval[5:], "uniform").pvalue > 0.01
    shifted = compare(3 * statistic + 1, 3 * controls + 1, rng.random(300))
    assert shifted.zscore == pytest.approx(null.zscore)
    silent = compare(np.zeros(10), np.zeros((10, 20)), np.arange(10.0))
    assert (silent.pval == 1).all()
    assert np.isnan(silent.zscore).all()
    p = np.array([0.01, np.nan, 0.04, 0.03])
    assert adjust_pvalues(p)[[0, 2, 3]] == pytest.approx([0.03, 0.04, 0.04])
    assert np.isnan(adjust_pvalues(p)[1])


def test_null_pairs_are_null(slide):
    """Random pairs: each p-value is uniform, the larger of the two is rarely small, and nothing survives adjustment."""
    detected = np.asarray((slide.X > 0).mean(axis=0)).ravel() > 0.05
    names = slide.var_names[detected]
    rng = np.random.default_rng(1)
    pairs = [tuple(rng.choice(names, 2, replace=False)) for _ in range(400)]
    results = run(slide, pairs, "sagefm-mini", n_controls=20, store_spots=False)
    for side in ("receptor", "ligand"):
        assert 0.02 < (results[f"{side}_pval"] < 0.05).mean() < 0.09
    assert (results["pval"] < 0.05).mean() < 0.05
    assert (results["padj"] > 0.05).all()


def test_planted_responses_are_found(slide):
    planted = [("CXCL12", "CXCR4"), ("CCL19", "CCR7"), ("TGFB1", "TGFBR2")]
    null = [("CSF1", "CSF1R"), ("IL6", "IL6R"), ("PDGFB", "PDGFRB"), ("WNT5A", "FZD2")]
    results = run(slide, planted + null, planted_model(planted, 20.0), n_controls=20)
    assert (results["verdict"].iloc[:3] == "responds").all()
    assert (results["verdict"].iloc[3:] == "not distinguishable from controls").all()
    results = run(slide, planted + null, planted_model(planted, 0.0), n_controls=20)
    assert (results["verdict"] == "not distinguishable from controls").all()


def test_a_loud_ligand_and_a_sensitive_receptor_are_no_pair(slide):
    """A ligand that moves every gene, and a receptor that every gene moves."""
    model = planted_model([("CXCL12", "CXCR4"), ("TGFB1", "TGFBR2"), ("IL6", "FN1")], 20.0)
    with torch.no_grad():
        model.network.fc_gene.weight[:, 1].uniform_(5, 20, generator=torch.Generator().manual_seed(0))
        model.network.conv1.lin.weight[2] = 1.0
    pairs = [("CXCL12", "CXCR4"), ("TGFB1", "CCR7"), ("CSF1", "FN1")]
    results = run(slide, pairs, model, n_controls=60)
    p = results[["receptor_pval", "ligand_pval"]] < 0.02
    assert p.to_numpy().tolist() == [[True, True], [False, True], [True, False]]
    assert (results["verdict"] == "responds").tolist() == [True, False, False]


def test_shuffles(slide, sage):
    planted = [("CXCL12", "CXCR4")]
    results = run(slide, [*planted, ("CSF1", "CSF1R")], planted_model(planted, 20.0), n_shuffles=9)
    # A model that is linear in the ligand alone responds the same whatever the neighbors are.
    assert results["shuffled_mean"].iloc[0] == pytest.approx(results["mean_delta"].iloc[0], rel=0.05)
    assert results["shuffled_pval"].between(0, 1).all()
    other = run(slide, PAIRS, sage, n_shuffles=3)
    assert (other["shuffled_sd"] > 0).sum() > 3


def test_pairs_are_ahead_of_others_of_their_genes():
    """A set of pairs with responses of their own, beside genes that respond a lot in any pair."""
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 30, 100), rng.integers(0, 40, 100)
    rows, columns = np.unique(np.stack([rows, columns]), axis=1)
    allowed = np.ones((30, 40), dtype=bool)
    allowed[rows, columns] = False
    change = rng.normal(size=(30, 40)) * rng.gamma(1, size=(30, 1)) * rng.gamma(1, size=40)
    pvals = [compare_pairing(rng.permuted(change, axis=1), rows, columns, allowed, rng)["pval"] for _ in range(40)]
    assert stats.kstest(pvals, "uniform").pvalue > 0.01
    change[rows, columns] *= 4
    found = compare_pairing(change, rows, columns, allowed, rng)
    assert found["n_pairs"] == len(rows)
    assert found["auc"] > 0.6
    assert found["pval"] == 1 / 200
    others = repair(rows, columns, allowed, rng)
    assert sorted(others) == sorted(columns)
    assert allowed[rows, others].mean() > 0.97
    forbidden = compare_pairing(change, rows, columns, np.zeros_like(allowed), rng)
    assert np.isnan(forbidden["pval"])


def test_control_complexes_that_do_not_vary_leave_the_others(slide, tiny):
    """Two rare genes are seldom in one spot, so that a complex of them may be nowhere."""
    mean = np.asarray(slide.X.mean(axis=0)).ravel()
    rare = slide.var_names[(mean > 0.05) & (mean < 0.12)][:60]
    pairs = [("CXCL12", f"{a}_{b}") for a, b in zip(rare[::2], rare[1::2], strict=True)]
    results = run(slide, pairs, awake(tiny), n_controls=20)
    x = slide.to_df()
    varies = [np.ptp(x[pair[1].split("_")].min(axis=1)) > 0 for pair in pairs]
    assert 10 < sum(varies) < len(pairs)
    assert (results["pval"].notna() <= varies).all()
    assert results["pval"].notna().sum() > 0.8 * sum(varies)


def test_missing_controls_are_left_out_of_ranks():
    rng = np.random.default_rng(0)
    controls = rng.normal(size=(200, 20))
    controls[:, 12:][rng.random((200, 8)) < 0.5] = np.nan
    controls[0, 12:] = np.nan
    statistic = rng.normal(size=200)
    null = compare(statistic, controls, rng.random(200))
    alone = (statistic[0] - controls[0, :12].mean()) / controls[0, :12].std(ddof=1)
    assert null.zscore[0] == pytest.approx(alone)
    assert stats.kstest(null.pval, "uniform").pvalue > 0.01
