"""Plots of annotation, composition and benchmarks show what they say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import sagefm as sg


def test_names_of_points_do_not_overlap():
    from sagefm.pl._axes import name_points

    _, ax = plt.subplots()
    name_points(ax, np.tile([0.5, 0.5], (6, 1)) + np.linspace(0, 0.01, 6)[:, None], [f"GENE{i}" for i in range(6)])
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.fixture
def pairs():
    generator = np.random.default_rng(0)
    import anndata as ad

    adata = ad.AnnData(generator.poisson(2.0, (60, 20)).astype(np.float32))
    adata.obs["sample"], adata.obs["tissue"] = np.repeat(list("ABCDEF"), 10), np.repeat(["one", "two"], 30)
    adata.obsm["first"], adata.obsm["second"] = generator.normal(size=(60, 4)), np.log1p(adata.X)
    return sg.benchmark.centroid_distances(adata, ["first", "second"], "sample", kind_key="tissue")


def test_heatmap_of_distances_is_clustered(pairs):
    for scaled, column in ((False, "distance"), (True, "scaled")):
        figure = sg.pl.centroid_distances(pairs, "first", scaled=scaled, return_fig=True)
        ax = next(ax for ax in figure.axes if ax.collections and len(ax.get_yticklabels()) == 6)
        rows = [label.get_text() for label in ax.get_yticklabels()]
        shown = ax.collections[0].get_array().reshape(6, 6)
        wide = pairs[pairs["representation"] == "first"].pivot(index="sample", columns="other", values=column)
        np.testing.assert_allclose(shown, wide.loc[rows, rows].fillna(0))
    with pytest.raises(KeyError, match="third"):
        sg.pl.centroid_distances(pairs, "third")


def test_distance_error_gives_means_and_the_reference_a_line(pairs):
    ax = sg.pl.distance_error(pairs)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    mean = pairs[pairs["representation"] == "first"]["error"].mean()
    assert labels == [f"first ({mean:.3f})", "second (0.000)", "expression (0.000)"]
    assert np.isclose(ax.lines[1].get_xdata()[0], mean)


def test_tsne_has_a_row_for_each_representation_and_a_column_for_each_color():
    import anndata as ad
    import scanpy as sc

    generator, group = np.random.default_rng(0), np.repeat(list("ab"), 40)
    adata = ad.AnnData(np.ones((80, 2), dtype=np.float32))
    adata.obs["group"], adata.obs["depth"] = pd.Categorical(group), np.arange(80.0)
    adata.obsm["apart"] = generator.normal(size=(80, 3)) + 30 * (group == "b")[:, None]
    adata.obsm["wide"] = generator.normal(size=(80, 70))
    before = adata.copy()
    axes = sg.pl.tsne(adata, ["apart", "wide"], ["group", "depth"])
    panels = ["apart: group", "apart: depth", "wide: group", "wide: depth"]
    assert [ax.get_title() for ax in axes] == panels
    assert list(adata.obsm) == list(before.obsm)
    assert not adata.uns
    shown = [np.asarray(ax.collections[0].get_offsets()) for ax in axes]
    np.testing.assert_array_equal(shown[0], shown[1])
    distance = np.linalg.norm(shown[0][:, None] - shown[0], axis=2) + np.diag(np.full(80, np.inf))
    assert (group[distance.argmin(axis=1)] == group).all()
    sc.tl.tsne(adata, use_rep="apart", perplexity=79 / 3, learning_rate=50, random_state=0)
    np.testing.assert_allclose(shown[0], adata.obsm["X_tsne"], rtol=1e-4)
    (ax,) = sg.pl.tsne(adata, "wide", n_spots=20)
    assert len(ax.collections[0].get_offsets()) == 20
    for bad in ({"use_reps": "none"}, {"use_reps": "wide", "color": "none"}):
        with pytest.raises(KeyError, match="no 'none'"):
            sg.pl.tsne(adata, **bad)
    adata.obsm["wide"][3] = np.nan
    with pytest.raises(ValueError, match="'wide'.* has missing values"):
        sg.pl.tsne(adata, "wide")


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


@pytest.mark.slow
def test_missingness_shows_each_predictor(slide, tiny, tmp_path):
    curve = sg.benchmark.missingness_curve(slide, tiny, fractions=[0.2, 0.8])
    ax = sg.pl.missingness_curve(curve, predictors=[tiny.name, "slide mean"], save=tmp_path / "curve.png")
    lines = {line.get_label(): line for line in ax.get_lines()}
    part = curve[(curve["predictor"] == tiny.name) & (curve["task"] == "everywhere")]
    assert lines[tiny.name].get_ydata().tolist() == part["r2_spot"].tolist()
    assert (tmp_path / "curve.png").exists()
    # Two models in one figure: each with its own level, the baselines once.
    other = curve.assign(predictor=curve["predictor"].replace(tiny.name, "other"))
    shown = [tiny.name, "other", "slide mean"]
    lines = {line.get_label() for line in sg.pl.missingness_curve(pd.concat([curve, other]), predictors=shown).lines}
    assert {*shown, f"{tiny.name}, center alone hidden", "other, center alone hidden"} <= lines
    for bad in ({"metric": "speed"}, {"predictors": ["nobody"]}):
        with pytest.raises(KeyError, match="no "):
            sg.pl.missingness_curve(curve, **bad)
