"""Plots, by what they draw."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scanpy.get import obs_df

import sagefm as sg

mpl.use("agg")


@pytest.fixture
def done(slide, tiny):
    sg.tl.sage_embed(slide, tiny)
    sg.tl.cluster(slide)
    sg.pp.align_genes(slide)
    slide.uns["absent"] = slide.uns["sage_genes"]["missing"][0]
    sg.tl.impute(slide, ["KRT8", "COL1A1", slide.uns["absent"]], tiny)
    return slide


def spots(ax):
    (collection,) = ax.collections
    return collection


def values(adata, gene, layer=None):
    return obs_df(adata, [gene], layer=layer)[gene]


def test_imputation_shows_measured_beside_predicted(done):
    figure = sg.pl.imputation(done, ["KRT8", "COL1A1"], return_fig=True)
    panels = [ax for ax in figure.axes if ", " in ax.get_title() and "r =" not in ax.get_title()]
    assert [ax.get_title() for ax in panels] == [
        f"{gene}, {what}" for gene in ("KRT8", "COL1A1") for what in ("measured", "predicted")
    ]
    np.testing.assert_allclose(spots(panels[0]).get_array(), np.log1p(values(done, "KRT8")), rtol=1e-6)
    np.testing.assert_allclose(spots(panels[3]).get_array(), values(done, "COL1A1", "sage_imputed"))
    for measured, predicted in zip(panels[::2], panels[1::2], strict=True):
        assert spots(measured).get_clim() == spots(predicted).get_clim()
    np.testing.assert_allclose(spots(panels[0]).get_offsets(), done.obsm["spatial"])
    assert panels[0].yaxis_inverted()  # as images are


def scatters(figure):
    return [ax for ax in figure.axes if ax.get_ylabel() == "measured"]


def test_imputation_sets_measured_against_predicted(done, tiny):
    sg.tl.impute(done, ["KRT8", "COL1A1"], tiny, intervals=0.8)
    row = done.uns["sage_imputed"]["reliability"].loc["COL1A1"]
    _, ax = scatters(sg.pl.imputation(done, ["KRT8", "COL1A1"], return_fig=True))
    lines, points = ax.collections
    found = np.column_stack([values(done, "COL1A1", "sage_imputed"), np.log1p(values(done, "COL1A1"))])
    np.testing.assert_allclose(points.get_offsets(), found, rtol=1e-5)
    ends = np.array([segment[:, 1] for segment in lines.get_segments()])
    for at, key in enumerate(("sage_imputed_lower", "sage_imputed_upper")):
        np.testing.assert_allclose(ends[:, at], done.obsm[key]["COL1A1"], rtol=1e-5)
    assert ax.get_title().startswith(f"r = {row['r']:.2f}, neighbours {row['baseline_r']:.2f}")
    assert ax.get_legend().get_texts()[0].get_text() == "80% interval"


def test_imputation_without_scores_has_no_r(done, tiny):
    sg.tl.impute(done, "KRT8", tiny, reliability=False)
    (ax,) = scatters(sg.pl.imputation(done, "KRT8", return_fig=True))
    assert ax.get_title() == ""


def test_imputation_shows_an_absent_gene_by_its_prediction(done):
    gene = done.uns["absent"]
    figure = sg.pl.imputation(done, gene, return_fig=True)
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == [f"{gene}, predicted"]
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert "was not measured" in texts[0]
    assert "nothing is known" in texts[1]


def test_imputation_of_a_model_with_its_own_vocabulary(slide):
    from conftest import random_model

    from sagefm.models._vocabulary import Vocabulary, hest1k

    other = Vocabulary("mine", hest1k().symbols[::-1])
    network = random_model((6, 5), sg.models.SAGE).network
    model = sg.models.Model("mine", network, other)
    absent = next(name for name in other.symbols if name not in slide.var_names)
    sg.tl.impute(slide, ["KRT8", absent], model)
    figure = sg.pl.imputation(slide, ["KRT8", absent], return_fig=True)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert [t for t in titles if "r =" not in t] == ["KRT8, measured", "KRT8, predicted", f"{absent}, predicted"]
    np.testing.assert_allclose(spots(figure.axes[0]).get_array(), np.log1p(values(slide, "KRT8")), rtol=1e-6)


def test_imputation_says_what_to_expect_of_an_absent_gene(done):
    symbol = next(name for name in ("PECAM1", "RBFOX3", "VWF", "ITGAX") if name not in done.var_names)
    sg.tl.impute(done, symbol, "sagefm-mini")
    prior = done.uns["sage_imputed"]["prior"].loc[symbol]
    figure = sg.pl.imputation(done, symbol, return_fig=True)
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert f"r = {prior['r']:.2f} ± {prior['r_sd']:.2f}" in texts[1]


def test_assessment_shows_every_check_in_its_field(done, tmp_path):
    sg.pp.assess(done, "sagefm-mini")
    checks = done.uns["sage_assessment"]["checks"]
    ax = sg.pl.assessment(done, save=tmp_path / "card.png")
    places = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines]
    assert len(places) == len(checks)
    for place, at in places:
        field = ["fine", "with care", "outside what the model knows"][min(int(np.ceil(place)) - 1, 2) if place else 0]
        assert field == checks["verdict"].iloc[int(at)]
    texts = [text.get_text() for text in ax.texts]
    assert all(name in texts for name in checks.index)
    assert done.uns["sage_assessment"]["verdict"] in ax.get_title("left")
    assert (tmp_path / "card.png").stat().st_size > 10_000


def test_imputation_adds_up_columns_of_one_gene_and_takes_any_name(done, tiny):
    names = done.var_names.tolist()
    names[names.index("CD74")] = "KRT8"
    done.var_names = names
    sg.tl.impute(done, ["KRT8"], tiny)
    figure = sg.pl.imputation(done, "ENSG00000170421", return_fig=True)  # KRT8
    counts = done.X[:, done.var_names == "KRT8"].toarray().sum(axis=1)
    np.testing.assert_allclose(spots(figure.axes[0]).get_array(), np.log1p(counts), rtol=1e-6)


def test_imputation_shows_what_was_read(done, tiny):
    done.layers["counts"] = done.X.copy()
    done.X = done.X.log1p()
    sg.tl.impute(done, "KRT8", tiny, layer="counts")
    figure = sg.pl.imputation(done, "KRT8", return_fig=True)
    np.testing.assert_allclose(spots(figure.axes[0]).get_array(), np.log1p(values(done, "KRT8", "counts")))
    del done.layers["counts"]
    with pytest.raises(KeyError, match="no longer in adata.layers"):
        sg.pl.imputation(done, "KRT8")


def test_cluster_shows_groups_and_the_choice(done, tmp_path):
    figure = sg.pl.cluster(done, return_fig=True, save=tmp_path / "figure.png")
    tissue, choice = figure.axes
    groups = done.obs["sage_cluster"]
    assert [text.get_text() for text in tissue.get_legend().get_texts()] == groups.cat.categories.tolist()
    colors = spots(tissue).get_facecolor()
    for name in groups.cat.categories:
        assert len(np.unique(colors[groups == name], axis=0)) == 1
    np.testing.assert_allclose(choice.lines[0].get_ydata(), done.uns["sage_cluster"]["scores"]["silhouette"])
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_cluster_of_a_given_number_has_one_panel(done):
    sg.tl.cluster(done, n_clusters=3)
    assert len(sg.pl.cluster(done, return_fig=True).axes) == 1


def test_cluster_takes_scanpys_colors(done):
    sg.tl.cluster(done, n_clusters=2)
    done.uns["sage_cluster_colors"] = np.array(["#ff0000", "#0000ff"])
    colors = spots(sg.pl.cluster(done, return_fig=True).axes[0]).get_facecolor()
    assert {tuple(color) for color in colors} == {(1, 0, 0, 1), (0, 0, 1, 1)}


@pytest.fixture
def shown(monkeypatch):
    """Figures that were shown, where scanpy is set to show them."""
    figures = []
    monkeypatch.setattr(plt, "show", lambda: figures.append(plt.gcf()))
    sc.settings.autoshow = True
    yield figures
    sc.settings.autoshow = False


@pytest.mark.parametrize(
    ("plot", "kind"),
    [(lambda a, **how: sg.pl.imputation(a, "KRT8", **how), list), (sg.pl.reliability, plt.Axes)],
    ids=["several panels", "one panel"],
)
def test_a_plot_is_shown_or_returned(done, plot, kind, shown, tmp_path):
    assert plot(done) is None
    assert shown == [plt.gcf()]
    assert isinstance(plot(done, show=False), kind)
    figure = plot(done, return_fig=True, save=tmp_path / "figure.png")
    assert figure is plt.gcf()
    assert (tmp_path / "figure.png").exists()
    sc.settings.autoshow = False
    assert isinstance(plot(done), kind)
    assert len(shown) == 1
    assert plot(done, show=True) is None
    assert len(shown) == 2


def test_given_axes_are_the_callers_to_show(done, shown):
    figure, axes = plt.subplots(1, 2)
    assert sg.pl.reliability(done, ax=axes[0]) is axes[0]
    assert sg.pl.reliability(done, ax=axes[1], return_fig=True) is figure
    assert not shown
    assert sg.pl.reliability(done, ax=axes[1], show=True) is None
    assert shown


def test_names_of_points_do_not_overlap():
    from sagefm.pl._axes import name_points

    _, ax = plt.subplots()
    name_points(ax, np.tile([0.5, 0.5], (6, 1)) + np.linspace(0, 0.01, 6)[:, None], [f"GENE{i}" for i in range(6)])
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: sg.pl.imputation(a, "ERBB2"), r"no prediction of 'ERBB2'.*sg.tl.impute\(adata, \['ERBB2'\]\)"),
        (lambda a: sg.pl.imputation(a, "KRT8", key="other"), "'other' not in adata.uns"),
        (lambda a: sg.pl.imputation(a, "KRT8", spatial_key="xy"), "'xy' not in adata.obsm"),
        (lambda a: a.uns.__setitem__("odd", 1) or sg.pl.imputation(a, "KRT8", key="odd"), "not of sg.tl.impute"),
        (lambda a: sg.pl.assessment(a), r"Run sg.pp.assess\(adata\) first"),
        (lambda a: sg.pl.cluster(a, "leiden"), r"Run sg.tl.cluster\(adata\) first"),
    ],
)
def test_missing_results(done, call, message):
    with pytest.raises(KeyError, match=message):
        call(done)


@pytest.fixture
def perturbed(slide, tiny):
    slide.obs["half"] = np.where(slide.obs["array_row"] < 5, "up", "down")
    pairs = [("CXCL12", "CXCR4"), ("TGFB1", "TGFBR2"), ("IL6", "IL6R"), ("CSF1", "CSF1R"), ("X", "Y")]
    options = {"library_key": "half", "store_spots": True, "n_levels": 4, "n_controls": 5}
    sg.tl.perturb_lr(slide, pairs, tiny, **options)
    sg.tl.perturbation_overlap(slide)
    sg.tl.perturb_targets(slide, {"TGFB1": ["COL1A1", "FN1"], "CXCL12": ["CXCR4"]}, tiny, n_controls=3)
    sg.tl.gene_sensitivity(slide, ["CXCL12", "TGFB1"], ["CXCR4", "FN1", "CD74"], model=tiny, store_spots=True)
    return slide


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
    texts = [text.get_text() for text in ax.texts]
    assert texts[0] == str(counts["significant_1"] - counts["significant_both"])
    assert texts[1] == str(counts["significant_2"] - counts["significant_both"])
    assert texts[2].startswith(str(counts["significant_both"]))
    assert {"down", "up"} <= set(texts)
    ax = sg.pl.perturbation_scatter(perturbed)
    pairs = perturbed.uns["perturb_lr"]["overlap"]["pairs"]
    assert sum(len(points.get_offsets()) for points in ax.collections) == len(pairs) == 4
    assert ax.get_xlabel() == "measured correlation, down"


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
    pooled = tests[tests["replicate"] == "pooled"]
    np.testing.assert_allclose([d.get_offsets()[0, 1] for d in diamonds], pooled["mean_target"])
    perturbed.uns["perturb_targets"]["tests"] = tests[(tests["gene"] != "CXCL12") | (tests["replicate"] != "pooled")]
    with pytest.raises(KeyError, match="no pooled row of 'CXCL12'. Run sg.tl.perturb_targets"):
        sg.pl.target_controls(perturbed)


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
    with pytest.raises(ValueError, match="one slide at a time"):
        sg.pl.perturbation_spatial(slide, "CXCL12|CXCR4", library_key="half")
    sg.pl.perturbation_spatial(slide, "CXCL12|CXCR4", library_key="half", library_id="odd")


def test_lollipop_of_a_pair_without_reference(slide, tiny):
    column = slide.var_names.get_loc("CXCR4")
    x = slide.X.tolil()
    x[:, column] = 0
    slide.X = x.tocsr()
    sg.tl.perturb_lr(slide, [("CXCL12", "CXCR4"), ("CSF1", "CSF1R")], tiny, n_controls=0)
    labels = [label.get_text() for label in sg.pl.perturbation_lollipop(slide).get_yticklabels()]
    assert sum("(?)" in label for label in labels) == 1


# Annotation, composition, clusters and benchmarks.


@pytest.fixture
def annotated(slide):
    generator = np.random.default_rng(0)
    domains = pd.get_dummies(slide.obs["domain"], dtype=float).to_numpy()
    slide.obsm["X_sage"] = (domains + generator.normal(0, 0.2, domains.shape)).astype(np.float32)
    slide.obs["half"] = (slide.obs["array_row"] < 5).astype(str)
    sg.tl.annotate(slide, "domain", group_key="half", min_probability=0.9)
    return slide


def test_annotation_has_known_and_predicted_in_the_same_colours(annotated):
    figure = sg.pl.annotation(annotated, "domain", return_fig=True)
    titles = [ax.get_title() for ax in figure.axes[:3]]
    assert titles == ["domain", "predicted", "probability of the predicted class"]
    known, predicted, probability = (ax.collections[0] for ax in figure.axes[:3])
    sure = (annotated.obs["sage_annotation"] != "unsure").to_numpy()
    assert 0 < sure.sum() < len(sure)
    same = sure & (annotated.obs["sage_annotation"].astype(str) == annotated.obs["domain"].astype(str)).to_numpy()
    np.testing.assert_array_equal(known.get_facecolor()[same], predicted.get_facecolor()[same])
    assert (predicted.get_facecolor()[~sure] == predicted.get_facecolor()[~sure][0]).all()
    assert f"{(~sure).sum()} of {len(sure)} spots unsure" in figure.axes[1].get_xlabel()
    np.testing.assert_allclose(probability.get_array(), annotated.obsm["sage_annotation"].max(axis=1))
    assert len(sg.pl.annotation(annotated, return_fig=True).axes) == 3  # without known labels, with the colour bar


def test_composition_shows_the_likeliest_class(annotated):
    annotated.obsm["share"] = pd.get_dummies(annotated.obs["domain"], dtype=float)
    sg.tl.composition(annotated, "share", group_key="half", n_epochs=30)
    figure = sg.pl.composition(annotated, "share", return_fig=True)
    known, predicted = (ax.collections[0].get_facecolor() for ax in figure.axes[:2])
    best = annotated.obsm["sage_composition"].idxmax(axis=1)
    same = (best == annotated.obs["domain"].astype(str)).to_numpy()
    np.testing.assert_array_equal((known == predicted).all(axis=1), same)
    # Classes are told by name, in whatever order they come.
    annotated.obsm["share"] = annotated.obsm["share"].iloc[:, ::-1]
    again = sg.pl.composition(annotated, "share", return_fig=True).axes[0].collections[0].get_facecolor()
    np.testing.assert_array_equal(known, again)


def test_volcano_colours_and_names_the_genes(slide):
    sg.tl.cluster_markers(slide, "domain")
    ax = sg.pl.cluster_markers(slide, "immune", n_labels=5)
    part = slide.uns["sage_cluster_markers"]["results"].query("cluster == 'immune'")
    up = ((part["padj"] <= 0.05) & (part["log2_fold_change"] >= 1)).sum()
    assert len(ax.collections[1].get_offsets()) == up
    hits = part[(part["padj"] <= 0.05) & (part["log2_fold_change"] >= 1)]
    assert {text.get_text() for text in ax.texts} == set(hits["gene"].head(5))
    with pytest.raises(KeyError, match="no cluster 'bone'"):
        sg.pl.cluster_markers(slide, "bone")


def test_bars_of_cluster_proportions_add_up(slide):
    slide.obs["half"] = (slide.obs["array_row"] < 5).astype(str)
    sg.tl.cluster_proportions(slide, "half", "domain")
    ax = sg.pl.cluster_proportions(slide)
    ends = {round(bar.get_y(), 3): 0.0 for bar in ax.patches}
    for bar in ax.patches:
        ends[round(bar.get_y(), 3)] += bar.get_width()
    np.testing.assert_allclose(list(ends.values()), 1)


@pytest.fixture
def pairs():
    generator = np.random.default_rng(0)
    import anndata as ad

    adata = ad.AnnData(generator.poisson(2.0, (60, 20)).astype(np.float32))
    adata.obs["sample"], adata.obs["tissue"] = np.repeat(list("ABCDEF"), 10), np.repeat(["one", "two"], 30)
    adata.obsm["first"], adata.obsm["second"] = generator.normal(size=(60, 4)), np.log1p(adata.X)
    return sg.benchmark.centroid_distances(adata, ["first", "second"], "sample", kind_key="tissue")


def test_heatmap_of_distances_is_clustered(pairs):
    figure = sg.pl.centroid_distances(pairs, "first", return_fig=True)
    ax = next(ax for ax in figure.axes if ax.collections and len(ax.get_yticklabels()) == 6)
    rows = [label.get_text() for label in ax.get_yticklabels()]
    shown = ax.collections[0].get_array().reshape(6, 6)
    wide = pairs[pairs["representation"] == "first"].pivot(index="sample", columns="other", values="scaled")
    np.testing.assert_allclose(shown, wide.loc[rows, rows].fillna(0))
    with pytest.raises(KeyError, match="third"):
        sg.pl.centroid_distances(pairs, "third")


def test_distance_error_gives_means_and_the_reference_a_line(pairs):
    ax = sg.pl.distance_error(pairs)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    mean = pairs[pairs["representation"] == "first"]["error"].mean()
    assert labels == [f"first ({mean:.3f})", "second (0.000)"]
    assert np.isclose(ax.lines[1].get_xdata()[0], mean)


def test_violins_have_a_dot_for_each_group():
    scores = pd.DataFrame(
        {
            "representation": np.repeat(["X_sage", "PCA"], 12),
            "classifier": np.tile(np.repeat(["forest", "mlp"], 6), 2),
            "bootstrap": np.tile([0, 0, 1, 1, 2, 2], 4),
            "f1_macro": np.linspace(0.2, 0.6, 24),
        }
    )
    ax = sg.pl.benchmark_violin(scores)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["X_sage", "PCA"]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [2] * 4
    np.testing.assert_allclose(dots[0].get_xdata(), scores["f1_macro"][:2])
    assert len(ax.collections) == 4
    with pytest.raises(KeyError, match="accuracy"):
        sg.pl.benchmark_violin(scores, "accuracy")
