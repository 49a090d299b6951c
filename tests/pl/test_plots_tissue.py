"""What lies under the spots: the image of the right slide, at the right scale."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
from maps import places
from matplotlib_scalebar.scalebar import ScaleBar

import sagefm as sg


@pytest.fixture(scope="module")
def _pictured():
    """Two slides, each with its image and scale, in one object."""
    slides = {}
    for seed, (name, size) in enumerate({"A": 7, "B": 8}.items()):
        slide = sg.datasets.simulated_visium(size, size, n_genes=300, rng=seed, image=True)
        entry = slide.uns["spatial"].pop("simulated")
        if name == "B":  # another resolution, and no scale but that of Visium's spots
            entry["images"]["hires"] = entry["images"]["hires"][::4, ::4]
            entry["scalefactors"] |= {"tissue_hires_scalef": 0.25}
            del entry["scalefactors"]["microns_per_pixel"]
        slide.uns["spatial"][name] = entry
        slides[name] = slide
    adata = ad.concat(slides, label="slide", index_unique="-", join="outer", merge="first", uns_merge="unique")
    sg.pp.neighborhood_graph(adata, library_key="slide")
    adata.obs["sage_cluster"] = adata.obs["domain"]
    adata.uns["sage_cluster"] = {"params": {"use_rep": "domains"}}
    return adata


@pytest.fixture
def pictured(_pictured):
    """The two slides, the test's own copy."""
    return _pictured.copy()


def scale_bar(ax):
    return next((artist for artist in ax.artists if isinstance(artist, ScaleBar)), None)


def test_each_slide_has_its_image_and_scale(pictured):
    axes = sg.pl.cluster(pictured, show=False)
    for ax, name, factor in zip(axes, "AB", (1, 0.25), strict=True):
        rows = (pictured.obs["slide"] == name).to_numpy()
        (image,) = ax.images
        np.testing.assert_array_equal(image.get_array(), pictured.uns["spatial"][name]["images"]["hires"])
        np.testing.assert_allclose(places(ax), factor * pictured.obsm["spatial"][rows], atol=1e-6)
        radius = ax.collections[0].get_paths()[0].get_extents().width / 2
        assert radius == pytest.approx(
            factor * pictured.uns["spatial"][name]["scalefactors"]["spot_diameter_fullres"] / 2
        )
        assert scale_bar(ax).dx == pytest.approx(1 / factor, rel=1e-3)  # simulated coordinates are µm
        low, high = sorted(ax.get_xlim())
        assert low < places(ax)[:, 0].min()
        assert places(ax)[:, 0].max() < high


def test_options_reach_squidpy(pictured):
    axes = sg.pl.cluster(pictured, img=False, size=2, palette=["k", "w", "r", "b"], title="both", show=False)
    assert not any(ax.images for ax in axes)
    assert axes[0].collections[0].get_paths()[0].get_extents().width == pytest.approx(
        2 * pictured.uns["spatial"]["A"]["scalefactors"]["spot_diameter_fullres"]
    )
    assert {tuple(color[:3]) for color in axes[0].collections[0].get_facecolor()} <= {
        (0, 0, 0), (1, 1, 1), (1, 0, 0), (0, 0, 1)
    }  # fmt: skip
    assert axes[0].get_figure().get_suptitle() == "both"
    ax = sg.pl.cluster(pictured, library_id="A", title="one", figsize=(3, 2), show=False)
    assert (ax.get_title(), tuple(ax.get_figure().get_size_inches())) == ("one", (3, 2))


@pytest.mark.parametrize("lacking", ["scalefactors", "images", "tissue_hires_scalef", "spot_diameter_fullres", "slide"])
def test_without_all_of_an_image_spots_nearly_touch(pictured, lacking):
    entry = pictured.uns["spatial"]["A"]
    if lacking == "slide":
        del pictured.uns["spatial"]["A"]
    else:
        del (entry if lacking in entry else entry["scalefactors"])[lacking]
    ax, _ = sg.pl.cluster(pictured, show=False)
    assert not ax.images
    assert ax.collections[0].get_paths()[0].get_extents().width == pytest.approx(95, rel=1e-3)  # pitch 100 µm


def test_a_scale_that_is_not_visiums_is_not_invented(pictured):
    pictured.uns["spatial"]["B"]["scalefactors"]["spot_diameter_fullres"] = 20.0
    one, other = sg.pl.cluster(pictured, show=False)
    assert scale_bar(one) is not None
    assert scale_bar(other) is None


def test_plots_leave_the_object_alone(pictured):
    before = set(pictured.uns), set(pictured.uns["spatial"]), list(pictured.obs)
    sg.pl.cluster(pictured, show=False)
    assert (set(pictured.uns), set(pictured.uns["spatial"]), list(pictured.obs)) == before


def test_savefig_finds_the_figure(pictured, tmp_path):
    sg.pl.cluster(pictured, show=False)
    plt.savefig(tmp_path / "figure.png")
    pixels = plt.imread(tmp_path / "figure.png")[..., :3]
    assert (pixels < 0.9).any(axis=2).mean() > 0.05


def test_given_axes_hold_one_slide(pictured):
    _, ax = plt.subplots()
    assert sg.pl.cluster(pictured, ax=ax, library_id="B", show=False) is ax
    with pytest.raises(ValueError, match="there are 2 slides. Set library_id"):
        sg.pl.cluster(pictured, ax=ax, show=False)
