"""Plain predictors of masked genes, which every evaluation shows beside the model."""

from __future__ import annotations

import torch
from torch import Tensor

from sagefm._types import Array, Floats, Floats32
from sagefm.models._canonical import depth_ratio

ZEROS = "zeros"
GENE_MEAN = "gene mean"
SLIDE_MEAN = "slide mean"
DEPTH = "depth alone"
NEIGHBOR_MEAN = "neighbor mean"
DEPTH_SCALED = "depth-scaled neighbor mean"
DIFFUSION = "depth-scaled diffusion"
PREDICTORS = (ZEROS, GENE_MEAN, SLIDE_MEAN, DEPTH, NEIGHBOR_MEAN, DEPTH_SCALED, DIFFUSION)


def depth_scaled(center: Tensor, mean: Tensor, mask: Tensor) -> Tensor:
    """Mean of other spots times the depth of the spot relative to it, which leaves out what is masked.

    Parameters
    ----------
    center
        log1p counts of the spot, masked ones 0, shape (spots, genes).
    mean
        Mean log1p counts of the slide (which makes a predictor that knows nothing but depth), of the neighbors, or of
        similar spots, same shape.
    mask
        What is masked, same shape.
    """
    observed = mean.masked_fill(mask, 0)
    return mean * depth_ratio(center.sum(1, keepdim=True), observed.sum(1, keepdim=True))


def relative_depth(total: Floats, around: Array) -> Floats32:
    """Depth of spots relative to others, from their sums of log1p counts, see :func:`depth_ratio`."""
    return depth_ratio(torch.from_numpy(total), torch.from_numpy(around).double()).float().numpy()
