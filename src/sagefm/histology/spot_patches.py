"""Patches of the histology image around spots: recorded once, opened by every tool."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm import _keys
from sagefm._anndata import open_run, recorded_params
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._slides import find_library_key, split_libraries
from sagefm._types import Floats, Ints
from sagefm._utils import check_positive, check_whole, progress
from sagefm.histology.alignment import LEAST_PIXELS, check_place, check_tissue
from sagefm.histology.image import find_source, open_image
from sagefm.histology.patches import Patches, glass_density, tissue_fraction
from sagefm.pp._graph import check_coordinates, find_coordinates
from sagefm.pp._regions.regions import find_regions, region_library
from sagefm.pp._regions.units import find_scales

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

FUNCTION = "pp.histology_patches"


@fill_docstring
def histology_patches(
    adata: AnnData | SpatialData,
    image: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None = None,
    *,
    size: int = 224,
    mpp: float | None = None,
    microns_per_unit: float | None = None,
    min_tissue: float = 0.25,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    key_added: str = _keys.HISTOLOGY,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Find the square of the H&E image around each spot, and check that image and spots belong together.

    Pixels are not copied: what is written says where the image lies, and tools read it from there, a part at a time.

    Parameters
    ----------
    adata
        Slide with coordinates in pixels of the full-resolution image, as Space Ranger gives them; or a
        ``SpatialData``, whose transformations lead from the spots to the image.
    image
        Path of the image (TIFF and OME-TIFF are read in parts; JPEG and PNG are decoded as a whole), or the name of an
        image of the ``SpatialData``. With ``library_key`` a mapping of slides to these. By default the only image of
        the ``SpatialData``, else the finest in ``uns["spatial"]``, which is far coarser than the full
        resolution.
    size
        Pixels of a patch, each way. It spans as many of the full-resolution image, or ``size`` times ``mpp`` µm.
        Images in ``uns["spatial"]`` and coarse ones of a ``SpatialData`` are enlarged to that.
    mpp
        µm per pixel of the patch, to compare images of several scanners.
    microns_per_unit
        µm per unit of the coordinates, for ``mpp`` and for :func:`sagefm.tl.superresolve_expression`; by default from
        Space Ranger's scale factors.
    min_tissue
        The least median share of tissue in the patches. Where there is less, image and spots are taken not to belong
        together. 0 accepts anything, as images that aren't brightfield.
    {library_key}
    spatial_key
        Coordinates in ``obsm``; of a ``SpatialData`` without them, those of the regions that the table annotates.
    key_added
        Prefix of the keys to write the results to.
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obs["histology_tissue"]``
        Share of the patch that is darker than glass, 0 to 1.
    ``obs["histology_padded"]``
        Whether the patch leaves the image; it is white there.
    ``uns["histology"]``
        ``params``, and ``images``: a ``DataFrame`` with the source of each slide's image and the pixels of it
        that a patch spans.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If no image was given or found, or coordinates are missing.
    ValueError
        If more than 2 % of the spots lie off the image, most patches are glass, a patch spans fewer than 16 pixels,
        or the image is none of colors.

    Notes
    -----
    Tissue is what has a mean optical density of 0.05 more than glass; the density of glass is the commonest one of
    the image's bright pixels. Spots with ``obs["in_tissue"]`` 0 don't count for ``min_tissue``.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=8, n_cols=8, n_genes=500, image=True)
    >>> sg.pp.histology_patches(adata, size=64)
    >>> bool(adata.obs["histology_tissue"].median() > 0.5)
    True
    """
    import pandas as pd

    size = check_whole("size", size, LEAST_PIXELS)
    mpp = None if mpp is None else check_positive("mpp", mpp)
    if microns_per_unit is not None:
        microns_per_unit = check_positive("microns_per_unit", microns_per_unit)
    if isinstance(min_tissue, bool) or not isinstance(min_tissue, int | float) or not 0 <= min_tissue <= 1:
        raise ValueError(f"min_tissue={min_tissue!r} has to lie between 0 and 1.")
    sdata = as_spatialdata(adata)
    tissue_slot, padded_slot = (
        ("obs", name.format(key_added)) for name in (_keys.HISTOLOGY_TISSUE, _keys.HISTOLOGY_PADDED)
    )
    more = [tissue_slot, padded_slot]
    run = open_run(adata, FUNCTION, key_added, _keys.HISTOLOGY, more=more, table_key=table_key, copy=copy)
    adata = run.adata
    if sdata is not None and library_key is None:
        library_key = region_library(adata)
    library_key = find_library_key(adata, library_key)
    slides = find_slides(adata, sdata, library_key, spatial_key)
    sources = _find_sources(adata, sdata, slides, image, library_key)
    scales: list[Any] = [None] * len(slides)
    if mpp is not None:
        scales = find_scales(adata, [slide.label for slide in slides], microns_per_unit)

    tissue, padded = np.zeros(adata.n_obs, dtype=np.float32), np.zeros(adata.n_obs, dtype=bool)
    in_tissue = np.ones(adata.n_obs, dtype=bool)
    if _keys.IN_TISSUE in adata.obs:
        in_tissue = adata.obs[_keys.IN_TISSUE].to_numpy().astype(float) > 0
    images = []
    for slide, source, scale in progress(list(zip(slides, sources, scales, strict=True)), "Reading", unit="image"):
        patches = _cut(slide, source, adata, sdata, size, None if mpp is None else size * mpp / scale)
        check_place(patches, slide.title)
        glass = glass_density(patches.image)
        tissue[slide.rows] = tissue_fraction(patches, glass)
        padded[slide.rows] = patches.padded
        check_tissue(patches, tissue[slide.rows], in_tissue[slide.rows], glass, min_tissue, slide.title)
        images.append({"slide": slide.label or "", **source, "width": patches.width})
        del patches  # its image may take much memory
    table = pd.DataFrame(images, index=[str(number) for number in range(len(images))]).fillna("")
    logger.info(
        "Patches of %d pixels around %d spots: %.0f%% tissue in the median, %d leave the image; wrote obs['%s'].",
        size,
        adata.n_obs,
        100 * np.median(tissue),
        padded.sum(),
        tissue_slot[1],
    )
    params = {"size": size, "spatial_key": spatial_key, "mpp": mpp, "library_key": library_key}
    params["microns_per_unit"] = microns_per_unit
    return run.commit({tissue_slot: tissue, padded_slot: padded}, params, images=table)


def as_spatialdata(data: AnnData | SpatialData | None) -> SpatialData | None:
    """Return the ``SpatialData`` that a user passed, in which an image may lie."""
    from anndata import AnnData

    return None if isinstance(data, AnnData) else data


@dataclass(frozen=True)
class Slide:
    """Spots of one slide.

    Attributes
    ----------
    label
        Name of the slide; None where all spots are of one.
    title
        What messages call it.
    rows, xy
        Rows of its spots, and their coordinates.
    region
        Element of the ``SpatialData`` that the coordinates are of, if any.
    """

    label: str | None
    title: str
    rows: Ints
    xy: Floats
    region: str | None


def find_slides(adata: AnnData, sdata: SpatialData | None, library_key: str | None, spatial_key: str) -> list[Slide]:
    """Spots of each slide."""
    libraries = split_libraries(adata, library_key)
    regions: list[str | None] = [None] * len(libraries)
    if sdata is not None:
        regions = find_regions(adata, libraries)
    found, _ = find_coordinates(adata, spatial_key, sdata)
    slides = []
    for (name, rows), region in zip(libraries.rows(), regions, strict=True):
        title = libraries.title(name)
        xy = check_coordinates(adata, found, spatial_key, rows, title)[:, :2]
        slides.append(Slide(None if library_key is None else name, title, rows, xy, region))
    return slides


def _find_sources(
    adata: AnnData, sdata: SpatialData | None, slides: list[Slide], image: Any, library_key: str | None
) -> list[dict[str, str]]:
    """Where the image of each slide is."""
    labels = [slide.label for slide in slides]
    if isinstance(image, Mapping):
        if library_key is None:
            raise ValueError("image maps slides to images, so library_key has to name the slides' column of obs.")
        images = {str(key): value for key, value in image.items()}
        if missing := [label for label in labels if label not in images]:
            raise KeyError(f"image has no entry for {missing}; it has {sorted(images)}.")
    elif image is not None and len(slides) > 1:
        raise ValueError(f"adata holds {len(slides)} slides: map each of {labels} to its image.")
    else:
        images = dict.fromkeys(map(str, labels), image)
    regions = [{} if slide.region is None else {"region": slide.region} for slide in slides]
    sources = [find_source(images[str(label)], adata, sdata, label) for label in labels]
    return [source | region for source, region in zip(sources, regions, strict=True)]


def _cut(
    slide: Slide, source: dict[str, str], adata: AnnData, sdata: SpatialData | None, size: int, span: float | None
) -> Patches:
    """Patches of a slide, which span so much of its coordinates, by default ``size`` pixels of the full resolution."""
    image = open_image(source, adata, sdata)
    # Pixels of the full resolution are the coordinates' or the image's, whichever are finer.
    width = size * min(image.scale, 1.0) if span is None else span * image.scale
    return Patches(image, image.locate(slide.xy), round(width), size)


def get_params(adata: AnnData, key: str) -> dict[str, Any]:
    """What :func:`histology_patches` was called with."""
    params = recorded_params(adata, key)
    if params.get("function") != FUNCTION:
        run = _keys.advise("sg.pp.histology_patches(adata, image)", key)
        raise KeyError(f"{key!r} not in adata.uns. Run {run} first.")
    return dict(params)


def open_patches(adata: AnnData, sdata: SpatialData | None, key: str) -> Iterator[tuple[Ints, Patches]]:
    """Rows and patches of each slide, as :func:`histology_patches` recorded them, at the spots' coordinates now.

    Slide by slide, for an image may take much memory.
    """
    params = get_params(adata, key)
    sources = adata.uns[key]["images"].set_index("slide").to_dict(orient="index")
    for slide in find_slides(adata, sdata, params.get("library_key"), params["spatial_key"]):
        if (slide.label or "") not in sources:
            raise KeyError(f"{slide.title} has no image in adata.uns[{key!r}]. Run sg.pp.histology_patches again.")
        source = {name: value for name, value in sources[slide.label or ""].items() if value != ""}
        image = open_image(source, adata, sdata)
        yield slide.rows, Patches(image, image.locate(slide.xy), int(source["width"]), int(params["size"]))
