"""Plain predictors of masked genes, which every evaluation shows beside the model."""

from __future__ import annotations

from torch import Tensor

from sagefm.models._canonical import depth_ratio

ZEROS = "zeros"
GENE_MEAN = "gene mean"
SLIDE_MEAN = "slide mean"
NEIGHBOR_MEAN = "neighbor mean"
DEPTH_SCALED = "depth-scaled neighbor mean"


def depth_scaled(center: Tensor, neighbor_mean: Tensor, mask: Tensor) -> Tensor:
    """Mean of the neighbours times the depth of the spot relative to them, which leaves out what is masked.

    Parameters
    ----------
    center
        log1p counts of the spot, masked ones 0, shape (spots, genes).
    neighbor_mean
        Mean log1p counts of its neighbours, same shape.
    mask
        What is masked, same shape.
    """
    observed = neighbor_mean.masked_fill(mask, 0)
    return neighbor_mean * depth_ratio(center.sum(1, keepdim=True), observed.sum(1, keepdim=True))
