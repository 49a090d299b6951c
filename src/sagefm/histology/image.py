"""Histology images: opened where they lie, read a window at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm import _keys
from sagefm._settings import logger
from sagefm._types import Array, Floats
from sagefm._utils import shorten

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


TILED = (".tif", ".tiff", ".svs", ".ndpi", ".scn", ".btf", ".qptiff")
WHOLE = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
HUGE = 2**30  # bytes of a decoded image that are worth a word


@dataclass(frozen=True)
class Image:
    """Pixels of one slide, and the affine map from its coordinates (x, y) to them (column, row).

    Attributes
    ----------
    pixels
        Array, lazily, shape (rows, columns, 3), 8 bits a channel.
    affine
        Shape (2, 3), applied to (x, y, 1).
    name
        What messages call it.
    """

    pixels: Any
    affine: Floats
    name: str

    @property
    def scale(self) -> float:
        """Pixels of the image per unit of the coordinates."""
        return float(np.sqrt(abs(np.linalg.det(self.affine[:, :2]))))

    def locate(self, xy: Floats) -> Floats:
        """Columns and rows of points, shape (points, 2)."""
        return xy @ self.affine[:, :2].T + self.affine[:, 2]

    def coordinates(self, pixels: Floats) -> Floats:
        """The inverse of :meth:`locate`."""
        return np.asarray(np.linalg.solve(self.affine[:, :2], (pixels - self.affine[:, 2]).T).T)

    def read(self, top: int, bottom: int, left: int, right: int) -> Array:
        """Pixels of a window; white where it leaves the image."""
        window = np.full((bottom - top, right - left, 3), 255, dtype=np.uint8)
        found = np.asarray(self.pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)])
        if found.size:
            y, x = max(-top, 0), max(-left, 0)
            window[y : y + found.shape[0], x : x + found.shape[1]] = _in_bytes(found)
        return window


def open_image(source: Mapping[str, Any], adata: AnnData, sdata: SpatialData | None) -> Image:
    """Open what :func:`find_source` found, now or in an earlier session."""
    if source["kind"] == "file":
        return Image(_open_file(Path(source["path"])), np.eye(2, 3), Path(source["path"]).name)
    if source["kind"] == "uns":
        entry = adata.uns.get(_keys.SPATIAL, {}).get(source["library"])
        if entry is None:
            raise KeyError(f"adata.uns['spatial'][{source['library']!r}] is gone. Run sg.pp.histology_patches again.")
        factor = float(entry[_keys.SCALEFACTORS][f"tissue_{source['image']}_scalef"])
        name = f"uns['spatial'][{source['library']!r}]['images'][{source['image']!r}]"
        return Image(_checked(entry["images"][source["image"]], name), factor * np.eye(2, 3), name)
    if sdata is None:
        raise TypeError(f"image {source['image']!r} lies in a SpatialData: pass that, not its table.")
    return _from_spatialdata(sdata, source["image"], source.get("region"))


def find_source(
    image: str | os.PathLike[str] | None, adata: AnnData, sdata: SpatialData | None, library: str | None
) -> dict[str, str]:
    """Where the image of one library is: a file, an element of the SpatialData, or ``uns["spatial"]``."""
    if image is not None:
        if sdata is not None and isinstance(image, str) and image in sdata.images:
            return {"kind": "spatialdata", "image": image}
        if not isinstance(image, str | os.PathLike):
            raise TypeError(
                f"image has to be a path{' or the name of an image' if sdata is not None else ''}, "
                f"got {type(image).__name__}. Write arrays to a file, as with tifffile.imwrite(path, array)."
            )
        path = Path(image).expanduser()
        if not path.is_file():
            known = "" if sdata is None else f"; the SpatialData has images {shorten(sdata.images)}"
            raise FileNotFoundError(f"no image at {os.fspath(image)!r}{known}.")
        return {"kind": "file", "path": str(path.resolve())}
    if sdata is not None and len(sdata.images):
        if len(sdata.images) == 1:
            return {"kind": "spatialdata", "image": next(iter(sdata.images))}
        raise ValueError(f"the SpatialData has images {shorten(sdata.images)}: set image to one of them.")
    return _find_in_uns(adata, library)


def _find_in_uns(adata: AnnData, library: str | None) -> dict[str, str]:
    stored = adata.uns.get(_keys.SPATIAL)
    libraries = [str(name) for name in stored] if isinstance(stored, Mapping) else []
    mend = "Pass image, the path of the slide's H&E image."
    if library is None and len(libraries) == 1:
        library = libraries[0]
    if library not in libraries:
        of = "" if library is None else f" of {library!r}"
        has = f"; adata.uns['spatial'] has {shorten(libraries)}" if libraries else ""
        raise KeyError(f"no image{of} was given or is in adata.uns['spatial']{has}. {mend}")
    images = stored[library].get("images", {})
    factors = stored[library].get(_keys.SCALEFACTORS, {})
    usable = [name for name in images if f"tissue_{name}_scalef" in factors]
    if not usable:
        raise KeyError(f"adata.uns['spatial'][{library!r}] has no image with a scale factor. {mend}")
    finest = max(usable, key=lambda name: images[name].shape[0])
    logger.info(
        "Image: uns['spatial'][%r]['images'][%r], 1:%.3g of the full resolution; pass image for a finer one.",
        library,
        finest,
        1 / float(factors[f"tissue_{finest}_scalef"]),
    )
    return {"kind": "uns", "library": library, "image": finest}


def _from_spatialdata(sdata: SpatialData, name: str, region: str | None) -> Image:
    """An element, with the map from the coordinates of the region that the table's rows lie in."""
    from spatialdata.transformations import get_transformation_between_coordinate_systems
    from xarray import DataTree

    if name not in sdata.images:
        raise KeyError(f"image {name!r} is not in the SpatialData; it has {shorten(sdata.images)}.")
    element = sdata.images[name]
    affine = np.eye(2, 3)
    if region is not None:
        try:
            between = get_transformation_between_coordinate_systems(sdata, sdata[region], element)
        except RuntimeError as error:
            raise ValueError(
                f"region {region!r} and image {name!r} share no coordinate system ({error}). Align them with "
                "spatialdata.transformations.set_transformation."
            ) from error
        affine = np.asarray(between.to_affine_matrix(("x", "y"), ("x", "y")))[:2]
    if isinstance(element, DataTree):  # scales of one image: the finest is its own coordinates
        scales: Any = element["scale0"]
        element = next(iter(scales.values()))
    return Image(_checked(element.transpose("y", "x", "c").data, f"image {name!r}"), affine, f"image {name!r}")


def _open_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"the image {path} is gone. Run sg.pp.histology_patches(adata, image) again.")
    suffix = path.suffix.lower()
    if suffix in TILED:
        return _checked(_open_tiff(path), path.name)
    if suffix not in WHOLE:
        raise ValueError(f"{path.name}: images are read of {', '.join((*TILED, *WHOLE))}.")
    return _checked(_open_whole(path), path.name)


def _open_tiff(path: Path) -> Any:
    """Finest level of the first picture, read tile by tile."""
    import tifffile
    import zarr

    try:
        with tifffile.TiffFile(path) as file:
            axes = file.series[0].axes
        store: Any = tifffile.imread(path, aszarr=True, series=0, level=0)
        opened: Any = zarr.open(store, mode="r")
    except (OSError, ValueError, IndexError, tifffile.TiffFileError) as error:
        raise ValueError(f"{path.name} can't be read as a TIFF: {error}") from error
    import dask.array as da

    lazy = da.from_array(opened, chunks=opened.chunks)
    order = [axes.find(axis) for axis in "YX"] + [max(axes.find("S"), axes.find("C"))]
    if min(order) < 0 or len(axes) != 3:
        raise ValueError(f"{path.name} has axes {axes}, expected height, width and three colors.")
    return lazy.transpose(order)


def _open_whole(path: Path) -> Array:
    """Decode a picture that can't be read in parts."""
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    with _any_size():
        try:
            with Pillow.open(path) as file:
                n_bytes = 3 * file.width * file.height
                if n_bytes > HUGE:
                    logger.info(
                        "%s takes %.1f GB of memory decoded; as a tiled TIFF it would be read in parts.",
                        path.name,
                        n_bytes / 1e9,
                    )
                return np.asarray(file.convert("RGB") if file.mode in ("P", "CMYK", "YCbCr") else file)
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise ValueError(f"{path.name} can't be read as an image: {error}") from error


@contextmanager
def _any_size() -> Iterator[None]:
    """Slides are larger than what Pillow takes for an attack; the file is the user's own."""
    from PIL import Image as Pillow

    before, Pillow.MAX_IMAGE_PIXELS = Pillow.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Pillow.MAX_IMAGE_PIXELS = before


def _checked(pixels: Any, name: str) -> Any:
    """Refuse what isn't a color image."""
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise ValueError(f"{name} has shape {tuple(pixels.shape)}, expected (rows, columns, 3): a color image.")
    if pixels.dtype.kind not in "uf" or (pixels.dtype.itemsize > 4 and pixels.dtype.kind == "u"):
        raise ValueError(f"{name} holds {pixels.dtype}, expected 8 or 16 bits, or floats of 0 to 1.")
    return pixels[:, :, :3]


def _in_bytes(pixels: Array) -> Array:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "u":
        return (pixels // (np.iinfo(pixels.dtype).max // 255)).astype(np.uint8)
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError("the image's floats aren't between 0 and 1.")
    return np.rint(pixels * 255).astype(np.uint8)
