"""Color and texture of image patches: the plain baseline beside every learnt encoder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sagefm._stats import pearson
from sagefm._types import Array, Floats, Floats32
from sagefm.histology.patches import optical_density
from sagefm.pp._counts import N_THREADS

QUANTILES = (0.1, 0.5, 0.9)
STAINS = ("haematoxylin", "eosin")
CHANNELS = (*STAINS, "red", "green", "blue", "density")
# Local binary patterns: (points, radius), uniform, so points + 2 kinds.
PATTERNS = ((8, 1), (16, 3))
FEATURES = [
    *(f"{channel}_{what}" for channel in CHANNELS for what in ("mean", "sd", *map(str, QUANTILES))),
    "haematoxylin_eosin_r",
    *(f"{stain}_lbp{points}_{kind}" for stain in STAINS for points, _ in PATTERNS for kind in range(points + 2)),
]


def extract(patches: Array) -> Floats32:
    """Features of patches, bytes of shape (n, rows, columns, 3), shape (n, features).

    Stains by the separation of Ruifrok and Johnston (2001): mean, standard deviation and quantiles of each and of the
    colors; how the two stains go together; and histograms of local binary patterns (Ojala 2002) of the stains.
    """
    found = np.empty((len(patches), len(FEATURES)), dtype=np.float32)
    with ThreadPoolExecutor(N_THREADS) as pool:  # scikit-image's patterns don't hold Python's lock
        for row, features in zip(found, pool.map(_extract, patches), strict=True):
            row[:] = features
    return found


def _extract(patch: Array) -> Floats:
    from skimage.color import rgb2hed
    from skimage.feature import local_binary_pattern

    stains = np.moveaxis(rgb2hed(patch), 2, 0)[: len(STAINS)]
    colors = np.moveaxis(patch / 255.0, 2, 0)
    channels = np.stack([*stains, *colors, optical_density(patch)]).reshape(len(CHANNELS), -1)
    quantiles = np.quantile(channels, QUANTILES, axis=1)
    moments = np.stack([channels.mean(axis=1), channels.std(axis=1), *quantiles], axis=1)
    together = np.nan_to_num(pearson(channels[0], channels[1]))
    histograms = []
    for stain in stains:
        # In whole steps: noise of single bits would be a pattern.
        steps = np.rint(stain * 500).astype(np.int32)
        for points, radius in PATTERNS:
            kinds = local_binary_pattern(steps, points, radius, method="uniform").astype(int)
            kinds = kinds[radius:-radius, radius:-radius]  # at the border the circle leaves the patch
            histograms.append(np.bincount(kinds.ravel(), minlength=points + 2) / kinds.size)
    return np.concatenate([moments.ravel(), [together], *histograms])
