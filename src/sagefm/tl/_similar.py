"""Similar spots as context: what a slide's most similar spots show of a gene, at the depth of the spot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sagefm._types import Array, Floats32, Ints
from sagefm.models._baselines import relative_depth
from sagefm.pp._diffusion import Diffusion, dense_blocks, with_unit_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class SimilarSpots:
    """Means over similar spots, each within its slide, times the depth of the spot relative to these.

    Parameters
    ----------
    log_counts
        log1p counts of the genes that are shown, shape (spots, genes).
    slides
        Rows of each slide.
    neighbors
        Ones where a spot (row) has a neighbor (column).
    spatial
        Take the neighbors in space for the similar spots on every slide, not only on those with few spots.
    """

    def __init__(
        self, log_counts: csr_matrix, slides: Sequence[Ints], neighbors: csr_matrix, *, spatial: bool = False
    ) -> None:
        total = np.asarray(log_counts.sum(axis=1), dtype=float)
        self._slides: list[tuple[Ints, Diffusion, Floats32]] = []
        several = len(slides) > 1
        for rows in slides:
            around = neighbors[rows][:, rows] if several else neighbors
            if spatial:
                mean = Diffusion(with_unit_rows(around), 1)
            else:
                mean = Diffusion.of_slide(log_counts[rows] if several else log_counts, around)
            self._slides.append((rows, mean, relative_depth(total[rows], mean.mean(total[rows]))))

    def scaled(self, values: csr_matrix, into: Array) -> Array:
        """Fill an array of shape (spots, genes) with the scaled means of some genes' log1p counts."""
        for genes, dense in dense_blocks(values):
            for rows, mean, depth in self._slides:
                into[rows, genes] = depth * mean.mean(dense[rows])
        return into
