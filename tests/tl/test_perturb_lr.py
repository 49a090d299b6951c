"""Perturbation of ligands: against the literal protocol, and what is refused."""

import itertools

import anndata as ad
import literal
import numpy as np
import pandas as pd
import pytest
import torch
from perturbation import PAIRS, SYMBOLS, awake, gene, planted_model, run
from scipy import stats

import sagefm as sg


def literal_changes(model, adata, ligand, receptor, masked, reference="low", hidden=None):
    """Change of the receptor at every spot, one complete graph a spot; None for what it is compared with: observed."""
    dense = literal.dense_log1p(adata, SYMBOLS)
    neighborhoods = literal.neighborhoods_of(adata.obsp["sage_connectivities"])
    genes = [gene(name) for name in ligand.split("_")]
    masked, hidden = (np.array([gene(name) for name in names]) for names in (masked, hidden or masked))
    levels = [{g: pick(dense[:, g]) for g in genes} for pick in (np.min, np.max)]
    if reference == "observed":
        levels[0] = {}
    similar = literal.similar_mean(dense, hidden, neighborhoods)  # by what no pair of the call hides
    low, high = (
        literal.perturbed(model.network, dense, neighborhoods, level, masked, similar=similar) for level in levels
    )
    change = (high - low)[:, [gene(name) for name in receptor.split("_")]]
    smallest = np.take_along_axis(change, np.abs(change).argmin(1)[:, None], 1)[:, 0]
    agree = (change > 0).all(1) | (change < 0).all(1)
    return np.where(agree, smallest, 0)


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


@pytest.mark.slow
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
            model, patch, ligand, receptor, every if mask == "all" else receptor.split("_"), reference, every
        )
        for ligand, receptor in pairs
    }
    assert_like_literal(patch, results, changes)
    assert len(np.unique(np.concatenate(list(changes.values())))) > 100


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_results_can_be_saved(slide, sage, tmp_path):
    slide.obs["half"] = pd.Categorical(np.where(slide.obs["array_row"] < 5, "up", "down"))
    pairs = [*PAIRS, ("X", "Y")]
    options = {"n_controls": 5, "n_shuffles": 2, "n_levels": 3, "library_key": "half"}
    run(slide, pairs, sage, **options)
    sg.tl.perturbation_overlap(slide)
    sg.tl.perturb_targets(slide, {"TGFB1": ["COL1A1", "FN1"], "X": ["Y"]}, sage, n_controls=5, library_key="half")
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
        ({"n_controls": 5.5}, TypeError, "n_controls"),
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


@pytest.mark.slow
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
    sg.tl.perturb_targets(slide, targets, sage, n_controls=5)
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
    sg.tl.perturb_targets(slide, targets, model, n_controls=5)
    tests = slide.uns["perturb_targets"]["tests"]
    assert tests["mean_target"].nunique() == 1
    assert (tests["mean_control"] == 0).all()
    assert tests[["target_t", "pval"]].isna().all(axis=None)
