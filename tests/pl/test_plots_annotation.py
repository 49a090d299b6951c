import numpy as np
import pandas as pd
import pytest

import sagefm as sg


@pytest.fixture(scope="module")
def _annotated(_slide):
    slide = _slide.copy()
    generator = np.random.default_rng(0)
    domains = pd.get_dummies(slide.obs["domain"], dtype=float).to_numpy()
    slide.obsm["X_sage"] = (domains + generator.normal(0, 0.2, domains.shape)).astype(np.float32)
    slide.obs["half"] = (slide.obs["array_row"] < 5).astype(str)
    sg.tl.annotate(slide, "domain", group_key="half", min_probability=0.9)
    return slide


@pytest.fixture
def annotated(_annotated):
    """Slide with an annotation, the test's own copy."""
    return _annotated.copy()


def test_annotation_has_known_and_predicted_in_the_same_colors(annotated):
    figure = sg.pl.annotation(annotated, "domain", return_fig=True)
    titles = [ax.get_title() for ax in figure.axes[:3]]
    assert titles == ["domain", "predicted", "probability of the predicted class"]
    known, predicted, probability = (ax.collections[0] for ax in figure.axes[:3])
    sure = (annotated.obs["sage_annotation"] != "unsure").to_numpy()
    assert 0 < sure.sum() < len(sure)
    same = sure & (annotated.obs["sage_annotation"].astype(str) == annotated.obs["domain"].astype(str)).to_numpy()
    np.testing.assert_array_equal(known.get_facecolor()[same], predicted.get_facecolor()[same])
    assert (predicted.get_facecolor()[~sure] == predicted.get_facecolor()[~sure][0]).all()
    legend = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert legend[-1] == f"unsure ({(~sure).sum()} spots)"
    np.testing.assert_allclose(probability.get_array(), annotated.obsm["sage_annotation"].max(axis=1))
    assert len(sg.pl.annotation(annotated, return_fig=True).axes) == 3  # without known labels, with the color bar


@pytest.mark.slow
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


def test_volcano_colors_and_names_the_genes(slide):
    sg.tl.cluster_markers(slide, "domain")
    ax = sg.pl.cluster_markers(slide, "immune", n_labels=5, max_padj=0.9, min_log2_fold_change=0.3)
    part = slide.uns["sage_cluster_markers"]["results"].query("cluster == 'immune'")
    up = ((part["padj"] <= 0.9) & (part["log2_fold_change"] >= 0.3)).sum()
    drawn = {points.get_label(): len(points.get_offsets()) for points in ax.collections}
    assert sum(drawn.values()) == len(part)
    assert sum(n for label, n in drawn.items() if label.startswith("up")) == up
    assert all(label.endswith(f"({n:,})") for label, n in drawn.items())
    hits = part[(part["padj"] <= 0.9) & (part["log2_fold_change"] >= 0.3)]
    falls = part[(part["padj"] <= 0.9) & (part["log2_fold_change"] <= -0.3)]
    assert {text.get_text() for text in ax.texts} == {*hits["gene"].head(5), *falls["gene"].tail(5)}
    assert len(falls) >= 5
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
