"""Tiles of the tissue, which are nearly independent of each other where single spots are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._slides import Libraries
from sagefm._types import Ints
from sagefm._utils import shorten
from sagefm.pp._graph import check_coordinates, find_coordinates

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

# Blocks of about 7 x 7 spots, wider than a neighborhood of 15; on large slides as many blocks, of more spots.
BLOCK_SPOTS, MAX_BLOCKS = 49, 32


def spatial_blocks(adata: AnnData, graph: sparse.csr_matrix, slides: Libraries | None = None) -> Ints:
    """Square tile of every spot, apart for slides, and for parts of a slide that the graph doesn't connect.

    Raises
    ------
    KeyError
        If the slide has no coordinates.
    ValueError
        If they are not finite or all the same.
    """
    from scipy.sparse.csgraph import connected_components

    if _keys.SPATIAL in adata.obsm:
        found, _ = find_coordinates(adata, _keys.SPATIAL, None)
        try:
            position = check_coordinates(adata, found, _keys.SPATIAL, np.arange(adata.n_obs), "the slide")[:, :2]
        except ValueError as error:
            raise ValueError(
                f"reliability and intervals part the tissue by the coordinates: {error} Or pass reliability=False and "
                "no intervals."
            ) from error
    elif {_keys.ARRAY_ROW, _keys.ARRAY_COL} <= set(adata.obs):
        position = adata.obs[[_keys.ARRAY_COL, _keys.ARRAY_ROW]].to_numpy(dtype=float) * [0.5, np.sqrt(3) / 2]
    else:
        raise KeyError(
            f"reliability and intervals need the spots' coordinates: {_keys.SPATIAL!r} not in adata.obsm. Put them "
            "there, or pass reliability=False and no intervals."
        )
    bad = ~np.isfinite(position).all(axis=1)
    if bad.any():
        raise ValueError(
            f"the coordinates of {bad.sum()} spots are not finite: {shorten(adata.obs_names[bad])}. Reliability and "
            "intervals part the tissue by them; remove these spots, or pass reliability=False and no intervals."
        )
    if len(position) > 1 and (position == position[0]).all():
        raise ValueError(
            "all spots have the same coordinates, by which reliability and intervals part the tissue. Mend "
            f"obsm[{_keys.SPATIAL!r}], or pass reliability=False and no intervals."
        )
    _, part = connected_components(graph, directed=False)
    codes = np.zeros(len(part), dtype=np.int64) if slides is None else slides.codes
    pairs, part = np.unique(np.column_stack([codes, part]), axis=0, return_inverse=True)
    part = part.ravel()
    low = np.array([position[part == i].min(axis=0) for i in range(part.max() + 1)])
    high = np.array([position[part == i].max(axis=0) for i in range(part.max() + 1)])
    # Numbered by slide and place, so that neither the order of the spots matters nor where slides lie to each other.
    order = np.lexsort((np.bincount(part), *high.T, *low.T, pairs[:, 0]))
    low, high, part = low[order], high[order], np.argsort(order)[part]
    spots = max(BLOCK_SPOTS, adata.n_obs / MAX_BLOCKS)
    side = np.sqrt(max(np.prod(high - low, axis=1).sum(), 1e-12) * spots / adata.n_obs)
    tile = np.column_stack([part, ((position - low[part]) // side).astype(np.int64)])
    return np.unique(tile, axis=0, return_inverse=True)[1].ravel()
