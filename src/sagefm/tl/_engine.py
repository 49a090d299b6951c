"""The one inference loop: project first, aggregate after.

The first layer is linear, so the mean over a neighborhood and the product with the big first matrix can change places:
``mean(x) @ W`` is ``mean(x @ W)``. Each spot's 14,558 counts meet that matrix once, in :meth:`Engine.project`, and all
neighborhoods that the spot belongs to reuse the narrow result. Hiding genes is exact in this form too: the product is
kept apart for each set of genes that may be hidden, and a hidden set is left out of the sum.

A tool says which sets may be hidden, and gives a function of a block of spots to :meth:`Projection.map`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from sagefm._io.scratch import Scratch
from sagefm._types import Array, Bools, Floats32, Ints
from sagefm.pp._counts import Counts
from sagefm.tl._compute import Compute, Rows
from sagefm.tl._projection import Projection, Target
from sagefm.tl._similar import SimilarSpots

if TYPE_CHECKING:
    from sagefm.models._canonical import Canonical

# Genes found in a smaller share of the spots are added up from their non-zeros, which is then faster than the dense
# product (they break even at about 7 % on two CPU cores). A gene that is zero on the whole slide costs nothing.
MIN_DENSITY = 0.07


@dataclass(frozen=True)
class Engine:
    """One model on one slide.

    Attributes
    ----------
    canonical
        The model, on the device.
    counts
        The slide's counts.
    graph
        Row i holds the neighbors of spot i.
    compute
        Where and how.
    slides
        Rows of each slide; all are of one by default.
    spatial
        Take the neighbors in space for the similar spots.
    scratch
        Memory for intermediate arrays.
    """

    canonical: Canonical
    counts: Counts
    graph: sparse.csr_matrix
    compute: Compute
    slides: Sequence[Ints] = ()
    spatial: bool = False
    scratch: Scratch = field(default_factory=Scratch)
    _similar: dict[tuple[bytes, bool], SimilarSpots] = field(default_factory=dict)

    @torch.inference_mode()
    def project(self, masks: Sequence[Ints] = ()) -> Projection:
        """Multiply the counts with the first layer's weights, apart for each set of genes that may be hidden.

        Parameters
        ----------
        masks
            Disjoint sets of vocabulary indices. A gene in none of them is never hidden.
        """
        compute, counts = self.compute, self.counts
        group_of = np.full(self.canonical.n_genes, len(masks))  # the last group is never hidden
        for i, mask in enumerate(masks):
            group_of[mask] = i
        is_dense = counts.density() >= MIN_DENSITY
        in_group = [group_of[counts.genes] == i for i in range(len(masks) + 1)]
        dense = [counts.genes[members & is_dense] for members in in_group]
        sparse_ = [counts.genes[members & ~is_dense] for members in in_group]
        read = counts.reader(np.concatenate(dense), np.concatenate(sparse_))
        weights = self._weights()
        picked = self.tensor(np.concatenate(dense))
        dense_weights = [weight.index_select(0, picked) for weight in weights]
        sparse_genes = self.tensor(np.concatenate(sparse_))
        shape = (counts.n_obs, dense_weights[0].shape[1])
        products = [[self._empty(shape) for _ in dense_weights] for _ in in_group]

        def multiply(rows: Rows) -> None:
            block = read(rows)  # type: ignore[arg-type]
            x = self.tensor(block.dense).to(compute.dtype)
            i = j = 0
            for common, rare, product in zip(dense, sparse_, products, strict=True):
                here, there = slice(i, i := i + len(common)), slice(j, j := j + len(rare))
                entries, values, offsets = [self.tensor(part) for part in block.nonzeros(there.start, there.stop)]
                entries, values = sparse_genes[there][entries.long()], values.to(compute.dtype)
                for target, dense_weight, weight in zip(product, dense_weights, weights, strict=True):
                    part = x[:, here] @ dense_weight[here]
                    if len(rare):
                        part += F.embedding_bag(entries, weight, offsets, per_sample_weights=values, mode="sum")
                    target[rows] = part

        for _ in compute.map(multiply, "Projecting", counts.n_obs):
            pass
        totals = [product[-1][:, -1:].contiguous() for product in products] if self.canonical.gain is not None else []
        centers, neighbors = [product[0] for product in products], [product[-1] for product in products]
        typical = self._typical(in_group)
        return Projection(
            *(self, self.graph, tuple(masks), tuple(centers), tuple(neighbors), tuple(totals), tuple(typical))
        )

    def _weights(self) -> list[Tensor]:
        """First-layer weights of center and neighbors, once if they are the same; one gene's lie side by side.

        With a gain in the decoder a column of ones comes last. Its product is the sum of the spot's counts, which the
        decoder needs as the spot's depth.
        """
        model = self.canonical
        weights = [model.center] if model.shares_weights else [model.center, model.neighbors]
        if model.gain is not None:
            return [F.pad(weight, (0, 1), value=1.0) for weight in weights]
        return [weight.contiguous() for weight in weights]

    def _typical(self, in_group: Sequence[Bools]) -> list[float]:
        """Sum of the mean log1p counts in training of the slide's genes in each group."""
        if self.canonical.typical is None:
            return [0.0] * len(in_group)
        of_slide = self.canonical.typical.cpu()[self.counts.genes]
        return [float(of_slide[members].sum()) for members in in_group]

    def _empty(self, shape: tuple[int, int]) -> Tensor:
        """Room for a product: on the device if it takes at most half of what is free there, else on the host."""
        device = self.compute.device
        if device.type == "cpu" or (
            device.type == "cuda" and 8 * shape[0] * shape[1] > torch.cuda.mem_get_info(device)[0]
        ):
            return torch.from_numpy(self.scratch.empty(shape))
        return torch.empty(shape, device=device)

    def tensor(self, array: Array) -> Tensor:
        """Array as a tensor on the device."""
        return torch.from_numpy(array).to(self.compute.device)

    def target(self, genes: Ints, hidden: Ints | None = None, *, read: bool = False) -> Target:
        """Prepare genes for :meth:`Projection.predict`.

        Parameters
        ----------
        genes
            Vocabulary indices. Hidden ones must all be of one mask.
        hidden
            The genes of that mask, which don't tell what spots are similar. None if no spot shows the genes.
        read
            Whether their counts are read even if the decoder doesn't need them.
        """
        read = read or self.canonical.gain is not None
        log_counts, similar = self.log_counts(genes) if read else None, None
        if log_counts is not None and hidden is not None and self.canonical.similar_gain is not None:
            similar = self.similar_mean(hidden, log_counts, spatial=self.spatial)
        unseen = np.ones(len(genes), dtype=bool) if hidden is None else ~np.isin(genes, self.counts.genes)
        return Target(self.tensor(genes), log_counts, similar, self.tensor(unseen))

    def similar_mean(self, hidden: Ints, log_counts: sparse.csr_matrix, *, spatial: bool = False) -> Floats32:
        """Mean over the similar spots of each slide, at the depth of the spot, shape (spots, genes).

        Similar by the genes that aren't hidden, so that nothing hidden is seen: found once for each set of these.
        """
        key = (np.sort(hidden).tobytes(), spatial)
        if key not in self._similar:
            shown = self.log_counts(np.setdiff1d(self.counts.genes, hidden))
            slides = self.slides or [np.arange(self.counts.n_obs)]
            self._similar[key] = SimilarSpots(shown, slides, self.graph, spatial=spatial)
        return self._similar[key].scaled(log_counts, self.scratch.empty(log_counts.shape))

    def log_counts(self, genes: Ints) -> sparse.csr_matrix:
        """log1p counts of some genes (vocabulary indices) on the whole slide, shape (spots, genes)."""
        return self.counts.log1p(genes, self.compute.batch_size, self.scratch)
