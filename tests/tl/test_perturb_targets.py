"""Targets of a ligand and their controls, and the overlap of groups."""

import numpy as np
import pandas as pd
import pytest
from perturbation import SYMBOLS, planted_model, run
from scipy import stats

import sagefm as sg


def test_overlap_of_two_groups(slide):
    rows = [
        # pair, r, p and effect of each group
        ("A|B", 0.5, 0.01, 1.0, 0.4, 0.02, 0.8),  # agrees, reproduced
        ("C|D", 0.5, 0.01, -1.0, 0.4, 0.02, 0.8),  # agrees, reproduced in the second alone
        ("E|F", 0.5, 0.01, 1.0, -0.4, 0.02, 0.8),  # opposite references
        ("G|H", 0.5, 0.2, 1.0, 0.4, 0.02, 0.8),  # significant in the second alone
        ("G|I", -0.5, 0.01, -1.0, -0.4, 0.02, -0.4),  # agrees, reproduced, negative
    ]
    parts = []
    for number, library in enumerate(("validation", "test")):
        columns = [(row[0], *row[1 + 3 * number : 4 + 3 * number]) for row in rows]
        part = pd.DataFrame(columns, columns=["pair", "reference_r", "reference_pval", "effect"])
        parts.append(part.assign(library=library, status="ok"))
    slide.uns["perturb_lr"] = {"libraries": pd.concat(parts, ignore_index=True)}
    sg.tl.perturbation_overlap(slide, ["validation", "test"])
    found = slide.uns["perturb_lr"]["overlap"]
    assert found["pairs"]["agrees"].tolist() == [True, True, False, False, True]
    assert found["pairs"]["reproduced"].tolist() == [True, False, False, False, True]
    counts = {name: value for name, value in found["counts"].items() if "effect" not in name}
    expected = {"n_pairs": 5, "significant_1": 4, "significant_2": 5, "significant_both": 4, "agrees": 3}
    assert counts == expected | {"reproduced_1": 2, "reproduced_2": 3, "reproduced": 2}
    # A, E and G are positive by the model in both groups; of the reference, A and C.
    assert found["signs"].loc["positive"].to_dict() == {"reference": 2, "model": 3, "both": 1}
    assert found["signs"].loc["negative"].to_dict() == {"reference": 1, "model": 1, "both": 1}
    one, two = [1.0, -1.0, 1.0, 0.0], [0.8, 0.8, 0.8, 0.2]  # means over the targets of A, C, E and G
    assert found["genes"].index.tolist() == list("ACEG")
    assert found["genes"].to_numpy() == pytest.approx(np.array([one, two, [1, 1, 1, 2]]).T)
    assert found["counts"]["gene_effect_r"] == pytest.approx(np.corrcoef(one, two)[0, 1])
    every_1, every_2 = [1, -1, 1, 1, -1], [0.8, 0.8, 0.8, 0.8, -0.4]
    assert found["counts"]["effect_r"] == pytest.approx(np.corrcoef(every_1, every_2)[0, 1])
    with pytest.raises(ValueError, match="two libraries"):
        sg.tl.perturbation_overlap(slide, ["test"])
    with pytest.raises(KeyError, match="no library 'x'"):
        sg.tl.perturbation_overlap(slide, ["test", "x"])


def test_targets_and_their_controls(slide, sage):
    targets = {"TGFB1": ["COL1A1", "FN1", "nonsense"], "CXCL12": ["CXCR4", "CD74"]}
    sg.tl.perturb_targets(slide, targets, sage, n_controls=6, control_spots=None)
    found = slide.uns["perturb_targets"]
    assert found["results"]["status"].tolist() == ["ok", "ok", "not_in_model", "ok", "ok"]
    pairs = run(slide, [(g, t) for g, names in targets.items() for t in names], sage)
    assert found["results"]["effect"].to_numpy() == pytest.approx(pairs["effect"].to_numpy(), nan_ok=True)
    controls = found["controls"]
    assert len(controls) == 6 * 4
    assert not set(controls["control"]) & {*targets, "COL1A1", "FN1", "CXCR4", "CD74"}
    tests = found["tests"].set_index("gene")
    assert tests.index.tolist() == ["all", "TGFB1", "CXCL12"]
    # In the second run targets and controls are masked together.
    names = [(g, t) for g in targets for t in ["COL1A1", "FN1", "CXCR4", "CD74", *controls["control"].unique()]]
    both = run(slide, names, sage)
    other = both.loc[[f"{row.gene}|{row.control}" for row in controls.itertuples()]]
    assert other["effect"].to_numpy() == pytest.approx(controls["effect"].to_numpy())
    sd = pd.Series(np.log1p(slide.X.toarray()).std(axis=0), slide.var_names)

    def change(names):  # in standard deviations of what is read
        return (both.loc[names, "mean_delta"] / sd[[name.split("|")[1] for name in names]].to_numpy()).mean()

    own = change(["TGFB1|COL1A1", "TGFB1|FN1"])
    drawn = controls[controls["gene"] == "TGFB1"].groupby("replicate")["control"]
    means = np.array([change([f"TGFB1|{name}" for name in names]) for _, names in drawn])
    t = (own - means.mean()) / (means.std(ddof=1) * np.sqrt(1 + 1 / 6))
    row = tests.loc["TGFB1"]
    assert (row["target_t"], row["n_targets"]) == (pytest.approx(t, rel=1e-3), 2)
    assert row["target_pval"] == pytest.approx(2 * stats.t.sf(abs(t), 5), rel=1e-3)
    assert row["pval"] == max(row["target_pval"], row["gene_pval"])
    effects = both.loc[["TGFB1|COL1A1", "TGFB1|FN1", "CXCL12|CXCR4", "CXCL12|CD74"], "effect"]
    assert tests.loc["all", "mean_target"] == pytest.approx(effects.mean())


def test_a_gene_with_planted_targets_is_told_from_one_without(slide):
    targets = {"CXCL12": ["CXCR4", "CCR7", "CD74"], "CSF1": ["CSF1R", "FN1", "COL1A1"]}
    model = planted_model([("CXCL12", "CXCR4"), ("CXCL12", "CCR7"), ("CXCL12", "CD74")], 20.0)
    sg.tl.perturb_targets(slide, targets, model)
    tests = slide.uns["perturb_targets"]["tests"].set_index("gene")
    assert tests.loc["CXCL12", "padj"] < 0.001 < 0.05 < tests.loc["CSF1", "padj"]


def test_the_papers_controls_and_tests_by_set_and_replicate(slide, sage):
    targets = {"TGFB1": ["COL1A1", "FN1", "COL3A1"], "CXCL12": ["CXCR4", "CD74"]}
    slide.obs["half"] = np.where(slide.obs["array_row"] < 5, "up", "down")
    options = {"controls": "random", "n_controls": 5, "control_spots": None, "library_key": "half"}
    sg.tl.perturb_targets(slide, targets, sage, **options)
    found = slide.uns["perturb_targets"]
    controls, table = found["controls"], found["replicates"].set_index(["unit", "library", "replicate"])
    for gene, part in controls.groupby("gene"):
        assert not set(part["control"]) & {gene, *targets[gene]}
        assert not part.duplicated(["replicate", "control"]).any()
    assert len(table) == 2 * 3 * 6
    # A run that hides the same genes in the center gives the same effects.
    known = [target for names in targets.values() for target in names]
    names = [(gene, name) for gene in targets for name in {*known, *controls["control"]}]
    run(slide, names, sage, library_key="half")
    effect = slide.uns["perturb_lr"]["libraries"].set_index(["library", "pair"])["effect"]["down"]
    own = {gene: effect[[f"{gene}|{name}" for name in names]].to_numpy() for gene, names in targets.items()}
    drawn = {
        gene: effect[[f"{gene}|{name}" for name in part["control"]]].to_numpy()
        for gene, part in controls[controls["replicate"] == 2].groupby("gene")
    }
    by_target = [np.concatenate(list(values)) for values in (own.values(), drawn.values())]
    by_gene = [[values.mean() for values in side.values()] for side in (own, drawn)]
    for unit, sides in (("target", by_target), ("gene", by_gene)):
        row, test = table.loc[(unit, "down", "2")], stats.ttest_ind(*sides)
        assert row[["mean_target", "mean_control"]].tolist() == pytest.approx([np.mean(side) for side in sides])
        assert row[["sem_target", "sem_control"]].tolist() == pytest.approx([stats.sem(side) for side in sides])
        assert (row["t"], row["pval"]) == pytest.approx((test.statistic, test.pvalue))
    pooled = table.loc[("target", "all", "all")]
    assert pooled["mean_control"] == pytest.approx(controls["effect"].mean())
    with pytest.raises(ValueError, match="controls='nearest' is none of"):
        sg.tl.perturb_targets(slide, targets, sage, controls="nearest")


def test_one_library_is_told_once(slide, tiny):
    sg.tl.perturb_targets(slide, {"TGFB1": ["COL1A1", "FN1"]}, tiny, n_controls=5)
    assert set(slide.uns["perturb_targets"]["replicates"]["library"]) == {"all"}


def test_textbook_targets_have_references():
    table = sg.datasets.textbook_targets()
    assert table["doi"].str.match(r"10\.\d{4}").all()
    assert not table.duplicated(["gene", "target"]).any()
    assert (table["gene"] != table["target"]).all()
    assert np.isin(table["target"].unique(), SYMBOLS).mean() > 0.9
