"""An image like a haematoxylin-eosin section for a simulated slide: each domain has its nuclei and its fibres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagefm._types import Floats

MARGIN = 150.0  # µm of image around the outermost spots
TISSUE = 80.0  # µm around a spot that are tissue


@dataclass(frozen=True)
class Texture:
    """What a domain looks like: nuclei per 100 µm squared, their radius in µm, and how pink it is between them."""

    nuclei: float
    radius: float
    eosin: float
    fibres: float


# Of the default domains, in their order; more domains begin again.
TEXTURES = (
    Texture(nuclei=60, radius=4.0, eosin=0.45, fibres=0.1),  # tumour
    Texture(nuclei=12, radius=2.5, eosin=0.8, fibres=0.5),  # stroma
    Texture(nuclei=110, radius=2.2, eosin=0.25, fibres=0.1),  # immune
    Texture(nuclei=5, radius=2.0, eosin=0.08, fibres=0.15),  # adipose
)


def paint(
    coordinates: Floats, domain: NDArray[np.intp], microns_per_pixel: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Floats]:
    """Image of a slide whose spots lie at ``coordinates`` (µm), and the µm of its upper left corner."""
    from scipy.ndimage import gaussian_filter
    from scipy.spatial import cKDTree
    from skimage.color import hed2rgb

    corner = coordinates.min(axis=0) - MARGIN
    width, height = np.ceil((coordinates.max(axis=0) + MARGIN - corner) / microns_per_pixel).astype(int)
    row, col = np.mgrid[:height, :width]
    # The border between domains, and the tissue's edge, waver.
    bend = [gaussian_filter(rng.normal(size=(height, width)), 15 / microns_per_pixel) for _ in range(2)]
    place = np.stack([(col + 0.5) * microns_per_pixel, (row + 0.5) * microns_per_pixel], axis=-1) + corner
    place += np.stack([20 * field / field.std() for field in bend], axis=-1)
    distance, nearest = cKDTree(coordinates).query(place.reshape(-1, 2))
    tissue = (distance < TISSUE).reshape(height, width)
    kind = domain[nearest].reshape(height, width) % len(TEXTURES)

    haematoxylin, eosin = np.zeros((2, height, width))
    for number, texture in enumerate(TEXTURES):
        here = tissue & (kind == number)
        if not here.any():
            continue
        sigma = texture.radius / microns_per_pixel / 1.5
        seeds = rng.random((height, width)) < texture.nuclei / 1e4 * microns_per_pixel**2
        blobs = gaussian_filter(seeds.astype(float), sigma) * 2 * np.pi * sigma**2
        haematoxylin[here] = np.minimum(blobs, 1.2)[here]
        waves = gaussian_filter(rng.normal(size=(height, width)), (1.0 / microns_per_pixel, 12 / microns_per_pixel))
        eosin[here] = (texture.eosin * (1 + texture.fibres * waves / waves.std()))[here]
    stains = np.stack([0.12 * haematoxylin, 0.1 * eosin.clip(0) + 0.005, np.zeros_like(eosin)], axis=-1)
    pixels = 255 * hed2rgb(stains) + rng.normal(0, 3, (height, width, 1))
    return pixels.clip(0, 255).astype(np.uint8), corner
