"""Plots, by what they draw."""

import matplotlib as mpl
import numpy as np
import pytest

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


def test_impute_shows_measured_beside_predicted(done):
    figure = sg.pl.impute(done, ["KRT8", "COL1A1"], show=False)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == [
        f"{gene}, {what}" for gene in ("KRT8", "COL1A1") for what in ("measured", "predicted")
    ]
    np.testing.assert_allclose(spots(panels[0]).get_array(), np.log1p(done.obs_vector("KRT8")), rtol=1e-6)
    np.testing.assert_allclose(spots(panels[3]).get_array(), done.obs_vector("COL1A1", layer="sage_imputed"))
    for measured, predicted in zip(panels[::2], panels[1::2], strict=True):
        assert spots(measured).get_clim() == spots(predicted).get_clim()
    np.testing.assert_allclose(spots(panels[0]).get_offsets(), done.obsm["spatial"])
    assert panels[0].yaxis_inverted()  # as images are


def test_impute_shows_an_absent_gene_by_its_prediction(done):
    gene = done.uns["absent"]
    figure = sg.pl.impute(done, gene, show=False)
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == [f"{gene}, predicted"]
    assert "was not measured" in figure.axes[0].texts[0].get_text()


def test_impute_adds_up_columns_of_one_gene_and_takes_any_name(done, tiny):
    names = done.var_names.tolist()
    names[names.index("CD74")] = "KRT8"
    done.var_names = names
    sg.tl.impute(done, ["KRT8"], tiny)
    figure = sg.pl.impute(done, "ENSG00000170421", show=False)  # KRT8
    counts = done.X[:, done.var_names == "KRT8"].toarray().sum(axis=1)
    np.testing.assert_allclose(spots(figure.axes[0]).get_array(), np.log1p(counts), rtol=1e-6)


def test_impute_shows_what_was_read(done, tiny):
    done.layers["counts"] = done.X.copy()
    done.X = done.X.log1p()
    sg.tl.impute(done, "KRT8", tiny, layer="counts")
    figure = sg.pl.impute(done, "KRT8", show=False)
    np.testing.assert_allclose(spots(figure.axes[0]).get_array(), np.log1p(done.obs_vector("KRT8", layer="counts")))
    del done.layers["counts"]
    with pytest.raises(KeyError, match="no longer in adata.layers"):
        sg.pl.impute(done, "KRT8")


def test_cluster_shows_groups_and_the_choice(done, tmp_path):
    figure = sg.pl.cluster(done, show=False, save=tmp_path / "figure.png")
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
    assert len(sg.pl.cluster(done, show=False).axes) == 1


def test_cluster_takes_scanpys_colors(done):
    sg.tl.cluster(done, n_clusters=2)
    done.uns["sage_cluster_colors"] = np.array(["#ff0000", "#0000ff"])
    colors = spots(sg.pl.cluster(done, show=False).axes[0]).get_facecolor()
    assert {tuple(color) for color in colors} == {(1, 0, 0, 1), (0, 0, 1, 1)}


def test_show(done, monkeypatch):
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    assert sg.pl.impute(done, "KRT8") is None
    assert shown == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: sg.pl.impute(a, "ERBB2"), r"no prediction of 'ERBB2'.*sg.tl.impute\(adata, \['ERBB2'\]\)"),
        (lambda a: sg.pl.impute(a, "KRT8", key="other"), "'other' not in adata.uns"),
        (lambda a: sg.pl.impute(a, "KRT8", spatial_key="xy"), "'xy' not in adata.obsm"),
        (lambda a: sg.pl.cluster(a, "leiden"), r"Run sg.tl.cluster\(adata\) first"),
    ],
)
def test_missing_results(done, call, message):
    with pytest.raises(KeyError, match=message):
        call(done)
