"""Patches of the histology image around spots."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sagefm import _keys
from sagefm._anndata import check_free, get_anndata
from sagefm._settings import logger
from sagefm._slides import split_libraries
from sagefm._types import Floats, Ints
from sagefm._utils import check_positive, check_whole, progress
from sagefm.histology.image import Image, find_source, open_image
from sagefm.histology.patches import Patches, glass_density, tissue_fraction
from sagefm.pp._graph import check_coordinates, find_coordinates
from sagefm.pp._regions.regions import find_regions, region_library
from sagefm.pp._regions.units import find_scales

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

FUNCTION = "pp.histology_patches"
MAX_OUTSIDE = 0.02  # share of spots whose centre may lie off the image
LEAST_PIXELS = 16  # of the image, that a patch may span


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
    library_key
        Column of ``obs`` with the slide of each spot, where ``adata`` holds several.
    spatial_key
        Coordinates in ``obsm``; of a ``SpatialData`` without them, those of the regions that the table annotates.
    key_added
        Name of what is written.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    copy
        Return a copy of the table instead of writing in place.

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
        or the image is none of colours.

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
    from anndata import AnnData

    size = check_whole("size", size, LEAST_PIXELS)
    mpp = None if mpp is None else check_positive("mpp", mpp)
    if microns_per_unit is not None:
        microns_per_unit = check_positive("microns_per_unit", microns_per_unit)
    if isinstance(min_tissue, bool) or not isinstance(min_tissue, int | float) or not 0 <= min_tissue <= 1:
        raise ValueError(f"min_tissue={min_tissue!r} has to lie between 0 and 1.")
    sdata = None if isinstance(adata, AnnData) else adata
    adata = get_anndata(adata, table_key, copy=copy)
    tissue_key, padded_key = _keys.HISTOLOGY_TISSUE.format(key_added), _keys.HISTOLOGY_PADDED.format(key_added)
    more = [("obs", tissue_key), ("obs", padded_key)]
    check_free(adata, key_added, _keys.HISTOLOGY, [], FUNCTION, more)
    if sdata is not None and library_key is None:
        library_key = region_library(adata)
    slides = _slides(adata, sdata, image, library_key, spatial_key)
    scales = None if mpp is None else find_scales(adata, [slide.label for slide in slides], microns_per_unit)

    tissue, padded = np.zeros(adata.n_obs, dtype=np.float32), np.zeros(adata.n_obs, dtype=bool)
    rows_of_table = []
    for number, slide in enumerate(progress(slides, "Reading", unit="image")):
        span = size if mpp is None or scales is None else size * mpp / scales[number]
        # Pixels of the full resolution are the coordinates' or the image's, whichever are finer.
        per_unit = slide.image.scale if mpp is not None else min(slide.image.scale, 1.0)
        patches = Patches(slide.image, slide.image.locate(slide.xy), round(span * per_unit), size)
        _check_place(slide, patches)
        glass = glass_density(slide.image)
        tissue[slide.rows] = tissue_fraction(patches, glass)
        padded[slide.rows] = patches.padded
        _check_tissue(adata, slide, patches, tissue[slide.rows], glass, min_tissue)
        rows_of_table.append({"slide": slide.label or "", **slide.source, "width": patches.width})
        del slide.image, patches
    params: dict[str, object] = {"function": FUNCTION, "size": size, "spatial_key": spatial_key}
    options = {"mpp": mpp, "library_key": library_key, "microns_per_unit": microns_per_unit}
    params |= {key: value for key, value in options.items() if value is not None}  # None can't be saved everywhere
    images = pd.DataFrame(rows_of_table).fillna("")
    adata.obs[tissue_key], adata.obs[padded_key] = tissue, padded
    adata.uns[key_added] = {"params": params, "images": images.set_index(images.index.astype(str))}
    logger.info(
        "Patches of %d pixels around %d spots: %.0f%% tissue in the median, %d leave the image; wrote obs['%s'].",
        size,
        adata.n_obs,
        100 * np.median(tissue),
        padded.sum(),
        tissue_key,
    )
    return adata if copy else None


class _Slide:
    """One slide: its spots, where they are, and its image."""

    def __init__(
        self,
        adata: AnnData,
        sdata: SpatialData | None,
        name: str,
        label: str | None,
        rows: Ints,
        xy: Floats,
        image: str | os.PathLike[str] | None,
        region: str | None,
    ) -> None:
        self.name, self.label, self.rows, self.xy = name, label, rows, xy
        self.source = find_source(image, adata, sdata, label)
        if region is not None:
            self.source["region"] = region
        self._open = partial(open_image, self.source, adata, sdata)

    @cached_property
    def image(self) -> Image:
        """The image, opened when it is looked at; it may take much memory."""
        return self._open()


def _slides(
    adata: AnnData, sdata: SpatialData | None, image: Any, library_key: str | None, spatial_key: str
) -> list[_Slide]:
    libraries = split_libraries(adata, library_key)
    labels: list[str | None] = [None] if library_key is None else list(libraries.names)
    if isinstance(image, Mapping):
        if library_key is None:
            raise ValueError("image maps slides to images, so library_key has to name the slides' column of obs.")
        images = {str(key): value for key, value in image.items()}
        if missing := [label for label in labels if label not in images]:
            raise KeyError(f"image has no entry for {missing}; it has {sorted(images)}.")
    elif image is not None and len(libraries) > 1:
        raise ValueError(f"adata holds {len(libraries)} slides: map each of {labels} to its image.")
    else:
        images = dict.fromkeys(map(str, labels), image)
    regions: list[str | None] = [None] * len(libraries)
    if sdata is not None:
        regions = find_regions(adata, libraries)
    found, _ = find_coordinates(adata, spatial_key, sdata)
    slides = []
    for (library, rows), label, region in zip(libraries.rows(), labels, regions, strict=True):
        name = libraries.title(library)
        xy = check_coordinates(adata, found, spatial_key, rows, name)[:, :2]
        slides.append(_Slide(adata, sdata, name, label, rows, xy, images[str(label)], region))
    return slides


def get_params(adata: AnnData, key: str) -> dict[str, Any]:
    """What :func:`histology_patches` was called with."""
    record = adata.uns.get(key)
    params = record.get("params", {}) if isinstance(record, Mapping) else {}
    if params.get("function") != FUNCTION:
        raise KeyError(f"{key!r} not in adata.uns. Run sg.pp.histology_patches(adata, image) first.")
    return dict(params)


def open_patches(adata: AnnData, sdata: SpatialData | None, key: str) -> Iterator[tuple[Ints, Patches]]:
    """Rows and patches of each slide, as :func:`histology_patches` recorded them, at the spots' coordinates now.

    Slide by slide, for an image may take much memory.
    """
    params, record = get_params(adata, key), adata.uns[key]
    library_key, spatial_key = params.get("library_key"), params["spatial_key"]
    found, _ = find_coordinates(adata, spatial_key, sdata)
    sources = record["images"].set_index("slide").to_dict(orient="index")
    libraries = split_libraries(adata, library_key)
    for library, rows in libraries.rows():
        name, label = libraries.title(library), "" if library_key is None else library
        if label not in sources:
            raise KeyError(f"{name} has no image in adata.uns[{key!r}]. Run sg.pp.histology_patches again.")
        source = {key: value for key, value in sources[label].items() if value != ""}
        image = open_image(source, adata, sdata)
        xy = check_coordinates(adata, found, spatial_key, rows, name)[:, :2]
        yield rows, Patches(image, image.locate(xy), int(source["width"]), int(params["size"]))


def _check_place(slide: _Slide, patches: Patches) -> None:
    """Refuse spots that aren't on the image, and patches of hardly any pixels."""
    height, width = slide.image.pixels.shape[:2]
    off: NDArray[np.bool_] = np.any((patches.centers < 0) | (patches.centers >= [width, height]), axis=1)
    if off.mean() > MAX_OUTSIDE:
        low, high = patches.centers.min(axis=0), patches.centers.max(axis=0)
        raise ValueError(
            f"{int(off.sum())} of {len(off)} spots of {slide.name} lie off {slide.image.name}, which is {width} x "
            f"{height} pixels: they span columns {low[0]:.0f} to {high[0]:.0f} and rows {low[1]:.0f} to "
            f"{high[1]:.0f}. Is it another slide's image, or are the coordinates not in its pixels?"
        )
    if patches.width < LEAST_PIXELS:
        raise ValueError(
            f"a patch spans {patches.width} pixels of {slide.image.name}, too few to see tissue in. Pass the "
            "full-resolution image, or a larger size or mpp."
        )


def _check_tissue(
    adata: AnnData, slide: _Slide, patches: Patches, tissue: Floats, glass: float, min_tissue: float
) -> None:
    """Refuse spots on glass: an image that is turned, flipped or another slide's."""
    counted = np.ones(len(tissue), dtype=bool)
    if _keys.IN_TISSUE in adata.obs:
        counted = adata.obs[_keys.IN_TISSUE].to_numpy()[slide.rows].astype(float) > 0
    if not counted.any() or np.median(tissue[counted]) >= min_tissue:
        return
    share = float(np.median(tissue[counted]))
    hint = _better_place(slide, patches, counted, glass, share)
    raise ValueError(
        f"{slide.name} lies mostly on glass: half the spots have less than {share:.0%} tissue in their patch of "
        f"{slide.image.name}. {hint}min_tissue=0 takes it as it is."
    )


def _better_place(slide: _Slide, patches: Patches, counted: NDArray[np.bool_], glass: float, share: float) -> str:
    """Whether the spots, mirrored or turned, lie on tissue."""
    height, width = slide.image.pixels.shape[:2]
    x, y = patches.centers[counted].T
    places = {
        "with x and y exchanged": (y, x),
        "flipped left to right": (width - x, y),
        "flipped top to bottom": (x, height - y),
        "turned by half": (width - x, height - y),
    }
    found = {}
    for name, place in places.items():
        moved = Patches(slide.image, np.column_stack(place), patches.width, patches.size)
        found[name] = float(np.median(tissue_fraction(moved, glass)))
    best = next(name for name in found if found[name] > max(found.values()) - 0.05)  # of much the same the simplest
    if found[best] > max(0.5, 2 * share):
        return f"{best.capitalize()} they would lie on tissue ({found[best]:.0%}). "
    return "Is it this slide's image, at the coordinates' scale? "
