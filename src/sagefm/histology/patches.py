"""Square patches of an image around spots, read block by block so that memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sagefm._types import Array, Bools, Floats, Floats32, Ints

if TYPE_CHECKING:
    from sagefm.histology.image import Image

BLOCK = 2048  # pixels of the image that are read at a time, each way, with a margin for the patches at its edge

# Glass is brighter than this mean optical density, and tissue darker than glass by so much.
DARKEST_GLASS, ABOVE_GLASS = 0.15, 0.05


@dataclass(frozen=True)
class Patches:
    """Patches of ``size`` pixels a side around points, each of ``width`` pixels of the image.

    Attributes
    ----------
    image
        What they are cut from.
    centers
        Columns and rows, shape (patches, 2).
    width
        Pixels of the image that a patch spans.
    size
        Pixels of the patch: the same, or resampled.
    """

    image: Image
    centers: Floats
    width: int
    size: int

    def __len__(self) -> int:
        return len(self.centers)

    @property
    def corners(self) -> Ints:
        """Left and top of each patch."""
        return np.rint(self.centers - self.width / 2).astype(np.int64)

    @property
    def padded(self) -> Bools:
        """Which patches leave the image, whose outside is white."""
        height, width = self.image.pixels.shape[:2]
        corners = self.corners
        return np.asarray(((corners < 0) | (corners + self.width > [width, height])).any(axis=1))

    def blocks(self, batch_size: int = 256) -> Iterator[tuple[Ints, Array]]:
        """Numbers of some patches and their pixels, shape (n, size, size, 3), block by block of the image."""
        corners = self.corners
        # At least a few patches to a block, however large they are.
        block = max(BLOCK, 2 * self.width)
        place = corners // block
        order = np.lexsort((place[:, 0], place[:, 1]))
        ends = np.flatnonzero((np.diff(place[order], axis=0) != 0).any(axis=1)) + 1
        for of_block in np.split(order, ends):
            left, top = corners[of_block].min(axis=0)
            right, bottom = corners[of_block].max(axis=0) + self.width
            window = self.image.read(top, bottom, left, right)
            for rows in np.split(of_block, range(batch_size, len(of_block), batch_size)):
                cut = np.stack([window[y : y + self.width, x : x + self.width] for x, y in corners[rows] - [left, top]])
                yield rows, cut if self.size == self.width else _resample(cut, self.size)


def _resample(patches: Array, size: int) -> Array:
    """Other pixels for the same field of view, averaged where these are larger."""
    import torch
    from torch.nn.functional import interpolate

    planes = torch.from_numpy(patches).permute(0, 3, 1, 2).float()
    resized = interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
    return np.asarray(resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy())


def optical_density(pixels: Array) -> Floats32:
    """Mean of -log10 of the three colors' intensity."""
    table = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
    return table[pixels].mean(axis=-1)


def glass_density(image: Image, n_pixels: int = 1_000_000) -> float:
    """Optical density of the glass: the commonest of the image's brighter pixels.

    From a regular sample of the image; glass that is darker than usual is taken for tissue.
    """
    height, width = image.pixels.shape[:2]
    step = max(1, int(np.sqrt(height * width / n_pixels)))
    densities = []
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            window = image.read(top, min(top + BLOCK, height), left, min(left + BLOCK, width))
            densities.append(optical_density(window[::step, ::step]).ravel())
    density = np.concatenate(densities)
    counts, edges = np.histogram(density[density <= DARKEST_GLASS], bins=60, range=(0, DARKEST_GLASS))
    return float(edges[counts.argmax()] + DARKEST_GLASS / 120) if counts.any() else DARKEST_GLASS


def tissue_fraction(patches: Patches, glass: float) -> Floats32:
    """Share of each patch's pixels that are darker than glass."""
    found = np.zeros(len(patches), dtype=np.float32)
    for rows, pixels in patches.blocks():
        found[rows] = (optical_density(pixels[:, ::4, ::4]) > glass + ABOVE_GLASS).mean(axis=(1, 2))
    return found
