"""A batch of central spots with their neighbourhoods, dense in the model's genes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Spots(NamedTuple):
    """log1p counts of some spots.

    Attributes
    ----------
    center, neighbor_sum
        The spot itself and the sum over its neighbours, nothing masked, shape (spots, genes).
    degree
        Number of neighbours, shape (spots, 1).
    mask
        Genes to mask in the centre, boolean, shape (spots, genes).
    """

    center: Tensor
    neighbor_sum: Tensor
    degree: Tensor
    mask: Tensor

    @property
    def masked_center(self) -> Tensor:
        """The centre as the model sees it."""
        return self.center.masked_fill(self.mask, 0)

    @property
    def neighbor_mean(self) -> Tensor:
        """Mean over the neighbours, shape (spots, genes)."""
        return self.neighbor_sum / self.degree.clamp(min=1)
