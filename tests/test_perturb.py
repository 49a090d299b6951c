"""In-silico perturbation against the literal protocol, closed forms, autograd and planted nulls."""

import copy
import itertools

import anndata as ad
import literal
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import sagefm as sg
from sagefm._stats import adjust_pvalues
from sagefm.models._vocabulary import hest1k
from sagefm.tl._perturb.clamp import combine_subunits
from sagefm.tl._perturb.controls import compare, match_controls
from sagefm.tl._perturb.interactions import read_interactions

SYMBOLS = hest1k().symbols
PAIRS = [("CXCL12", "CXCR4"), ("CXCL12", "CCR7"), ("TGFB1", "TGFBR2"), ("IL6", "IL6R"), ("COL1A1", "COL1A1")]


@pytest.fixture(scope="module")
def _patch():
    adata = sg.datasets.simulated_visium(5, 7, n_genes=10_500, rng=1)
    sg.pp.neighborhood_graph(adata)
    return adata


@pytest.fixture
def patch(_patch):
    """Slide small enough for the literal protocol, the test's own copy."""
    return _patch.copy()


def gene(name):
    return SYMBOLS.index(name)


def literal_changes(model, adata, ligand, receptor, masked, reference="low"):
    """Change of the receptor at every spot, one complete graph a spot; None for what it is compared with: observed."""
    dense = literal.dense_log1p(adata, SYMBOLS)
    neighborhoods = literal.neighborhoods_of(adata.obsp["sage_connectivities"])
    genes = [gene(name) for name in ligand.split("_")]
    masked = np.array([gene(name) for name in masked])
    levels = [{g: pick(dense[:, g]) for g in genes} for pick in (np.min, np.max)]
    if reference == "observed":
        levels[0] = {}
    low, high = (literal.perturbed(model.network, dense, neighborhoods, level, masked) for level in levels)
    change = (high - low)[:, [gene(name) for name in receptor.split("_")]]
    smallest = np.take_along_axis(change, np.abs(change).argmin(1)[:, None], 1)[:, 0]
    agree = (change > 0).all(1) | (change < 0).all(1)
    return np.where(agree, smallest, 0)


def awake(model):
    """The same model with the targets of the tests above the last ReLU."""
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        network.fc_gene.bias.add_(1)
    return sg.models.Model("awake", network, model.vocabulary)


def run(adata, pairs, model, **options):
    options = {"n_controls": 0, "store_spots": True, **options}
    sg.tl.perturb_lr(adata, pairs, model, **options)
    return adata.uns["perturb_lr"]["results"]


def assert_like_literal(adata, results, changes):
    for name, expected in changes.items():
        found = adata.obsm["perturb_lr"][name].to_numpy()
        # Counts leave out what lies below the resolution of float32.
        assert found == pytest.approx(expected, abs=max(1e-6, 1e-4 * float(np.abs(expected).max())))
        clear = np.abs(expected) > 1e-6
        assert (np.sign(found[clear]) == np.sign(expected[clear])).all()
        row = results.loc[name]
        assert row["mean_delta"] == pytest.approx(expected.mean(), abs=1e-6)
        n = len(expected)
        assert (expected > 1e-6).sum() <= row["n_up"] <= n - (expected < -1e-6).sum()
        assert row["n_up"] + row["n_down"] + row["n_same"] == row["n_spots"] == n
        assert row["effect"] == pytest.approx((row["n_up"] - row["n_down"]) / n)


@pytest.mark.parametrize(
    ("family", "contrast", "mask"),
    [
        *itertools.product(["tiny"], ["max_vs_min", "max_vs_observed"], ["all", "pair"]),
        ("sage", "max_vs_min", "pair"),
        ("sage", "max_vs_observed", "all"),
    ],
)
def test_like_the_literal_protocol(patch, family, contrast, mask, request):
    model = awake(request.getfixturevalue(family))
    pairs = [*PAIRS, ("COL1A1_COL1A2", "CXCR4_CD74")]
    results = run(patch, pairs, model, mask=mask, contrast=contrast)
    every = sorted({name for _, receptor in pairs for name in receptor.split("_")})
    reference = "low" if contrast == "max_vs_min" else "observed"
    changes = {
        f"{ligand}|{receptor}": literal_changes(
            model, patch, ligand, receptor, every if mask == "all" else receptor.split("_"), reference
        )
        for ligand, receptor in pairs
    }
    assert_like_literal(patch, results, changes)
    assert len(np.unique(np.concatenate(list(changes.values())))) > 100


@pytest.mark.parametrize("name", ["her2st_G2", "CRC_16"])
def test_like_the_literal_protocol_on_real_sections(section, published_size, name):
    adata = section(name)
    rows = np.argsort(np.hypot(*(adata.obsm["spatial"] - np.median(adata.obsm["spatial"], axis=0)).T))[:30]
    adata = adata[rows].copy()
    sg.pp.neighborhood_graph(adata)
    # By column of that name, as the literal side finds them.
    pairs = [("TGFB1", "TGFBR2"), ("CSF1", "CSF1R"), ("CD74", "COL1A1")]
    for mask in ("all", "pair"):
        results = run(adata, pairs, published_size, mask=mask)
        ok = [pair for pair in pairs if results.loc["|".join(pair), "status"] == "ok"]
        assert ok
        sg.pp.align_genes(adata)
        dense = literal.dense_log1p(adata, SYMBOLS, adata.var["sage_gene"].to_numpy())
        plain = ad.AnnData(np.expm1(dense), var=pd.DataFrame(index=list(SYMBOLS)))
        plain.obsp["sage_connectivities"] = adata.obsp["sage_connectivities"]
        changes = {
            "|".join(pair): literal_changes(
                published_size, plain, *pair, [r for _, r in ok] if mask == "all" else [pair[1]]
            )
            for pair in ok
        }
        assert_like_literal(adata, results, changes)


def test_levels_give_a_dose_response(patch, sage):
    results = run(patch, PAIRS, sage, n_levels=4)
    doses = patch.uns["perturb_lr"]["doses"]
    assert doses.groupby("pair").size().eq(4).all()
    dense = literal.dense_log1p(patch, SYMBOLS)
    neighborhoods = literal.neighborhoods_of(patch.obsp["sage_connectivities"])
    masked = np.unique([gene(receptor) for _, receptor in PAIRS])
    ligand = gene("CXCL12")
    own = doses[doses["pair"] == "CXCL12|CXCR4"]
    assert own["dose"].to_numpy() == pytest.approx(np.linspace(dense[:, ligand].min(), dense[:, ligand].max(), 4))
    for dose, mean in zip(own["dose"], own["mean"], strict=True):
        predicted = literal.perturbed(sage.network, dense, neighborhoods, {ligand: np.float32(dose)}, masked)
        assert mean == pytest.approx(predicted[:, gene("CXCR4")].mean(), rel=1e-4)
    assert own["mean"].iloc[-1] - own["mean"].iloc[0] == pytest.approx(
        results.loc["CXCL12|CXCR4", "mean_delta"], abs=1e-5
    )


def test_reference_is_the_pearson_correlation(slide, tiny):
    results = run(slide, [*PAIRS, ("COL1A1_COL1A2", "CD74")], tiny)
    dense = literal.dense_log1p(slide, SYMBOLS)
    mean = slide.obsp["sage_connectivities"] @ dense / 14
    for ligand, receptor in PAIRS:
        r, p = stats.pearsonr(mean[:, gene(ligand)], dense[:, gene(receptor)])
        row = results.loc[f"{ligand}|{receptor}"]
        assert row["reference_r"] == pytest.approx(r, abs=1e-6)
        assert row["reference_pval"] == pytest.approx(p, rel=1e-3, abs=1e-12)
        assert row["concordant"] == (np.sign(row["effect"]) == np.sign(r))
    scarcest = np.minimum(dense[:, gene("COL1A1")], dense[:, gene("COL1A2")])
    expected = np.corrcoef(slide.obsp["sage_connectivities"] @ scarcest / 14, dense[:, gene("CD74")])[0, 1]
    assert results.loc["COL1A1_COL1A2|CD74", "reference_r"] == pytest.approx(expected, abs=1e-6)


def test_every_pair_keeps_its_row(slide, tiny):
    missing = next(symbol for symbol in SYMBOLS if symbol not in slide.var_names)
    counts = slide.X.tolil()
    counts[:, slide.var_names.get_loc("IL6")] = 3
    slide.X = counts.tocsr()
    pairs = [("CXCL12", "CXCR4"), ("nonsense", "CXCR4"), ("CXCL12", missing), ("IL6", "IL6R"), ("CXCL12", "CXCR4")]
    pairs += [("IL6_CXCL12", "CXCR4"), ("CXCL12", "CXCR4_nonsense")]
    results = run(slide, pairs, tiny, n_controls=5)
    expected = ["ok", "not_in_model", "not_measured", "constant_ligand", "ok", "ok", "not_in_model"]
    assert results["status"].tolist() == expected
    assert results.index.tolist() == ["|".join(pair) for pair in pairs]
    failed = results[results["status"] != "ok"]
    assert failed.drop(columns=["ligand", "receptor", "status", "verdict"]).isna().all(axis=None)
    assert (failed["verdict"] == "not testable").all()
    assert results.iloc[0].equals(results.iloc[4])
    assert slide.obsm["perturb_lr"].columns.tolist() == ["CXCL12|CXCR4", "IL6_CXCL12|CXCR4"]


def test_results_can_be_saved(slide, sage, tmp_path):
    slide.obs["half"] = pd.Categorical(np.where(slide.obs["array_row"] < 5, "up", "down"))
    pairs = [*PAIRS, ("X", "Y")]
    options = {"n_controls": 5, "n_control_ligands": 5, "n_shuffles": 2, "n_levels": 3, "library_key": "half"}
    run(slide, pairs, sage, **options)
    sg.tl.perturbation_overlap(slide)
    sg.tl.perturb_targets(slide, {"TGFB1": ["COL1A1", "FN1"], "X": ["Y"]}, sage, n_controls=2, library_key="half")
    sg.tl.gene_sensitivity(slide, ["CXCL12"], ["CXCR4"], model=sage, store_spots=True)
    for write, read in (("write_h5ad", ad.read_h5ad), ("write_zarr", ad.read_zarr)):
        path = tmp_path / f"slide.{write[6:]}"
        getattr(slide, write)(path)
        back = read(path)
        for key in ("perturb_lr", "perturb_targets", "gene_sensitivity"):
            pd.testing.assert_frame_equal(
                back.uns[key]["results"], slide.uns[key]["results"], check_dtype=False, check_index_type=False
            )
        assert back.uns["perturb_lr"]["overlap"]["counts"]["n_pairs"] == len(PAIRS)


@pytest.mark.parametrize("mask", ["all", "pair"])
def test_controls_change_nothing_else(slide, sage, mask):
    columns = ["n_up", "n_down", "effect", "mean_delta", "reference_r"]
    plain = run(slide, PAIRS, sage, mask=mask)
    assert (plain["verdict"] == "not testable").all()
    controlled = run(slide, PAIRS, sage, mask=mask, n_controls=6, control_spots=50)
    pd.testing.assert_frame_equal(plain[columns], controlled[columns])
    assert controlled[["control_mean", "control_sd", "zscore", "pval", "padj"]].notna().all(axis=None)
    again = run(slide, PAIRS, sage, mask=mask, n_controls=6, control_spots=50)
    pd.testing.assert_frame_equal(controlled, again)


def test_controls_are_scored_with_both_masked(patch, sage):
    """The statistic of a pair and of its controls, from the literal protocol with receptors and controls masked."""
    results = run(patch, PAIRS[:1], sage, n_controls=5, control_spots=None)
    dense = literal.dense_log1p(patch, SYMBOLS)
    ligand, receptor = map(gene, PAIRS[0])
    measured = np.flatnonzero(pd.Index(SYMBOLS).isin(patch.var_names))
    statistics = type("S", (), {"mean": dense.mean(0), "sd": dense.std(0), "detection": (dense > 0).mean(0)})
    controls = match_controls([receptor], statistics, measured, {ligand, receptor}, 5, 1000)[receptor]
    neighborhoods = literal.neighborhoods_of(patch.obsp["sage_connectivities"])
    masked = np.array([receptor, *controls])
    low, high = (
        literal.perturbed(sage.network, dense, neighborhoods, {ligand: pick(dense[:, ligand])}, masked)
        for pick in (np.min, np.max)
    )
    statistic = ((high - low).mean(0) / np.maximum(dense.std(0), 1e-12))[masked]
    row = results.iloc[0]
    assert row["control_mean"] == pytest.approx(statistic[1:].mean(), rel=1e-3, abs=1e-7)
    assert row["control_sd"] == pytest.approx(statistic[1:].std(ddof=1), rel=1e-3)
    expected = (statistic[0] - statistic[1:].mean()) / statistic[1:].std(ddof=1)
    assert row["zscore"] == pytest.approx(expected, rel=1e-2, abs=1e-3)


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
    """Random pairs: p-values are uniform, and nothing survives adjustment."""
    detected = np.asarray((slide.X > 0).mean(axis=0)).ravel() > 0.05
    names = slide.var_names[detected]
    rng = np.random.default_rng(1)
    pairs = [tuple(rng.choice(names, 2, replace=False)) for _ in range(400)]
    results = run(slide, pairs, "sagefm-mini", n_controls=20, store_spots=False)
    share = (results["pval"] < 0.05).mean()
    assert 0.02 < share < 0.09
    assert (results["padj"] > 0.05).all()


def planted_model(pairs, strength):
    """Published architecture that responds to the ligands of some pairs, and a little to every gene."""
    model = random_model((64, 32, 32, 32, 64))
    network = model.network
    with torch.no_grad():
        for unit, (ligand, receptor) in enumerate(pairs):
            for conv in (network.conv1, network.conv2, network.conv3, network.conv4, network.conv5):
                conv.lin.weight[unit] = 0
                conv.lin.weight[:, unit] = 0 if conv is not network.conv1 else conv.lin.weight[:, unit]
                conv.lin.weight[unit, unit if conv is not network.conv1 else gene(ligand)] = 1
                conv.bias[unit] = 0
            network.fc_gene.weight[:, unit] = 0
            network.fc_gene.weight[gene(receptor), unit] = strength
        network.fc_gene.bias.fill_(5)  # above the last ReLU
    return model


def test_planted_responses_are_found(slide):
    planted = [("CXCL12", "CXCR4"), ("CCL19", "CCR7"), ("TGFB1", "TGFBR2")]
    null = [("CSF1", "CSF1R"), ("IL6", "IL6R"), ("PDGFB", "PDGFRB"), ("WNT5A", "FZD2")]
    results = run(slide, planted + null, planted_model(planted, 20.0), n_controls=20)
    assert (results["verdict"].iloc[:3] == "responds").all()
    assert (results["verdict"].iloc[3:] == "not distinguishable from controls").all()
    results = run(slide, planted + null, planted_model(planted, 0.0), n_controls=20)
    assert (results["verdict"] == "not distinguishable from controls").all()


def test_control_ligands_and_shuffles(slide, sage):
    planted = [("CXCL12", "CXCR4")]
    model = planted_model(planted, 20.0)
    results = run(slide, [*planted, ("CSF1", "CSF1R")], model, n_control_ligands=10, n_shuffles=9)
    assert abs(results["ligand_zscore"].iloc[0]) > 10 > abs(results["ligand_zscore"].iloc[1])
    # A model that is linear in the ligand alone responds the same whatever the neighbours are.
    assert results["shuffled_mean"].iloc[0] == pytest.approx(results["mean_delta"].iloc[0], rel=0.05)
    assert results["shuffled_pval"].between(0, 1).all()
    other = run(slide, PAIRS, sage, n_shuffles=3)
    assert (other["shuffled_sd"] > 0).sum() > 3


def test_libraries_add_up(slide, sage):
    slide.obs["third"] = pd.Categorical(np.array(["a", "b", "c"])[slide.obs["array_row"].to_numpy() % 3])
    results = run(slide, PAIRS, sage, library_key="third")
    libraries = slide.uns["perturb_lr"]["libraries"]
    together = libraries.groupby("pair")[["n_spots", "n_up", "n_down"]].sum().loc[results.index]
    assert (together == results[together.columns]).all(axis=None)
    one = libraries[libraries["library"] == "b"].set_index("pair")
    rows = (slide.obs["third"] == "b").to_numpy()
    changes = slide.obsm["perturb_lr"][rows]
    assert one["mean_delta"].to_numpy(dtype=float) == pytest.approx(changes.mean().to_numpy(), rel=1e-4, abs=1e-8)
    dense = literal.dense_log1p(slide, SYMBOLS)
    mean = slide.obsp["sage_connectivities"] @ dense / 14
    r = stats.pearsonr(mean[rows, gene("TGFB1")], dense[rows, gene("TGFBR2")])
    assert one.loc["TGFB1|TGFBR2", "reference_r"] == pytest.approx(r.statistic, abs=1e-6)
    assert one.loc["TGFB1|TGFBR2", "reference_pval"] == pytest.approx(r.pvalue, rel=1e-3)


def test_overlap_of_two_groups(slide):
    rows = [
        # pair, r, p and effect of each group
        ("A|B", 0.5, 0.01, 1.0, 0.4, 0.02, 0.8),  # agrees, reproduced
        ("C|D", 0.5, 0.01, -1.0, 0.4, 0.02, 0.8),  # agrees, reproduced in the second alone
        ("E|F", 0.5, 0.01, 1.0, -0.4, 0.02, 0.8),  # opposite references
        ("G|H", 0.5, 0.2, 1.0, 0.4, 0.02, 0.8),  # significant in the second alone
    ]
    parts = []
    for number, library in enumerate(("validation", "test")):
        columns = [(row[0], *row[1 + 3 * number : 4 + 3 * number]) for row in rows]
        part = pd.DataFrame(columns, columns=["pair", "reference_r", "reference_pval", "effect"])
        parts.append(part.assign(library=library, status="ok"))
    slide.uns["perturb_lr"] = {"libraries": pd.concat(parts, ignore_index=True)}
    sg.tl.perturbation_overlap(slide, ["validation", "test"])
    found = slide.uns["perturb_lr"]["overlap"]
    assert found["pairs"]["agrees"].tolist() == [True, True, False, False]
    assert found["pairs"]["reproduced"].tolist() == [True, False, False, False]
    counts = {name: value for name, value in found["counts"].items() if not name.startswith("effect")}
    expected = {"n_pairs": 4, "significant_1": 3, "significant_2": 4, "significant_both": 3, "agrees": 2}
    assert counts == expected | {"reproduced_1": 1, "reproduced_2": 2, "reproduced": 1}
    assert np.isnan(found["counts"]["effect_r"])  # constant in the second group
    with pytest.raises(ValueError, match="two libraries"):
        sg.tl.perturbation_overlap(slide, ["test"])
    with pytest.raises(KeyError, match="no library 'x'"):
        sg.tl.perturbation_overlap(slide, ["test", "x"])


def test_targets_and_random_controls(slide, sage):
    targets = {"TGFB1": ["COL1A1", "FN1", "nonsense"], "CXCL12": ["CXCR4", "CD74"]}
    sg.tl.perturb_targets(slide, targets, sage, n_controls=4)
    found = slide.uns["perturb_targets"]
    assert found["results"]["status"].tolist() == ["ok", "ok", "not_in_model", "ok", "ok"]
    pairs = run(slide, [(g, t) for g, names in targets.items() for t in names], sage)
    assert found["results"]["effect"].to_numpy() == pytest.approx(pairs["effect"].to_numpy(), nan_ok=True)
    controls = found["controls"]
    assert len(controls) == 4 * 4
    assert not set(controls["control"]) & {*targets, "COL1A1", "FN1", "CXCR4", "CD74"}
    tests = found["tests"]
    assert tests["gene"].tolist() == [name for name in ("all", "TGFB1", "CXCL12") for _ in range(5)]
    # In the second run targets and controls are masked together.
    names = [(g, t) for g in targets for t in ["COL1A1", "FN1", "CXCR4", "CD74", *controls["control"].unique()]]
    both = run(slide, names, sage)["effect"]
    own = both[["TGFB1|COL1A1", "TGFB1|FN1", "CXCL12|CXCR4", "CXCL12|CD74"]]
    other = both[[f"{row.gene}|{row.control}" for row in controls.itertuples()]]
    assert other.to_numpy() == pytest.approx(controls["effect"].to_numpy())
    expected = stats.ttest_ind(own, other)
    row = tests.iloc[0]
    assert (row["t"], row["pval"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert (row["n_targets"], row["n_controls"], row["replicate"]) == (4, 16, "pooled")


def test_textbook_targets_have_references():
    table = sg.datasets.textbook_targets()
    assert table["doi"].str.match(r"10\.\d{4}").all()
    assert not table.duplicated(["gene", "target"]).any()
    assert (table["gene"] != table["target"]).all()
    assert np.isin(table["target"].unique(), SYMBOLS).mean() > 0.9


@pytest.mark.parametrize("family", ["tiny", "sage"])
@pytest.mark.parametrize("mask", ["all", "none"])
@pytest.mark.parametrize("wrt", ["neighbors", "center"])
def test_sensitivity_is_the_gradient(slide, family, mask, wrt, request):
    model = request.getfixturevalue(family)
    genes, targets = ["CXCL12", "COL1A1", "CD74"], ["CXCR4", "COL1A1"]
    sg.tl.gene_sensitivity(slide, genes, targets, model=model, mask=mask, wrt=wrt, store_spots=True)
    spots = slide.obsm["gene_sensitivity"].to_numpy().reshape(slide.n_obs, 3, 2)
    assert slide.uns["gene_sensitivity"]["results"].to_numpy() == pytest.approx(spots.mean(0), abs=1e-6)
    dense = torch.from_numpy(literal.dense_log1p(slide, SYMBOLS))
    graph = slide.obsp["sage_connectivities"]
    index, read = [gene(name) for name in genes], [gene(name) for name in targets]
    for spot in (0, 50, 109):
        neighbors = dense[graph.indices[graph.indptr[spot] : graph.indptr[spot + 1]]]

        def predict(values, spot=spot, neighbors=neighbors):
            center, around = dense[spot].clone(), neighbors.clone()
            if wrt == "neighbors":  # all of them move together
                around[:, index] += values - neighbors[:, index].mean(0)
            else:
                center[index] = values
            observed = dense[spot].clone()
            if mask == "all":
                center[read], observed[read] = 0, 0
            x = torch.cat([center[None], around])
            batch = literal.Data(x=x, edge_index=literal.complete_edges(len(x)), ptr=torch.tensor([0, len(x)]))
            depth = None
            if model.architecture == "sage":
                seen = np.concatenate([observed[None].numpy(), neighbors.numpy()])
                depth = torch.tensor([literal._depth(seen, np.array(read if mask == "all" else [], dtype=int))])
            return literal.predict_center(model.network, batch, depth)[0, read]

        at = neighbors[:, index].mean(0) if wrt == "neighbors" else dense[spot, index]
        expected = torch.autograd.functional.jacobian(predict, at).T
        assert spots[spot] == pytest.approx(expected.numpy(), abs=1e-5)
    assert np.abs(spots).max() > 1e-4


def test_sensitivity_predicts_a_small_perturbation(slide, sage):
    """Finite differences, through perturb_lr's own path: the highest level is a little above what was observed."""
    sg.tl.gene_sensitivity(slide, ["CXCL12"], ["CXCR4"], model=sage, store_spots=True)
    slope = slide.obsm["gene_sensitivity"].iloc[:, 0].to_numpy()
    dense = literal.dense_log1p(slide, SYMBOLS)
    neighborhoods = literal.neighborhoods_of(slide.obsp["sage_connectivities"])
    mean = slide.obsp["sage_connectivities"] @ dense[:, gene("CXCL12")] / 14
    masked, step = np.array([gene("CXCR4")]), 1e-2
    for spot in (3, 60):
        up, down = (
            literal.perturbed(
                sage.network,
                dense,
                [neighborhoods[spot]],
                {gene("CXCL12"): np.float32(mean[spot] + sign * step)},
                masked,
            )[0, gene("CXCR4")]
            for sign in (1, -1)
        )
        assert (up - down) / (2 * step) == pytest.approx(slope[spot], abs=2e-3)


@given(st.lists(st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_complexes_change_as_their_least_changed_subunit(changes):
    combined = combine_subunits(torch.tensor(changes)).numpy()
    for row, value in zip(changes, combined, strict=True):
        if min(row) > 0 or max(row) < 0:
            assert abs(value) == pytest.approx(min(map(abs, row)))
            assert np.sign(value) == np.sign(row[0])
        else:
            assert value == 0


def test_paper_pairs():
    pairs = sg.datasets.paper_interactions()
    assert len(pairs) == 34
    assert (pairs["ligand"] + "R" == pairs["receptor"]).all()
    assert set(pairs.loc[~pairs["is_ligand_receptor"], "ligand"]) == {"AHR", "GCK", "MTR", "ADA", "HIP1", "INSR"}
    assert (
        read_interactions(None)
        == read_interactions("paper")
        == list(zip(pairs["ligand"], pairs["receptor"], strict=True))
    )


def test_pairs_from_tables_and_liana():
    table = pd.DataFrame({"source": ["A", "B"], "target": ["C", "D"], "more": 1})
    assert read_interactions(table) == [("A", "C"), ("B", "D")] == read_interactions([("A", "C"), ["B", "D"]])
    pytest.importorskip("liana")
    consensus = read_interactions("consensus")
    assert len(consensus) > 4500
    assert ("LGALS9", "PTPRC") in consensus
    with pytest.raises(KeyError, match="neither 'paper' nor a resource"):
        read_interactions("nonsense")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"interactions": []}, ValueError, "empty"),
        ({"interactions": 3}, TypeError, "has to be 'paper'"),
        ({"interactions": ["A", "B"]}, TypeError, "pairs"),
        ({"interactions": [("A", "B", "C")]}, ValueError, "pairs"),
        ({"interactions": [("A", None)]}, ValueError, "pairs"),
        ({"interactions": pd.DataFrame({"x": [1]})}, KeyError, "'ligand' and 'receptor'"),
        ({"contrast": "max"}, ValueError, "contrast"),
        ({"mask": "none"}, ValueError, "mask"),
        ({"n_levels": 1}, ValueError, "n_levels"),
        ({"n_controls": 2}, ValueError, "n_controls"),
        ({"n_controls": -1}, ValueError, "n_controls"),
        ({"n_control_ligands": 1.5}, TypeError, "n_control_ligands"),
        ({"n_shuffles": -1}, ValueError, "n_shuffles"),
        ({"control_spots": 0}, ValueError, "control_spots"),
        ({"library_key": "nonsense"}, KeyError, "library_key"),
        ({"key_added": "spatial"}, ValueError, "exists"),
        ({"layer": "nonsense"}, KeyError, "layer"),
        ({"connectivity_key": "nonsense"}, KeyError, "obsp"),
    ],
)
def test_bad_arguments_leave_the_slide_alone(slide, tiny, options, error, match):
    before = slide.copy()
    with pytest.raises(error, match=match):
        sg.tl.perturb_lr(slide, **{"interactions": PAIRS, "model": tiny, **options})
    assert slide.uns.keys() == before.uns.keys()
    assert slide.obsm.keys() == before.obsm.keys()
    assert slide.var.equals(before.var)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda a, m: sg.tl.perturb_targets(a, {"TGFB1": "FN1"}, m), TypeError, "list of names"),
        (lambda a, m: sg.tl.perturb_targets(a, [("TGFB1", "FN1")], m), TypeError, "mapping"),
        (lambda a, m: sg.tl.perturb_targets(a, pd.DataFrame({"x": [1]}), m), KeyError, "'gene' and 'target'"),
        (lambda a, m: sg.tl.perturb_targets(a, {"TGFB1": []}, m), ValueError, "no target"),
        (lambda a, m: sg.tl.perturb_targets(a, pd.DataFrame({"gene": [], "target": []}), m), ValueError, "empty"),
        (lambda a, m: sg.tl.gene_sensitivity(a, ["nonsense"], model=m), KeyError, "nonsense"),
        (lambda a, m: sg.tl.gene_sensitivity(a, [], model=m), ValueError, "genes is empty"),
        (lambda a, m: sg.tl.gene_sensitivity(a, ["FN1"], [3], model=m), TypeError, "targets"),
        (lambda a, m: sg.tl.gene_sensitivity(a, ["FN1"], model=m, wrt="self"), ValueError, "wrt"),
        (lambda a, m: sg.tl.perturbation_overlap(a), KeyError, "Run sg.tl.perturb_lr"),
        (lambda a, m: sg.tl.perturbation_overlap(a, alpha=2), ValueError, "alpha"),
    ],
)
def test_bad_arguments_of_the_others(slide, tiny, call, error, match):
    with pytest.raises(error, match=match):
        call(slide, tiny)


def test_containers_agree(slide, sage, tmp_path):
    expected = run(slide, PAIRS, sage, n_controls=5).drop(columns=["verdict", "ligand", "receptor", "status"])
    graph = slide.obsp["sage_connectivities"]
    slide.write_h5ad(tmp_path / "slide.h5ad")
    backed = ad.read_h5ad(tmp_path / "slide.h5ad", backed="r")
    dense = slide.copy()
    dense.X = dense.X.toarray()
    shuffled = slide[:, np.random.default_rng(0).permutation(slide.n_vars)].copy()
    for other in (backed, dense, shuffled):
        assert (other.obsp["sage_connectivities"] != graph).nnz == 0
        found = run(other, PAIRS, sage, n_controls=5, batch_size=37)[expected.columns]
        for column in expected:
            assert found[column].to_numpy(dtype=float) == pytest.approx(
                expected[column].to_numpy(dtype=float), rel=1e-3, abs=1e-5, nan_ok=True
            ), column


def test_copy_and_log(slide, tiny, log):
    result = sg.tl.perturb_lr(slide, PAIRS, tiny, n_controls=0, copy=True)
    assert "perturb_lr" in result.uns
    assert "perturb_lr" not in slide.uns
    assert "uns['perturb_lr']" in log.text


def test_receptors_that_do_not_vary_are_not_testable(tiny):
    """A constant whose variance is not zero by rounding."""
    slide = sg.datasets.simulated_visium(30, 33, n_genes=5_000)
    constant = {"CXCR4": 7, "CSF1R": 25, "EGFR": 41}
    x = slide.X.tolil()
    for name, value in constant.items():
        x[:, slide.var_names.get_loc(name)] = value
    slide.X = x.tocsr()
    sg.pp.neighborhood_graph(slide)
    results = run(slide, [("CXCL12", name) for name in (*constant, "IL6R")], awake(tiny), n_controls=5)
    assert (results["verdict"].iloc[:3] == "not testable").all()
    assert np.isfinite(results["pval"].iloc[3])


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


def test_one_pair_by_two_names(slide, sage):
    pairs = [("CXCL12", "CXCR4"), ("CXCL12", "ENSG00000121966"), ("CXCL12", "CXCR4")]
    run(slide, pairs, sage, n_levels=3)
    names = ["CXCL12|CXCR4", "CXCL12|ENSG00000121966"]
    spots, doses = slide.obsm["perturb_lr"], slide.uns["perturb_lr"]["doses"]
    assert spots.columns.tolist() == names
    assert (spots[names[0]] == spots[names[1]]).all()
    assert doses["pair"].value_counts().to_dict() == dict.fromkeys(names, 3)
    sg.pl.dose_response(slide)
    targets = {"TGFB1": ["FN1", "COL1A1"], "ENSG00000105329": ["COL3A1", "FN1"]}
    sg.tl.perturb_targets(slide, targets, sage, n_controls=3)
    tests = slide.uns["perturb_targets"]["tests"]
    assert set(tests["gene"]) == {"all", "TGFB1"}
    assert (tests["n_targets"] == 3).all()


def test_saturated_effects_have_no_t(slide):
    """All targets up at all spots, all controls unchanged: no variance to compare with."""
    targets = {"CXCL12": ["CXCR4", "CCR7"]}
    model = planted_model([("CXCL12", "CXCR4")], 20.0)
    with torch.no_grad():
        model.network.fc_gene.weight.zero_()
        model.network.fc_gene.weight[[gene("CXCR4"), gene("CCR7")], 0] = 20.0
    sg.tl.perturb_targets(slide, targets, model, n_controls=3)
    tests = slide.uns["perturb_targets"]["tests"]
    assert tests["mean_target"].nunique() == 1
    assert (tests["mean_control"] == 0).all()
    assert tests[["t", "pval"]].isna().all(axis=None)


def test_a_model_is_no_database(slide):
    with pytest.raises(ValueError, match="pass it as model='sagefm-mini'"):
        sg.tl.perturb_lr(slide, "sagefm-mini")
    with pytest.raises(ValueError, match="pass it as model='sagefm-mini'"):
        sg.tl.impute(slide, "sagefm-mini")
