"""Checks that an image and spots belong together: spots lie on the image, and on its tissue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sagefm._types import Bools, Floats32
from sagefm.histology.patches import Patches, tissue_fraction

MAX_OUTSIDE = 0.02  # share of spots whose center may lie off the image
LEAST_PIXELS = 16  # of the image, that a patch may span


def check_place(patches: Patches, slide: str) -> None:
    """Refuse spots that aren't on the image, and patches of hardly any pixels."""
    height, width = patches.image.pixels.shape[:2]
    off: Bools = np.any((patches.centers < 0) | (patches.centers >= [width, height]), axis=1)
    if off.mean() > MAX_OUTSIDE:
        low, high = patches.centers.min(axis=0), patches.centers.max(axis=0)
        raise ValueError(
            f"{int(off.sum())} of {len(off)} spots of {slide} lie off {patches.image.name}, which is {width} x "
            f"{height} pixels: they span columns {low[0]:.0f} to {high[0]:.0f} and rows {low[1]:.0f} to "
            f"{high[1]:.0f}. Is it another slide's image, or are the coordinates not in its pixels?"
        )
    if patches.width < LEAST_PIXELS:
        raise ValueError(
            f"a patch spans {patches.width} pixels of {patches.image.name}, too few to see tissue in. Pass the "
            "full-resolution image, or a larger size or mpp."
        )


def check_tissue(
    patches: Patches, tissue: Floats32, in_tissue: Bools, glass: float, min_tissue: float, slide: str
) -> None:
    """Refuse spots on glass: an image that is turned, flipped or another slide's."""
    if not in_tissue.any() or (share := float(np.median(tissue[in_tissue]))) >= min_tissue:
        return
    hint = _better_place(replace(patches, centers=patches.centers[in_tissue]), glass, share)
    raise ValueError(
        f"{slide} lies mostly on glass: half the spots have less than {share:.0%} tissue in their patch of "
        f"{patches.image.name}. {hint}min_tissue=0 takes it as it is."
    )


def _better_place(patches: Patches, glass: float, share: float) -> str:
    """Whether the spots, mirrored or turned, lie on tissue."""
    height, width = patches.image.pixels.shape[:2]
    x, y = patches.centers.T
    places = {
        "with x and y exchanged": (y, x),
        "flipped left to right": (width - x, y),
        "flipped top to bottom": (x, height - y),
        "turned by half": (width - x, height - y),
    }
    found = {
        name: float(np.median(tissue_fraction(replace(patches, centers=np.column_stack(place)), glass)))
        for name, place in places.items()
    }
    best = next(name for name in found if found[name] > max(found.values()) - 0.05)  # of much the same the simplest
    if found[best] > max(0.5, 2 * share):
        return f"{best.capitalize()} they would lie on tissue ({found[best]:.0%}). "
    return "Is it this slide's image, at the coordinates' scale? "
