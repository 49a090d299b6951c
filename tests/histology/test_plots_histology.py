"""Plots of the histology, by what they draw."""

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from maps import places
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel

import sagefm as sg

mpl.use("agg")

GENES = ["ERBB2", "COL1A1", "CD74", "PLIN1"]
SIZE = 32


@pytest.fixture(scope="module")
def painted():
    adata = sg.datasets.simulated_visium(8, 7, n_genes=300, image=True)
    sg.pp.histology_patches(adata, size=SIZE)
    sg.tl.histology_embed(adata)
    adata.obs["half"] = np.where(adata.obs["array_row"] < 4, "top", "bottom")
    sg.tl.predict_expression(adata, GENES, group_key="half")
    return adata


@pytest.fixture
def slide(painted):
    return painted.copy()


@pytest.fixture(scope="module")
def dense(painted):
    return sg.tl.superresolve_expression(painted, 40, microns_per_unit=1)


@pytest.fixture
def two(painted):
    """Two slides on top of each other, the second with its counts and predictions changed."""
    other = painted.copy()
    other.X = other.X * 2
    other.obsm["histology_expression"] += 1
    both = ad.concat({"A": painted, "B": other}, label="slide", index_unique="-", uns_merge="first")
    both.uns["histology_expression"]["params"]["library_key"] = "slide"
    return both


def crop(adata, name):
    """Pixels around a spot, 1 µm each."""
    image = adata.uns["spatial"]["simulated"]["images"]["hires"]
    left, top = np.rint(adata.obsm["spatial"][adata.obs_names.get_loc(name)] - SIZE / 2).astype(int)
    return image[top : top + SIZE, left : left + SIZE]


def shown(figure):
    """Axes with an image."""
    return [ax for ax in figure.axes if ax.images]


def maps(figure):
    return [ax for ax in figure.axes if ax.collections and ax.get_title()]


def values(ax):
    (spots,) = ax.collections
    return spots.get_array()


def measured(adata, gene):
    plain = ad.AnnData(adata.X.copy(), var=adata.var[[]])
    sc.pp.normalize_total(plain, target_sum=adata.uns["histology_expression"]["params"]["depth"])
    sc.pp.log1p(plain)
    return sc.get.obs_df(plain, [gene])[gene]


def test_a_gallery_shows_the_pixels_of_its_spots(slide):
    figure = sg.pl.histology_patches(slide, 8, return_fig=True)
    panels = shown(figure)
    names = [ax.get_title().split("\n")[0] for ax in panels]
    assert len(set(names)) == 8
    for ax, name in zip(panels, names, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), crop(slide, name))
    again = [ax.get_title() for ax in shown(sg.pl.histology_patches(slide, 8, rng=1, return_fig=True))]
    assert again != [ax.get_title() for ax in panels]
    assert len(shown(sg.pl.histology_patches(slide, 1000, return_fig=True))) == slide.n_obs


def test_a_gallery_of_named_spots_keeps_their_order(slide):
    names = slide.obs_names[[40, 3, 17]].tolist()
    panels = shown(sg.pl.histology_patches(slide, spots=names, return_fig=True))
    assert [ax.get_title().split("\n")[0] for ax in panels] == names
    for ax, name in zip(panels, names, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), crop(slide, name))
    assert len(shown(sg.pl.histology_patches(slide, spots=names[0], return_fig=True))) == 1


def test_a_gallery_has_a_row_for_each_group(slide):
    slide.obs.loc[slide.obs_names[:9], "domain"] = np.nan
    groups = slide.obs["domain"].cat.remove_unused_categories().cat.categories
    figure = sg.pl.histology_patches(slide, 3 * len(groups), color="domain", return_fig=True)
    titles = [ax.get_title().split("\n")[0] for ax in shown(figure)]
    counts = slide.obs["domain"].value_counts()
    assert titles == [name for name in groups for _ in range(min(3, counts[name]))]
    tops = {ax.get_title().split("\n")[0]: ax.get_subplotspec().rowspan.start for ax in shown(figure)}
    assert tops == {name: i for i, name in enumerate(groups)}
    known = {name: [crop(slide, spot).tobytes() for spot in rows.index] for name, rows in slide.obs.groupby("domain")}
    for ax, name in zip(shown(figure), titles, strict=True):
        assert ax.images[0].get_array().tobytes() in known[name]


def test_a_gallery_is_sorted_by_numbers(slide):
    slide.obs["number"] = np.random.default_rng(0).normal(size=slide.n_obs)
    panels = shown(sg.pl.histology_patches(slide, 7, color="number", return_fig=True))
    found = [float(ax.get_title().split("\n")[0]) for ax in panels]
    assert found == sorted(found)
    spot = slide.obs["number"].sub(found[0]).abs().idxmin()
    np.testing.assert_array_equal(panels[0].images[0].get_array(), crop(slide, spot))


def test_a_gallery_marks_what_is_wrong(slide):
    height = slide.uns["spatial"]["simulated"]["images"]["hires"].shape[0]
    slide.obsm["spatial"][0] = [5, height - 5]  # glass in the corner
    sg.pp.histology_patches(slide, size=SIZE)
    fine = slide.obs["histology_tissue"].idxmax()
    first, second = shown(sg.pl.histology_patches(slide, spots=[slide.obs_names[0], fine], return_fig=True))
    assert first.get_title() == f"{slide.obs_names[0]}\n0% tissue\nleaves the image"
    assert second.get_title() == fine
    assert first.title.get_color() != second.title.get_color()


def test_a_gallery_of_several_slides_reads_those_it_shows(slide, tmp_path, monkeypatch):
    from sagefm.histology import spot_patches

    both = ad.concat({"A": slide, "B": slide}, label="slide", index_unique="-", uns_merge="first")
    image = tmp_path / "he.png"
    mpl.image.imsave(image, slide.uns["spatial"]["simulated"]["images"]["hires"])
    sg.pp.histology_patches(both, dict.fromkeys("AB", image), library_key="slide", size=SIZE)
    opened = []
    real = spot_patches.open_image
    monkeypatch.setattr(spot_patches, "open_image", lambda source, *rest: opened.append(source) or real(source, *rest))
    name = slide.obs_names[20]
    (ax,) = shown(sg.pl.histology_patches(both, spots=[f"{name}-B"], return_fig=True))
    np.testing.assert_array_equal(ax.images[0].get_array(), crop(slide, name))
    assert len(opened) == 1
    assert len(shown(sg.pl.histology_patches(both, 6, color="slide", return_fig=True))) == 6
    assert len(opened) == 3


def test_a_gallery_of_spatialdata(slide):
    image = slide.uns["spatial"]["simulated"]["images"]["hires"]
    names = slide.obs_names.tolist()
    circles = ShapesModel.parse(slide.obsm["spatial"].astype(float), geometry=0, radius=20.0)
    table = ad.AnnData(slide.X.copy(), obs=pd.DataFrame({"region": "spots", "spot": range(len(names))}, index=names))
    table.obs["region"] = table.obs["region"].astype("category")
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="spot")
    pixels = Image2DModel.parse(image, dims=("y", "x", "c"))
    sdata = SpatialData(images={"he": pixels}, shapes={"spots": circles}, tables={"table": table})
    sg.pp.histology_patches(sdata, size=SIZE)
    (ax,) = shown(sg.pl.histology_patches(sdata, spots=names[11], return_fig=True))
    np.testing.assert_array_equal(ax.images[0].get_array(), crop(slide, names[11]))


def test_a_gallery_refuses(slide):
    with pytest.raises(KeyError, match="nobody"):
        sg.pl.histology_patches(slide, spots=["nobody", slide.obs_names[0]])
    with pytest.raises(KeyError, match="color='nothing'"):
        sg.pl.histology_patches(slide, color="nothing")
    with pytest.raises(ValueError, match="at least 1"):
        sg.pl.histology_patches(slide, 0)
    slide.obs["empty"] = np.nan
    with pytest.raises(ValueError, match="none of the spots"):
        sg.pl.histology_patches(slide, color="empty")
    del slide.uns["histology"]
    with pytest.raises(KeyError, match=r"sg\.pp\.histology_patches"):
        sg.pl.histology_patches(slide)


def test_predicted_beside_measured(slide, tmp_path):
    figure = sg.pl.predicted_expression(slide, ["CD74", "ERBB2"], return_fig=True, save=tmp_path / "figure.png")
    r = slide.var["histology_expression_reliability"]
    panels = maps(figure)
    assert [ax.get_title() for ax in panels] == [
        title
        for gene in ("CD74", "ERBB2")
        for title in (f"{gene}, measured", f"{gene}, predicted (held-out r = {r[gene]:.2f})")
    ]
    for gene, left, right in zip(("CD74", "ERBB2"), panels[::2], panels[1::2], strict=True):
        np.testing.assert_allclose(values(left), measured(slide, gene), rtol=1e-5)
        np.testing.assert_allclose(values(right), slide.obsm["histology_expression"][gene])
        assert left.collections[0].get_clim() == right.collections[0].get_clim()
    np.testing.assert_allclose(places(panels[0]), slide.obsm["spatial"], atol=1e-6)
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_best_genes_are_shown(slide):
    best = slide.var["histology_expression_reliability"].nlargest(3).index
    titles = [ax.get_title().split(",")[0] for ax in maps(sg.pl.predicted_expression(slide, return_fig=True))]
    assert titles == [gene for gene in best for _ in range(2)]


def test_one_of_several_slides(two):
    titles = [ax.get_title().split("\n")[0] for ax in maps(sg.pl.predicted_expression(two, "CD74", return_fig=True))]
    assert titles == ["A", "A", "B", "B"]
    figure = sg.pl.predicted_expression(two, "CD74", library_id="B", return_fig=True)
    left, right = maps(figure)
    rows = (two.obs["slide"] == "B").to_numpy()
    np.testing.assert_allclose(values(left), measured(two, "CD74")[rows], rtol=1e-5)
    np.testing.assert_allclose(values(right), two.obsm["histology_expression"]["CD74"][rows])
    assert left.get_title() == "B\nCD74, measured"
    with pytest.raises(KeyError, match=r"no library_id 'C' in obs\['slide'\]; it has 'A', 'B'"):
        sg.pl.predicted_expression(two, library_id="C")
    with pytest.raises(KeyError, match="library_key='nothing'"):
        sg.pl.predicted_expression(two, library_key="nothing", library_id="A")
    del two.uns["histology_expression"]["params"]["library_key"]
    with pytest.raises(ValueError, match="Pass library_key"):
        sg.pl.predicted_expression(two, library_id="A")


def test_counts_of_a_layer_and_spots_without(slide):
    truth = measured(slide, "CD74")
    slide.layers["counts"] = slide.X.multiply(np.arange(slide.n_obs)[:, None] != 5).tocsr()
    slide.X = slide.X.log1p()
    left, _ = maps(sg.pl.predicted_expression(slide, "CD74", layer="counts", return_fig=True))
    assert np.ma.getmaskarray(values(left)).nonzero()[0].tolist() == [5]
    np.testing.assert_allclose(np.delete(values(left), 5), np.delete(truth, 5), rtol=1e-5)
    slide.uns["histology_expression"]["params"]["layer"] = "counts"
    assert len(maps(sg.pl.predicted_expression(slide, "CD74", return_fig=True))) == 2
    del slide.layers["counts"]
    with pytest.raises(KeyError, match="'counts' not in"):
        sg.pl.predicted_expression(slide, "CD74")
    slide.layers["counts"] = slide.X * 0
    figure = sg.pl.predicted_expression(slide, "CD74", return_fig=True)
    assert figure.axes[0].texts[0].get_text() == "CD74 was not measured"


@pytest.mark.parametrize("without", ["counts", "the gene"])
def test_a_slide_that_was_not_measured(slide, without):
    reference = slide.copy()
    query = slide[:, slide.var_names != "CD74"].copy()
    query.obs["half"] = "new"
    if without == "counts":
        query.X = None
    sg.tl.predict_expression(query, GENES, reference=reference, group_key="half")
    figure = sg.pl.predicted_expression(query, "CD74", return_fig=True)
    assert [text.get_text() for text in figure.axes[0].texts] == ["CD74 was not measured"]
    (right,) = maps(figure)
    r = query.uns["histology_expression"]["scores"].loc["CD74", "r"]
    assert right.get_title() == f"CD74, predicted (held-out r = {r:.2f}, reference)"
    np.testing.assert_allclose(values(right), query.obsm["histology_expression"]["CD74"])
    reference.obs["half"] = "one"  # nothing to hold out
    sg.tl.predict_expression(query, GENES, reference=reference, group_key="half")
    (right,) = maps(sg.pl.predicted_expression(query, "CD74", return_fig=True))
    assert right.get_title() == "CD74, predicted (held-out r not known)"


def test_a_prediction_is_asked_for(slide):
    with pytest.raises(KeyError, match=r"no gene 'KRT8' in adata\.obsm\['histology_expression'\]; it has"):
        sg.pl.predicted_expression(slide, "KRT8")
    with pytest.raises(ValueError, match="genes is empty"):
        sg.pl.predicted_expression(slide, [])
    del slide.obsm["histology_expression"]
    with pytest.raises(KeyError, match=r"sg\.tl\.predict_expression"):
        sg.pl.predicted_expression(slide)
    del slide.uns["histology_expression"]
    with pytest.raises(KeyError, match=r"sg\.tl\.predict_expression"):
        sg.pl.predicted_expression(slide)


def test_a_dense_map_has_a_pixel_for_each_point(dense, tmp_path):
    figure = sg.pl.superresolved_expression(dense, ["ERBB2", "CD74"], return_fig=True, save=tmp_path / "map.png")
    panels = shown(figure)
    assert [ax.get_title() for ax in panels] == [
        f"{gene}\nheld-out r = {dense.var.loc[gene, 'reliability']:.2f}" for gene in ("ERBB2", "CD74")
    ]
    assert "Between the spots nothing was measured" in figure.get_supxlabel()
    for ax, gene in zip(panels, ("ERBB2", "CD74"), strict=True):
        raster, (left, _, _, top) = ax.images[0].get_array(), ax.images[0].get_extent()
        columns, rows = ((dense.obsm["spatial"] - [left, top]) / 40).astype(int).T
        np.testing.assert_allclose(raster[rows, columns], sc.get.obs_df(dense, [gene])[gene])
        assert (~np.ma.getmaskarray(np.ma.masked_invalid(raster))).sum() == dense.n_obs  # white elsewhere
        assert ax.yaxis_inverted()  # as images are
    assert (tmp_path / "map.png").stat().st_size > 10_000


def test_the_dense_map_shows_the_best_genes(dense):
    best = dense.var["reliability"].nlargest(3).index
    found = [ax.get_title().split("\n")[0] for ax in shown(sg.pl.superresolved_expression(dense, return_fig=True))]
    assert found == best.tolist()
    plain = dense.copy()
    del plain.var["reliability"]
    (ax,) = shown(sg.pl.superresolved_expression(plain, "CD74", return_fig=True))
    assert ax.get_title() == "CD74\nheld-out r not known"
    assert len(shown(sg.pl.superresolved_expression(plain, GENES, return_fig=True))) == 4


def test_a_dense_map_of_one_of_several_slides(dense):
    """The second in other units, so that its points are half as far apart."""
    other = dense.copy()
    other.obsm["spatial"] = other.obsm["spatial"] / 2
    both = ad.concat({"A": dense, "B": other}, label="slide", index_unique="-", merge="same", uns_merge="first")
    both.uns["superresolved"]["params"]["microns_per_unit"] = [1.0, 2.0]
    with pytest.raises(ValueError, match="the map is of 2 slides"):
        sg.pl.superresolved_expression(both)
    assert len(shown(sg.pl.superresolved_expression(both, "CD74", library_key="slide", return_fig=True))) == 2
    rasters = [
        shown(sg.pl.superresolved_expression(both, "CD74", library_key="slide", library_id=name, return_fig=True))[0]
        for name in "AB"
    ]
    first, second = (ax.images[0] for ax in rasters)
    np.testing.assert_array_equal(first.get_array(), second.get_array())
    np.testing.assert_allclose(second.get_extent(), np.array(first.get_extent()) / 2)


def test_a_dense_map_is_asked_for(dense, slide):
    with pytest.raises(KeyError, match=r"sg\.tl\.superresolve_expression"):
        sg.pl.superresolved_expression(slide)
    with pytest.raises(KeyError, match="no gene 'KRT8' in the dense map"):
        sg.pl.superresolved_expression(dense, "KRT8")
