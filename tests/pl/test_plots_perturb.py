"""Plots of perturbations show what they say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import sagefm as sg


@pytest.fixture(scope="module")
def _perturbed(_slide, tiny):
    slide = _slide.copy()
    slide.obs["half"] = np.where(slide.obs["array_row"] < 5, "up", "down")
    pairs = [("CXCL12", "CXCR4"), ("TGFB1", "TGFBR2"), ("IL6", "IL6R"), ("CSF1", "CSF1R"), ("X", "Y")]
    options = {"library_key": "half", "store_spots": True, "n_levels": 4, "n_controls": 5}
    sg.tl.perturb_lr(slide, pairs, tiny, **options)
    sg.tl.perturbation_overlap(slide)
    sg.tl.perturb_targets(slide, {"TGFB1": ["COL1A1", "FN1"], "CXCL12": ["CXCR4"]}, tiny, n_controls=5)
    sg.tl.gene_sensitivity(slide, ["CXCL12", "TGFB1"], ["CXCR4", "FN1", "CD74"], model=tiny, store_spots=True)
    return slide


@pytest.fixture
def perturbed(_perturbed):
    """Slide with all perturbations, the test's own copy."""
    return _perturbed.copy()


def test_lollipop_shows_shares_by_group(perturbed):
    results = perturbed.uns["perturb_lr"]["results"]
    results.loc["TGFB1|TGFBR2", "verdict"] = "responds"
    ax = sg.pl.perturbation_lollipop(perturbed, ["CXCL12|CXCR4", "TGFB1|TGFBR2"])
    labels = [label.get_text() for label in ax.get_yticklabels()]
    signs = {-1: "−", 0: "0", 1: "+"}
    for label, name in zip(labels, ["CXCL12|CXCR4", "TGFB1|TGFBR2"], strict=True):
        sign = signs[int(np.sign(results.loc[name, "reference_r"]))]
        assert label.startswith(f"{name.replace('|', ' → ')} ({sign})")
    assert labels[1].endswith("*")
    assert not labels[0].endswith("*")
    libraries = perturbed.uns["perturb_lr"]["libraries"].set_index(["library", "pair"])
    points = [
        c for c in ax.collections if hasattr(c, "get_offsets") and len(c.get_paths()) and len(c.get_offsets()) == 2
    ]
    shares = [tuple(point.get_offsets()[:, 0]) for point in points]
    for library in ("up", "down"):
        rows = libraries.loc[library].loc[["CXCL12|CXCR4", "TGFB1|TGFBR2"]]
        assert any(np.allclose(share, rows["frac_up"].astype(float)) for share in shares)
        assert any(np.allclose(share, -rows["frac_down"].astype(float)) for share in shares)
    assert [text.get_text() for text in ax.get_legend().get_texts()][:2] == ["down", "up"]


def test_lollipop_chooses_the_largest_effects(perturbed):
    ax = sg.pl.perturbation_lollipop(perturbed, n_pairs=2)
    effects = perturbed.uns["perturb_lr"]["results"]["effect"].dropna()
    largest = effects.abs().sort_values(ascending=False, kind="stable").index[:2]
    shown = {label.get_text().split(" (")[0].replace(" → ", "|") for label in ax.get_yticklabels()}
    assert effects[list(shown)].abs().min() >= effects[largest].abs().min()
    with pytest.raises(KeyError, match=r"no pair 'A\|B'"):
        sg.pl.perturbation_lollipop(perturbed, ["A|B"])


def test_overlap_shows_the_counts(perturbed):
    ax = sg.pl.perturbation_overlap(perturbed)
    counts = perturbed.uns["perturb_lr"]["overlap"]["counts"]
    both = counts["significant_both"]
    numbers = {text.get_text() for text in ax.texts if text.get_text()}
    assert numbers == {str(counts[name] - both) for name in ("significant_1", "significant_2")} | {str(both)}
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == [f"down ({counts['significant_1']})", f"up ({counts['significant_2']})"]
    ax = sg.pl.perturbation_scatter(perturbed)
    pairs = perturbed.uns["perturb_lr"]["overlap"]["pairs"]
    assert sum(len(points.get_offsets()) for points in ax.collections) == len(pairs) == 4
    assert ax.get_xlabel() == "measured correlation, down"
    ax = sg.pl.perturbation_scatter(perturbed, values="effect")
    drawn = np.concatenate([points.get_offsets() for points in ax.collections])
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, pairs[["effect_1", "effect_2"]].to_numpy(dtype=float)))
    assert ax.get_xlabel() == "predicted effect E, down"


def test_overlap_of_model_and_reference(perturbed):
    signs = perturbed.uns["perturb_lr"]["overlap"]["signs"]
    signs.loc["negative"] = {"reference": 2, "model": 5, "both": 2}
    signs.loc["positive"] = {"reference": 23, "model": 25, "both": 18}
    ax = sg.pl.perturbation_overlap(perturbed, kind="model")
    left, right = ax.child_axes
    assert left.get_title() == "negative pairs: 2 of 2 predicted"
    assert right.get_title() == "positive pairs: 18 of 23 predicted"
    assert {text.get_text() for text in right.texts if text.get_text()} == {"5", "18", "7"}
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["reference (23)", "model (25)"]


def test_lollipop_gives_markers_in_the_order_of_the_slides(perturbed):
    from matplotlib.markers import MarkerStyle

    circle, triangle = (MarkerStyle(name).get_path().vertices for name in "o^")
    ax = sg.pl.perturbation_lollipop(perturbed, library_id=["up", "down"])
    first, last = (points.get_paths()[0].vertices for points in (ax.collections[1], ax.collections[-1]))
    assert len(first) == len(circle)
    assert len(last) == len(triangle)


def test_target_effects_of_two_groups_are_means_of_genes(slide, tiny):
    slide.obs["half"] = np.where(slide.obs["array_row"] < 5, "up", "down")
    targets = {"TGFB1": ["COL1A1", "FN1"], "CXCL12": ["CXCR4"], "IL6": ["SOCS3", "MYC"]}
    sg.tl.perturb_targets(slide, targets, tiny, library_key="half", n_controls=0)
    sg.tl.perturbation_overlap(slide, key="perturb_targets")
    ax = sg.pl.target_effects(slide)
    genes = slide.uns["perturb_targets"]["overlap"]["genes"]
    np.testing.assert_allclose(ax.collections[1].get_offsets(), genes[["effect_1", "effect_2"]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a target (5)", "mean of a gene's targets (3)"]


def test_dose_response_starts_at_zero(perturbed):
    ax = sg.pl.dose_response(perturbed, ["TGFB1|TGFBR2"])
    (line,) = [line for line in ax.lines if len(line.get_xdata()) == 4]
    doses = perturbed.uns["perturb_lr"]["doses"]
    own = doses[doses["pair"] == "TGFB1|TGFBR2"]
    np.testing.assert_allclose(line.get_xdata(), own["dose"])
    np.testing.assert_allclose(line.get_ydata(), own["mean"] - own["mean"].iloc[0])
    perturbed.uns["perturb_lr"]["doses"] = doses[doses["pair"] != "TGFB1|TGFBR2"]
    with pytest.raises(KeyError, match=r"no doses of 'TGFB1.TGFBR2'. Run sg.tl.perturb_lr"):
        sg.pl.dose_response(perturbed, ["TGFB1|TGFBR2"])
    del perturbed.uns["perturb_lr"]["doses"]
    with pytest.raises(KeyError, match="n_levels above 2"):
        sg.pl.dose_response(perturbed)


def test_response_on_the_tissue(perturbed):
    before = perturbed.copy()
    ax = sg.pl.perturbation_spatial(perturbed, "CXCL12|CXCR4")
    drawn = max(ax.collections, key=lambda c: len(c.get_offsets()))
    np.testing.assert_allclose(drawn.get_array(), perturbed.obsm["perturb_lr"]["CXCL12|CXCR4"], rtol=1e-6)
    low, high = drawn.get_clim()
    assert low == -high
    assert perturbed.obs.equals(before.obs)
    sg.pl.perturbation_spatial(perturbed, "CXCL12|CXCR4", key="gene_sensitivity")
    with pytest.raises(KeyError, match="no pair"):
        sg.pl.perturbation_spatial(perturbed, "A|B")
    del perturbed.obsm["perturb_lr"]
    with pytest.raises(KeyError, match="store_spots=True"):
        sg.pl.perturbation_spatial(perturbed, "CXCL12|CXCR4")


def test_targets_and_their_controls(perturbed, tmp_path):
    ax = sg.pl.target_effects(perturbed, save=tmp_path / "effects.png")
    results = perturbed.uns["perturb_targets"]["results"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["TGFB1", "CXCL12"]
    points = np.sort(np.concatenate([c.get_offsets()[:, 1] for c in ax.collections if len(c.get_offsets()) > 0]))
    assert set(results["effect"]) <= set(points.data)
    assert (tmp_path / "effects.png").stat().st_size > 1000
    ax = sg.pl.target_controls(perturbed)
    tests = perturbed.uns["perturb_targets"]["tests"]
    diamonds = [c for c in ax.collections if len(c.get_offsets()) == 1]
    np.testing.assert_allclose([d.get_offsets()[0, 1] for d in diamonds], tests["mean_target"])
    circles = [c.get_offsets()[:, 1] for c in ax.collections if len(c.get_offsets()) == 5]
    np.testing.assert_allclose([means.mean() for means in circles], tests["mean_control"])
    del perturbed.uns["perturb_targets"]["controls"]
    with pytest.raises(KeyError, match="no table in .*'controls'.*Run sg.tl.perturb_targets"):
        sg.pl.target_controls(perturbed)


def test_replicates_of_controls_by_slide(slide, tiny):
    slide.obs["half"] = np.where(slide.obs["array_row"] < 5, "up", "down")
    targets = {"TGFB1": ["COL1A1", "FN1"], "CXCL12": ["CXCR4", "CD74"]}
    sg.tl.perturb_targets(slide, targets, tiny, library_key="half", n_controls=5)
    ax = sg.pl.target_replicates(slide, unit="target")
    table = slide.uns["perturb_targets"]["replicates"]
    table = table[(table["unit"] == "target") & (table["replicate"] != "all")]
    dots = [c.get_offsets()[:, 1] for c in ax.collections if len(c.get_offsets()) == 5]
    for drawn, half in zip(dots, ["down", "up"], strict=True):
        np.testing.assert_allclose(drawn, table.loc[table["library"] == half, "mean_control"])
    with pytest.raises(ValueError, match="unit='slide'"):
        sg.pl.target_replicates(slide, unit="slide")


def test_sensitivity_heatmap(perturbed):
    ax = sg.pl.sensitivity_heatmap(perturbed)
    table = perturbed.uns["gene_sensitivity"]["results"]
    np.testing.assert_allclose(ax.images[0].get_array(), table)
    signs = [text.get_text() for text in ax.texts]
    assert signs == ["+" if v > 0 else "−" if v < 0 else "0" for v in table.to_numpy().ravel()]


@pytest.mark.parametrize(
    ("plot", "run"),
    [
        (sg.pl.perturbation_lollipop, "perturb_lr"),
        (sg.pl.perturbation_scatter, "perturbation_overlap"),
        (sg.pl.perturbation_overlap, "perturbation_overlap"),
        (sg.pl.dose_response, "perturb_lr"),
        (sg.pl.target_effects, "perturb_targets"),
        (sg.pl.target_controls, "perturb_targets"),
        (sg.pl.target_replicates, "perturb_targets"),
        (sg.pl.sensitivity_heatmap, "gene_sensitivity"),
    ],
)
def test_plots_say_what_to_run_first(slide, plot, run):
    with pytest.raises(KeyError, match=f"Run sg.tl.{run}"):
        plot(slide)


def test_plots_of_perturbations_draw_into_given_axes(perturbed):
    _, axes = plt.subplots(1, 3)
    assert sg.pl.perturbation_lollipop(perturbed, ax=axes[0]) is axes[0]
    assert sg.pl.sensitivity_heatmap(perturbed, ax=axes[1]) is axes[1]
    assert sg.pl.target_effects(perturbed, ax=axes[2]) is axes[2]
    plt.close("all")


def test_sensitivity_heatmap_has_room_for_long_names(slide, tiny):
    sg.tl.gene_sensitivity(slide, ["COL1A1", "ENSG00000019582"], ["COL3A1"], model=tiny)
    ax = sg.pl.sensitivity_heatmap(slide)
    ax.figure.canvas.draw()
    assert ax.get_position().width > 0.1


def test_response_on_one_of_two_slides(slide, tiny):
    slide.obs["half"] = np.where(np.arange(slide.n_obs) % 2, "odd", "even")
    sg.tl.perturb_lr(slide, [("CXCL12", "CXCR4")], tiny, n_controls=0, store_spots=True)
    with pytest.raises(ValueError, match="ax is one panel, and there are 2 slides"):
        sg.pl.perturbation_spatial(slide, "CXCL12|CXCR4", library_key="half", ax=plt.subplots()[1])
    ax = sg.pl.perturbation_spatial(slide, "CXCL12|CXCR4", library_key="half", library_id="odd")
    assert ax.get_title() == "odd\nCXCL12 → CXCR4"


def test_lollipop_of_a_pair_without_reference(slide, tiny):
    column = slide.var_names.get_loc("CXCR4")
    x = slide.X.tolil()
    x[:, column] = 0
    slide.X = x.tocsr()
    sg.tl.perturb_lr(slide, [("CXCL12", "CXCR4"), ("CSF1", "CSF1R")], tiny, n_controls=0)
    labels = [label.get_text() for label in sg.pl.perturbation_lollipop(slide).get_yticklabels()]
    assert sum("(?)" in label for label in labels) == 1


def test_lollipop_shows_the_verdict(perturbed):
    """Grey is a pair like its controls; without controls there is no verdict, and nothing is grey."""
    names = ["CXCL12|CXCR4", "TGFB1|TGFBR2", "CSF1|CSF1R"]
    results = perturbed.uns["perturb_lr"]["results"]
    results.loc[names, "verdict"] = ["responds", "not distinguishable from controls", "not testable"]
    del perturbed.uns["perturb_lr"]["libraries"]
    ax = sg.pl.perturbation_lollipop(perturbed, names)
    up = next(points for points in ax.collections if len(points.get_facecolor()) == 3)
    colors = up.get_edgecolor()
    assert not (colors[0] == colors[1]).all()
    np.testing.assert_array_equal(colors[1], colors[2])
    assert [label.get_text().split(") ")[-1][-1:] for label in ax.get_yticklabels()] == ["*", ")", "†"]
    legend = "\n".join(text.get_text() for text in ax.get_legend().get_texts())
    assert "more than control genes" in legend
    assert "could not be tested" in legend
    results["verdict"] = "not testable"
    ax = sg.pl.perturbation_lollipop(perturbed, names)
    assert "no controls, so no verdict" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_lollipop_of_many_slides_shows_all_together(perturbed):
    pair = ["TGFB1|TGFBR2"]
    ax = sg.pl.perturbation_lollipop(perturbed, pair, library_id="up")
    assert len(ax.get_legend().get_texts()) > 0
    assert ax.get_legend().get_texts()[0].get_text() == "up"
    with pytest.raises(KeyError, match="no library_id 'left'"):
        sg.pl.perturbation_lollipop(perturbed, pair, library_id="left")
    libraries = perturbed.uns["perturb_lr"]["libraries"]
    many = pd.concat([libraries.assign(library=f"slide {i}") for i in range(9)])
    perturbed.uns["perturb_lr"]["libraries"] = many
    ax = sg.pl.perturbation_lollipop(perturbed, pair)
    found = next(points.get_offsets() for points in ax.collections if len(points.get_offsets()))
    assert found[0, 0] == pytest.approx(perturbed.uns["perturb_lr"]["results"].loc[pair[0], "frac_up"])
    axes = sg.pl.perturbation_lollipop(perturbed, pair, library_id=["slide 3", "slide 8"]).get_legend()
    assert [text.get_text() for text in axes.get_texts()[:2]] == ["slide 3", "slide 8"]
