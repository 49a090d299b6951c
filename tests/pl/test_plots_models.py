"""Plots of imputed genes, the trust card and clusters show what they say."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
from maps import places
from scanpy.get import obs_df

import sagefm as sg

mpl.use("agg")


@pytest.fixture(scope="module")
def _done(_slide, tiny):
    slide = _slide.copy()
    sg.tl.sage_embed(slide, tiny)
    sg.tl.cluster(slide)
    sg.pp.align_genes(slide)
    slide.uns["absent"] = slide.uns["sage_genes"]["missing"][0]
    sg.tl.impute(slide, ["KRT8", "COL1A1", slide.uns["absent"]], tiny)
    return slide


@pytest.fixture
def done(_done):
    """Slide with embedding, clusters and predictions, the test's own copy."""
    return _done.copy()


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
    np.testing.assert_allclose(places(panels[0]), done.obsm["spatial"], atol=1e-6)
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
    assert ax.get_title().startswith(f"r = {row['r']:.2f}, beyond depth {row['r_beyond_depth']:.2f} of ")
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
    from helpers import random_model

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


def test_cluster_shows_groups(done, tmp_path):
    (tissue,) = sg.pl.cluster(done, return_fig=True, save=tmp_path / "figure.png").axes
    groups = done.obs["sage_cluster"]
    assert [text.get_text() for text in tissue.get_legend().get_texts()] == groups.cat.categories.tolist()
    colors = spots(tissue).get_facecolor()
    for name in groups.cat.categories:
        assert len(np.unique(colors[groups == name], axis=0)) == 1
    assert (tmp_path / "figure.png").stat().st_size > 10_000


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: sg.pl.imputation(a, "ERBB2"), r"no prediction of 'ERBB2'.*sg.tl.impute\(adata, \['ERBB2'\]\)"),
        (lambda a: sg.pl.imputation(a, "KRT8", key="other"), "'other' not in adata.uns"),
        (lambda a: sg.pl.imputation(a, "KRT8", spatial_key="xy"), "'xy' not in adata.obsm"),
        (lambda a: a.uns.__setitem__("odd", 1) or sg.pl.imputation(a, "KRT8", key="odd"), "not of sg.tl.impute"),
        (lambda a: sg.pl.assessment(a), r"Run sg.pp.assess\(adata\) first"),
        (lambda a: sg.pl.cluster(a, "leiden"), r"Run sg.tl.cluster\(adata, key_added='leiden'\) first"),
    ],
)
def test_missing_results(done, call, message):
    with pytest.raises(KeyError, match=message):
        call(done)
