"""Several slides in one object: each has panels of its own, whatever their coordinates."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from maps import places
from matplotlib.colors import to_rgba

import sagefm as sg

NAMES = ["B2", "A1", "C3"]  # the order of the categories


@pytest.fixture(scope="module")
def three():
    """Slides of different sizes at the same coordinates, with all that plots need."""
    sizes = {"B2": 8, "A1": 7, "C3": 9}
    slides = {
        name: sg.datasets.simulated_visium(size, size, n_genes=9_000, rng=seed)
        for seed, (name, size) in enumerate(sizes.items())
    }
    adata = ad.concat(slides, label="slide", index_unique="-", join="outer", merge="first")
    sg.pp.neighborhood_graph(adata, library_key="slide")
    sg.tl.sage_embed(adata, "sagefm-mini")
    sg.tl.cluster(adata, n_clusters=3)
    sg.tl.impute(adata, ["KRT8", "COL1A1"], "sagefm-mini", intervals=0.8)
    sg.tl.annotate(adata, "domain", group_key="slide")
    adata.obsm["share"] = pd.get_dummies(adata.obs["domain"], dtype=float)
    sg.tl.composition(adata, "share", group_key="slide", n_epochs=2)
    sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], "sagefm-mini", n_controls=0, store_spots=True)
    return adata


PLOTS = {
    "cluster": (lambda a, **how: sg.pl.cluster(a, **how), 1),
    "imputation": (lambda a, **how: sg.pl.imputation(a, "KRT8", **how), 3),
    "annotation": (lambda a, **how: sg.pl.annotation(a, "domain", **how), 3),
    "composition": (lambda a, **how: sg.pl.composition(a, "share", **how), 2),
    "perturbation_spatial": (lambda a, **how: sg.pl.perturbation_spatial(a, "CXCL12|CXCR4", **how), 1),
}


@pytest.mark.parametrize("name", PLOTS)
def test_each_slide_has_its_own_panels(three, name):
    plot, n_panels = PLOTS[name]
    axes = plot(three, show=False)
    assert len(axes) == 3 * n_panels
    for number, slide in enumerate(NAMES):
        rows = (three.obs["slide"] == slide).to_numpy()
        for ax in axes[number * n_panels : (number + 1) * n_panels]:
            assert ax.get_title().startswith(f"{slide}\n")
            if not ax.get_xlabel():  # a map
                np.testing.assert_allclose(places(ax), three.obsm["spatial"][rows], atol=1e-6)


@pytest.mark.parametrize("name", PLOTS)
def test_a_panel_is_that_of_the_slide_alone(three, name):
    plot, n_panels = PLOTS[name]
    together = plot(three, show=False)[:n_panels]
    alone = plot(three, library_id="B2", show=False)
    alone = alone if isinstance(alone, list) else [alone]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.get_title() == theirs.get_title()
        for one, other in zip(ours.collections, theirs.collections, strict=True):
            np.testing.assert_allclose(one.get_offsets(), other.get_offsets())
            np.testing.assert_allclose(one.get_facecolor(), other.get_facecolor(), atol=1e-6)
    picked = plot(three, library_id=["C3", "A1"], show=False)
    assert [ax.get_title().split("\n")[0] for ax in picked[::n_panels]] == ["C3", "A1"]


@pytest.mark.parametrize("name", PLOTS)
def test_slides_can_be_named_otherwise_or_wrongly(three, name):
    plot, n_panels = PLOTS[name]
    with pytest.raises(KeyError, match="library_id"):
        plot(three, library_id="D4")
    with pytest.raises(KeyError, match="library_key='nothing'"):
        plot(three, library_key="nothing")
    three.obs["pair"] = np.where(three.obs["slide"] == "A1", "one", "two")
    assert len(plot(three, library_key="pair", show=False)) == 2 * n_panels
    one = three[three.obs["slide"] == "C3"].copy()
    axes = plot(one, show=False)
    assert "C3" not in (axes[0] if isinstance(axes, list) else axes).get_title()  # one slide needs no name


def test_library_id_needs_slides_to_tell_apart(slide, tiny):
    sg.pp.neighborhood_graph(slide)
    sg.tl.impute(slide, "KRT8", tiny)
    with pytest.raises(ValueError, match="Pass library_key"):
        sg.pl.imputation(slide, "KRT8", library_id="A1")


def test_scores_are_within_the_slide(three):
    axes = sg.pl.imputation(three, "KRT8", show=False)
    for number, slide in enumerate(NAMES):
        part = three[three.obs["slide"] == slide]
        measured = np.log1p(part[:, "KRT8"].X.toarray().ravel())
        r = np.corrcoef(measured, np.asarray(part[:, "KRT8"].layers["sage_imputed"]).ravel())[0, 1]
        assert axes[3 * number + 2].get_title().startswith(f"{slide}\nr = {r:.2f}, beyond depth ")


def test_all_slides_share_their_colors(three):
    limits = {ax.collections[0].get_clim() for ax in sg.pl.imputation(three, "KRT8", show=False)[::3]}
    assert len(limits) == 1
    axes = sg.pl.cluster(three, show=False)
    legend = axes[-1].get_legend()
    named = {t.get_text(): line.get_color() for t, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    for ax, slide in zip(axes, NAMES, strict=True):
        (drawn,) = ax.collections
        groups = three.obs["sage_cluster"][three.obs["slide"] == slide].astype(str).to_numpy()
        for group in np.unique(groups):
            (color,) = np.unique(drawn.get_facecolor()[groups == group], axis=0)
            np.testing.assert_allclose(color, to_rgba(named[group]))
