"""A batch of central spots with their neighborhoods, dense in the model's genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sagefm._types import Ints
from sagefm.models._baselines import depth_scaled

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from sagefm.models._canonical import Canonical


class Spots(NamedTuple):
    """log1p counts of some spots.

    Attributes
    ----------
    center, neighbor_sum
        The spot itself and the sum over its neighbors, nothing masked, shape (spots, genes).
    degree
        Number of neighbors, shape (spots, 1).
    mask
        Genes to mask in the center, boolean, shape (spots, genes).
    similar
        Mean over the similar spots of the slide, times the depth relative to them, shape (spots, genes); None where
        no other spot shows what is masked.
    unseen
        Genes that no spot shows, boolean, shape (genes,); None if there are none.
    """

    center: Tensor
    neighbor_sum: Tensor
    degree: Tensor
    mask: Tensor
    similar: Tensor | None = None
    unseen: Tensor | None = None

    @property
    def masked_center(self) -> Tensor:
        """The center as the model sees it."""
        return self.center.masked_fill(self.mask, 0)

    @property
    def neighbor_mean(self) -> Tensor:
        """Mean over the neighbors, shape (spots, genes)."""
        return self.neighbor_sum / self.degree.clamp(min=1)

    def to(self, device: torch.device) -> Spots:
        """The same on another device."""
        moved = {name: part.to(device) for name, part in self._asdict().items() if part is not None}
        return Spots(**moved)


def read_spots(
    log_counts: csr_matrix,
    graph: csr_matrix,
    rows: slice | Ints,
    mask: Tensor,
    *,
    shown: csr_matrix | None = None,
    similar: Tensor | None = None,
) -> Spots:
    """Read some spots of a slide with their neighborhoods.

    Parameters
    ----------
    log_counts
        log1p counts of all spots, float32, shape (spots, genes).
    graph
        Ones, float32, where a spot (row) has a neighbor (column).
    rows
        Which spots.
    mask
        Genes to mask in the center of each.
    shown
        What neighbors show of their log1p counts; all of them by default.
    similar
        Mean of what similar spots show, shape (rows, genes).
    """
    neighbors = graph[rows]
    center = torch.from_numpy(log_counts[rows].toarray())
    return Spots(
        center=center,
        neighbor_sum=torch.from_numpy((neighbors @ (log_counts if shown is None else shown)).toarray()),
        degree=torch.from_numpy(np.diff(neighbors.indptr)[:, None].astype(np.float32)),
        mask=mask,
        similar=None if similar is None else depth_scaled(center.masked_fill(mask, 0), similar, mask),
    )


def predict(canonical: Canonical, spots: Spots) -> Tensor:
    """Predicted log1p counts of all genes, shape (spots, genes), while the mask is on."""
    return predict_and_embed(canonical, spots)[0]


def predict_and_embed(canonical: Canonical, spots: Spots) -> tuple[Tensor, Tensor]:
    """As :func:`predict`; also the embedding."""
    _, neighbor_sum, degree, mask, similar, unseen = spots
    return canonical.forward_both(spots.masked_center, neighbor_sum, degree, mask, similar, unseen)
