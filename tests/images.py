"""Patches of images, as the package reads them."""

import numpy as np

from sagefm.histology.spot_patches import open_patches

SIZE = 64


def read(adata, sdata=None, key="histology"):
    """All patches in the order of spots, each read once."""
    ((rows, patches),) = open_patches(adata, sdata, key)
    found = np.zeros((len(rows), patches.size, patches.size, 3), dtype=np.uint8)
    seen = np.zeros(len(rows), dtype=int)
    for numbers, part in patches.blocks(batch_size=7):
        found[numbers] = part
        seen[numbers] += 1
    assert (seen == 1).all()
    return found
