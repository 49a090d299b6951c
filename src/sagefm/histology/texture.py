"""Colour and texture of image patches: the plain baseline beside every learnt encoder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from sagefm.pp._counts import N_THREADS

Bytes = NDArray[np.uint8]

QUANTILES = (0.1, 0.5, 0.9)
CHANNELS = ("haematoxylin", "eosin", "red", "green", "blue", "density")
# Local binary patterns: (points, radius), uniform, so points + 2 kinds.
PATTERNS = ((8, 1), (16, 3))


def names() -> list[str]:
    """What each feature is."""
    of_channel = [f"{channel}_{what}" for channel in CHANNELS for what in ("mean", "sd", *map(str, QUANTILES))]
    patterns = [
        f"{stain}_lbp{points}_{kind}" for stain in CHANNELS[:2] for points, _ in PATTERNS for kind in range(points + 2)
    ]
    return [*of_channel, "haematoxylin_eosin_r", *patterns]


def describe(patches: Bytes) -> NDArray[np.float32]:
    """Features of patches of shape (n, rows, columns, 3), shape (n, features).

    Stains by the separation of Ruifrok and Johnston (2001): mean, standard deviation and quantiles of each and of the
    colours; how the two stains go together; and histograms of local binary patterns (Ojala 2002) of the stains.
    """
    if not len(patches):
        return np.empty((0, len(names())), dtype=np.float32)
    with ThreadPoolExecutor(N_THREADS) as pool:  # scikit-image's patterns don't hold Python's lock
        return np.stack(list(pool.map(_describe, patches))).astype(np.float32)


def _describe(patch: Bytes) -> NDArray[np.float64]:
    from skimage.color import rgb2hed
    from skimage.feature import local_binary_pattern

    haematoxylin, eosin, _ = np.moveaxis(rgb2hed(patch), 2, 0)
    colours = np.moveaxis(patch / 255.0, 2, 0)
    density = -np.log10((patch.astype(np.float64) + 1) / 256).mean(axis=2)
    channels = np.stack([haematoxylin, eosin, *colours, density]).reshape(len(CHANNELS), -1)
    quantiles = np.quantile(channels, QUANTILES, axis=1)
    moments = np.stack([channels.mean(axis=1), channels.std(axis=1), *quantiles], axis=1)
    spread = channels[0].std() * channels[1].std()
    together = ((channels[0] - channels[0].mean()) * (channels[1] - channels[1].mean())).mean() / max(spread, 1e-12)
    histograms = []
    for stain in (haematoxylin, eosin):
        # In whole steps: noise of single bits would be a pattern.
        steps = np.rint(stain * 500).astype(np.int32)
        for points, radius in PATTERNS:
            kinds = local_binary_pattern(steps, points, radius, method="uniform").astype(int)
            kinds = kinds[radius:-radius, radius:-radius]  # at the border the circle leaves the patch
            histograms.append(np.bincount(kinds.ravel(), minlength=points + 2) / kinds.size)
    return np.concatenate([moments.ravel(), [together], *histograms])
