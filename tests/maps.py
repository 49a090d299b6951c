"""Maps of the tissue, as tests read them."""

import numpy as np


def places(ax):
    """Centers of the spots that a panel draws, shape (spots, 2)."""
    (spots,) = ax.collections
    return np.array([path.get_extents().get_points().mean(axis=0) for path in spots.get_paths()])
