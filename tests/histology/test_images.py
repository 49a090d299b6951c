"""Histology: patches of images in every container, against plain crops of the same pixels."""

import anndata as ad
import numpy as np
import pytest
import tifffile
from helpers import SECTIONS
from images import SIZE, read
from PIL import Image as Pillow
from skimage.color import rgb2hed
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Scale, Sequence, Translation

import sagefm as sg
from sagefm.histology import texture
from sagefm.histology.spot_patches import open_patches


@pytest.fixture(scope="module")
def painted():
    """Slide with an image of the same domains, 1 µm a pixel."""
    return sg.datasets.simulated_visium(9, 8, n_genes=300, image=True, rng=3)


@pytest.fixture
def slide(painted):
    return painted.copy()


@pytest.fixture(scope="module")
def pixels(painted):
    return painted.uns["spatial"]["simulated"]["images"]["hires"]


def crops(pixels, centers, width):
    """Independent truth: one slice a spot, the outside white."""
    padded = np.pad(pixels, ((width, width), (width, width), (0, 0)), constant_values=255)
    corners = np.rint(np.asarray(centers) - width / 2).astype(int) + width
    return np.stack([padded[y : y + width, x : x + width] for x, y in corners])


def as_tiff(path, pixels, **options):
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), compression="zlib", **options)


def as_pyramid(path, pixels):
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(pixels, tile=(128, 128), photometric="rgb", subifds=1, metadata={"axes": "YXS"})
        file.write(pixels[::2, ::2], tile=(128, 128), photometric="rgb", subfiletype=1)


WRITERS = {
    "he.tif": as_tiff,
    "he.ome.tif": as_pyramid,
    "planes.tiff": lambda path, pixels: tifffile.imwrite(
        path, np.moveaxis(pixels, 2, 0), photometric="rgb", planarconfig="separate"
    ),
    "deep.tif": lambda path, pixels: as_tiff(path, pixels.astype(np.uint16) * 257),
    "he.png": lambda path, pixels: Pillow.fromarray(pixels).save(path),
    "alpha.png": lambda path, pixels: Pillow.fromarray(
        np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    ).save(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_patches_of_files(slide, pixels, tmp_path, name):
    WRITERS[name](tmp_path / name, pixels)
    sg.pp.histology_patches(slide, tmp_path / name, size=SIZE)
    expected = crops(pixels, slide.obsm["spatial"], SIZE)
    np.testing.assert_array_equal(read(slide), expected)
    assert not slide.obs["histology_padded"].any()


def test_a_jpeg_is_what_pillow_reads(slide, pixels, tmp_path):
    path = tmp_path / "he.jpg"
    Pillow.fromarray(pixels).save(path, quality=90)
    sg.pp.histology_patches(slide, str(path), size=SIZE)
    expected = crops(np.asarray(Pillow.open(path)), slide.obsm["spatial"], SIZE)
    np.testing.assert_array_equal(read(slide), expected)


def test_the_image_in_uns(slide, pixels):
    sg.pp.histology_patches(slide, size=SIZE)
    np.testing.assert_array_equal(read(slide), crops(pixels, slide.obsm["spatial"], SIZE))


def test_an_image_below_full_resolution_is_enlarged(slide, pixels):
    """Coordinates are in pixels of an image four times as fine."""
    slide.obsm["spatial"] = slide.obsm["spatial"] * 4
    slide.uns["spatial"]["simulated"]["scalefactors"]["tissue_hires_scalef"] = 0.25
    sg.pp.histology_patches(slide, size=128)
    found = read(slide).astype(float)
    assert found.shape[1] == 128
    small = crops(pixels, slide.obsm["spatial"] / 4, 32).astype(float)
    averaged = found.reshape(-1, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    assert np.abs(averaged - small)[:, 1:-1, 1:-1].mean() < 10  # smoothed, but in its place
    assert np.corrcoef(averaged.ravel(), small.ravel())[0, 1] > 0.95


def test_microns_per_pixel(slide, pixels):
    sg.pp.histology_patches(slide, size=32, mpp=2.0)
    found = read(slide).astype(float)
    large = crops(pixels, slide.obsm["spatial"], 64).astype(float)
    halved = large.reshape(-1, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(found - halved).mean() < 6
    assert slide.uns["histology"]["params"]["mpp"] == 2.0
    del slide.uns["spatial"]["simulated"]["scalefactors"]["microns_per_pixel"]
    with pytest.raises(ValueError, match="Pass microns_per_unit"):
        sg.pp.histology_patches(slide, size=32, mpp=2.0)
    sg.pp.histology_patches(slide, size=32, mpp=2.0, microns_per_unit=1.0)
    np.testing.assert_array_equal(read(slide), found)


@pytest.mark.parametrize("scales", [None, [2]])
def test_images_of_a_spatialdata(slide, pixels, scales):
    """Spots in µm from elsewhere; the image's own pixels by its transformation."""
    xy = slide.obsm["spatial"].copy()
    shapes = ShapesModel.parse(xy * 0.5 + 100, geometry=0, radius=20)
    to_spots = Sequence([Scale([0.5, 0.5], axes=("x", "y")), Translation([100, 100], axes=("x", "y"))])
    image = Image2DModel.parse(
        np.moveaxis(pixels, 2, 0), dims=("c", "y", "x"), transformations={"global": to_spots}, scale_factors=scales
    )
    del slide.obsm["spatial"], slide.uns["spatial"]
    slide.obs["region"], slide.obs["spot"] = "spots", np.arange(slide.n_obs)
    table = TableModel.parse(slide, region="spots", region_key="region", instance_key="spot")
    sdata = SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table})
    sg.pp.histology_patches(sdata, size=SIZE)
    np.testing.assert_array_equal(read(sdata["table"], sdata), crops(pixels, xy, SIZE))
    sdata["table"].obsm["spatial"] = xy * 0.5 + 100
    with pytest.raises(TypeError, match="pass that, not its table"):
        list(open_patches(sdata["table"], None, "histology"))


def test_several_slides(slide, pixels, tmp_path):
    paths = {}
    for name in ("a", "b"):
        paths[name] = tmp_path / f"{name}.tif"
        as_tiff(paths[name], pixels[:, ::-1] if name == "b" else pixels)
    turned = slide.copy()
    turned.obsm["spatial"][:, 0] = pixels.shape[1] - turned.obsm["spatial"][:, 0]
    both = ad.concat({"a": slide, "b": turned}, label="slide", index_unique="-")
    with pytest.raises(ValueError, match="map each of"):
        sg.pp.histology_patches(both, paths["a"], library_key="slide")
    with pytest.raises(KeyError, match="no entry for"):
        sg.pp.histology_patches(both, {"a": paths["a"]}, library_key="slide")
    assert "histology" not in both.uns
    sg.pp.histology_patches(both, paths, library_key="slide", size=SIZE)
    tissue = both.obs.groupby("slide", observed=True)["histology_tissue"].mean()
    assert tissue["a"] == pytest.approx(tissue["b"], abs=0.01)
    (_, first), (rows, second) = open_patches(both, None, "histology")
    np.testing.assert_array_equal(second.centers, both.obsm["spatial"][rows])
    assert first.image.name == "a.tif"


def test_tissue_and_borders(slide, pixels, tmp_path):
    """Half of the image is white; spots at the edge leave it."""
    halved = pixels.copy()
    middle = pixels.shape[1] // 2
    halved[:, middle:] = 250
    as_tiff(tmp_path / "he.tif", halved)
    slide.obsm["spatial"][0] = [5, 300]
    sg.pp.histology_patches(slide, tmp_path / "he.tif", size=SIZE, min_tissue=0)
    x = slide.obsm["spatial"][:, 0]
    assert (slide.obs["histology_tissue"][x > middle + SIZE] == 0).all()
    inner = (x < middle - SIZE) & (slide.obs["domain"] != "adipose") & (np.arange(slide.n_obs) > 0)
    assert slide.obs["histology_tissue"][inner].min() > 0.5
    assert slide.obs["histology_padded"].tolist() == [True] + [False] * (slide.n_obs - 1)
    assert (read(slide)[0, :, : SIZE // 2 - 5] == 255).all()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["off the image", "on glass", "flipped"])
def test_spots_that_dont_lie_on_the_tissue(slide, pixels, tmp_path, place):
    wide = np.full((pixels.shape[0], 3 * pixels.shape[1], 3), 245, dtype=np.uint8)
    wide[:, : pixels.shape[1]] = pixels
    as_tiff(tmp_path / "he.tif", wide)
    width, message = pixels.shape[1], "lies mostly on glass: half the spots have less than 0% tissue"
    if place == "off the image":
        slide.obsm["spatial"] *= 50
        message = r"72 of 72 spots of the slide lie off he\.tif, which is \d+ x \d+ pixels"
    elif place == "on glass":
        slide.obsm["spatial"][:, 0] += width
        message += r".* Is it this slide's image"
    else:
        slide.obsm["spatial"][:, 0] = 3 * width - slide.obsm["spatial"][:, 0]
        message += r".* Flipped left to right they would lie on tissue"
    before = slide.obs.copy()
    with pytest.raises(ValueError, match=message):
        sg.pp.histology_patches(slide, tmp_path / "he.tif", size=SIZE)
    assert slide.obs.equals(before)
    assert "histology" not in slide.uns
    if place != "off the image":
        slide.obs["in_tissue"] = np.arange(slide.n_obs) < 0  # none counts
        sg.pp.histology_patches(slide, tmp_path / "he.tif", size=SIZE)
        assert slide.obs["histology_tissue"].max() < 0.5


def test_bad_images(slide, pixels, tmp_path):
    def refused(error, message, image, **options):
        with pytest.raises(error, match=message):
            sg.pp.histology_patches(slide, image, **{"size": SIZE, **options})
        assert "histology" not in slide.uns

    refused(FileNotFoundError, "no image at .*nowhere.tif", tmp_path / "nowhere.tif")
    refused(TypeError, "has to be a path", pixels)
    (tmp_path / "broken.tif").write_bytes(b"II*\0 not a picture")
    refused(ValueError, "can't be read as a TIFF", tmp_path / "broken.tif")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    refused(ValueError, "can't be read as an image", tmp_path / "broken.jpg")
    (tmp_path / "he.docx").write_bytes(b"")
    refused(ValueError, "images are read of .tif", tmp_path / "he.docx")
    tifffile.imwrite(tmp_path / "grey.tif", pixels[:, :, 0])
    refused(ValueError, "grey.tif has axes YX", tmp_path / "grey.tif")
    Pillow.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    refused(ValueError, "expected .rows, columns, 3.: a color image", tmp_path / "grey.png")
    refused(ValueError, "size=8 has to be at least 16", None, size=8)
    refused(ValueError, "min_tissue=2 has to lie between", None, min_tissue=2)
    refused(ValueError, "library_key has to name", {"a": "b"})
    slide.uns["spatial"]["simulated"]["scalefactors"]["tissue_hires_scalef"] = 0.05
    slide.obsm["spatial"] *= 20
    refused(ValueError, "a patch spans 3 pixels", None)
    del slide.uns["spatial"]
    refused(KeyError, "Pass image, the path", None)


def test_what_is_gone_is_said(slide, pixels, tmp_path):
    with pytest.raises(KeyError, match=r"Run sg\.pp\.histology_patches\(adata, image\) first"):
        list(open_patches(slide, None, "histology"))
    as_tiff(tmp_path / "he.tif", pixels)
    sg.pp.histology_patches(slide, tmp_path / "he.tif", size=SIZE)
    (tmp_path / "he.tif").unlink()
    with pytest.raises(FileNotFoundError, match="is gone"):
        list(open_patches(slide, None, "histology"))
    sg.pp.histology_patches(slide, size=SIZE)
    del slide.uns["spatial"]
    with pytest.raises(KeyError, match="is gone"):
        list(open_patches(slide, None, "histology"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_the_record_survives_saving_and_a_subset(slide, pixels, tmp_path, form):
    as_tiff(tmp_path / "he.tif", pixels)
    sg.pp.histology_patches(slide, tmp_path / "he.tif", size=SIZE)
    getattr(slide, f"write_{form}")(tmp_path / f"slide.{form}")
    back = getattr(ad, f"read_{form}")(tmp_path / f"slide.{form}")[10:30].copy()
    np.testing.assert_array_equal(read(back), read(slide)[10:30])
    sg.pp.histology_patches(back, tmp_path / "he.tif", size=SIZE)  # over what an earlier call wrote
    back.obs["mine_tissue"] = 1
    with pytest.raises(ValueError, match="mine_tissue"):
        sg.pp.histology_patches(back, tmp_path / "he.tif", key_added="mine")


def test_real_images(section):
    path = SECTIONS / "images" / "her2st_C3.jpg"
    if not path.exists():
        pytest.skip(f"no image at {path}")
    adata = section("her2st_C3")
    sg.pp.histology_patches(adata, path)
    assert adata.obs["histology_tissue"].median() > 0.6
    assert not adata.obs["histology_padded"].any()


# Features.


def test_texture_by_hand():
    """A patch of one color, and one of stripes."""
    plain = np.full((1, 32, 32, 3), (200, 150, 180), dtype=np.uint8)
    found = dict(zip(texture.FEATURES, texture.extract(plain)[0], strict=True))
    assert found["red_mean"] == pytest.approx(200 / 255)
    assert found["green_0.9"] == pytest.approx(150 / 255)
    assert found["blue_sd"] == pytest.approx(0, abs=1e-12)
    assert found["density_mean"] == pytest.approx(-np.log10(np.array([201, 151, 181]) / 256).mean(), rel=1e-5)
    stains = rgb2hed(plain[0])[0, 0]
    assert found["haematoxylin_mean"] == pytest.approx(stains[0], rel=1e-5)
    assert found["eosin_0.5"] == pytest.approx(stains[1], rel=1e-5)
    assert found["haematoxylin_eosin_r"] == pytest.approx(0, abs=1e-12)
    kinds = [value for name, value in found.items() if name.startswith("eosin_lbp8_")]
    assert kinds[8] == 1  # all neighbors as bright as the center
    assert sum(kinds) == pytest.approx(1)

    striped = plain.copy()
    striped[:, ::2] = (90, 60, 140)
    found = dict(zip(texture.FEATURES, texture.extract(striped)[0], strict=True))
    assert found["red_mean"] == pytest.approx(145 / 255)
    assert found["red_sd"] == pytest.approx(55 / 255)
    assert abs(found["haematoxylin_eosin_r"]) == pytest.approx(1)
    assert found["haematoxylin_lbp8_8"] < 1


def test_texture_doesnt_hang_on_the_direction(pixels, painted):
    """Turned and mirrored patches look the same."""
    patches = crops(pixels, painted.obsm["spatial"][:6], 65)
    expected = texture.extract(patches)
    for turned in (np.rot90(patches, axes=(1, 2)), patches[:, ::-1]):
        found = texture.extract(np.ascontiguousarray(turned))
        order = [i for i, name in enumerate(texture.FEATURES) if "lbp16" not in name]  # interpolated between pixels
        np.testing.assert_allclose(found[:, order], expected[:, order], atol=2e-3)


def test_embedding_is_that_of_each_patch(slide, pixels, log):
    sg.pp.histology_patches(slide, size=SIZE)
    sg.tl.histology_embed(slide, batch_size=5)
    expected = texture.extract(crops(pixels, slide.obsm["spatial"], SIZE))
    np.testing.assert_array_equal(slide.obsm["X_histology"], expected)
    assert slide.obsm["X_histology"].dtype == np.float32
    assert list(slide.uns["X_histology"]["features"]) == texture.FEATURES
    assert "wrote obsm['X_histology']" in log.text
    shuffled = slide[::-1].copy()
    sg.tl.histology_embed(shuffled, key_added="X_again")
    np.testing.assert_array_equal(shuffled.obsm["X_again"], expected[::-1])


def test_planted_domains_are_seen(slide):
    """By features alone, on a slide whose image was painted from the domains."""
    sg.pp.histology_patches(slide, size=SIZE)
    sg.tl.histology_embed(slide)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    assert cross_val_score(classifier, slide.obsm["X_histology"], slide.obs["domain"], cv=3).mean() > 0.85


def test_embedding_refusals(slide):
    with pytest.raises(KeyError, match=r"Run sg\.pp\.histology_patches"):
        sg.tl.histology_embed(slide)
    sg.pp.histology_patches(slide, size=SIZE)
    with pytest.raises(ValueError, match="unknown encoder 'resnet'"):
        sg.tl.histology_embed(slide, "resnet")
    slide.obsm["X_mine"] = np.ones((slide.n_obs, 2))
    with pytest.raises(ValueError, match="X_mine"):
        sg.tl.histology_embed(slide, key_added="X_mine")
    assert "X_histology" not in slide.obsm
