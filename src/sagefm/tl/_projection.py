"""A slide after the first layer: blocks of spots aggregate, hide genes, embed and predict.

See :mod:`sagefm.tl._engine` for why the products come before the means.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from sagefm._types import Floats32, Ints
from sagefm.models._canonical import depth_ratio, depth_scale
from sagefm.tl._compute import Rows

if TYPE_CHECKING:
    from sagefm.tl._engine import Engine

T = TypeVar("T")
Where = Literal["center", "everywhere"]


@dataclass(frozen=True)
class State:
    """Some spots after the first layer.

    Attributes
    ----------
    rows
        Which spots.
    hidden
        First layer before its activation, shape (spots, width).
    totals
        Sums of the log1p counts of the center and of the neighbors' mean, each of shape (spots, 1), for decoders that
        scale by depth. Both leave out the genes that are hidden at the spot, even where its neighbors show them.
    typical
        Sum of the mean log1p counts in training of the genes that the slide has and that aren't hidden.
    degree
        Number of neighbors, shape (spots, 1).
    where
        Where genes were hidden: nowhere, in the center, or in every spot.
    """

    rows: Rows
    hidden: Tensor
    totals: tuple[Tensor, Tensor] | None
    typical: float
    degree: Tensor
    where: Where | None

    @property
    def depth(self) -> Tensor:
        """Factor of the neighbors' mean in the decoder, shape (spots, 1); 1 where the decoder doesn't read it."""
        return torch.ones_like(self.degree) if self.totals is None else depth_scale(*self.totals)


@dataclass(frozen=True)
class Target:
    """Genes to predict.

    Attributes
    ----------
    genes
        Vocabulary indices.
    log_counts
        Their log1p counts, shape (spots, genes), where the decoder reads them.
    similar
        Their mean over the similar spots of the slide, at the depth of the spot, likewise.
    unseen
        Whether no spot shows a gene, boolean, shape (genes,).
    """

    genes: Tensor
    log_counts: sparse.csr_matrix | None
    similar: Floats32 | None
    unseen: Tensor


@dataclass(frozen=True)
class Projection:
    """The slide's counts after the first matrix, by set of genes that may be hidden. It never changes.

    Attributes
    ----------
    engine
        Model and slide.
    graph
        Row i holds the neighbors of spot i.
    masks
        The sets of genes.
    centers, neighborhoods
        Products with the weights of the center and of the neighbors for each set, shape (spots, width) each; the last
        set is never hidden.
    totals
        Sums of the log1p counts for each set, shape (spots, 1) each, where the decoder scales by depth.
    typical
        Sum of the mean log1p counts in training of the genes of each set that the slide has.
    """

    engine: Engine
    graph: sparse.csr_matrix
    masks: tuple[Ints, ...]
    centers: tuple[Tensor, ...]
    neighborhoods: tuple[Tensor, ...]
    totals: tuple[Tensor, ...]
    typical: tuple[float, ...]

    def with_graph(self, graph: sparse.csr_matrix) -> Projection:
        """Return the same products on another graph, without computing them again."""
        return replace(self, graph=graph)

    def map(self, fn: Callable[[Rows], T], desc: str, spots: Ints | None = None) -> Iterator[tuple[Rows, T]]:
        """Apply a function to blocks of spots, and yield each block with what the function returned.

        This owns the blocks, the progress bar, the precision of products, and the retries: a block for which the
        device has too little memory is cut, and the function is called again with the smaller one. So the function
        returns its results and changes nothing; the caller adds up what is yielded, which comes once for each spot.

        Parameters
        ----------
        fn
            Function of the rows of some spots.
        desc
            Text of the progress bar.
        spots
            Row numbers to go through; all by default.
        """
        return self.engine.compute.map(fn, desc, self.engine.counts.n_obs, spots)

    @torch.inference_mode()
    def states(
        self, rows: Rows, where: Where | None = None, masks: Sequence[Collection[int]] | None = None
    ) -> Iterator[State]:
        """First layer of some spots.

        Yields it once with nothing hidden (``where=None``), or once for each mask, hidden in the ``"center"`` or
        ``"everywhere"``. A mask joins some of the sets of :meth:`Engine.project`; by default each set is one.
        """
        model, device = self.engine.canonical, self.engine.compute.device
        n_groups = len(self.centers)
        around = self.graph[rows]
        neighbors = torch.from_numpy(around.indices.astype(np.int64))
        starts = torch.from_numpy(around.indptr.astype(np.int64))
        degree = starts.diff()[:, None].to(device)

        def aggregate(tables: Sequence[Tensor], groups: Sequence[int]) -> Tensor:
            """Sum over the neighbors and over some groups."""
            found = [
                F.embedding_bag(
                    neighbors.to(tables[group].device),
                    tables[group],
                    starts[:-1].to(tables[group].device),
                    mode="sum",
                ).to(device)
                for group in groups
            ]
            return _sum(found)

        every = range(n_groups)
        # Where only the center hides genes, its neighbors look the same under all masks.
        of_neighbors = None if where == "everywhere" else aggregate(self.neighborhoods, every)
        if where is None:
            masks = [()]
        elif masks is None:
            masks = [(group,) for group in range(n_groups - 1)]
        at = rows if isinstance(rows, slice) else torch.from_numpy(rows)
        for mask in masks:
            kept = [group for group in every if group not in mask]
            center = _sum([self.centers[group][at].to(device) for group in kept])
            around_sum = aggregate(self.neighborhoods, kept) if of_neighbors is None else of_neighbors
            totals = None
            if model.gain is not None:
                totals = (center[:, -1:], aggregate(self.totals, kept) / degree.clamp(min=1))
            hidden = model.first_layer(center[:, : model.width], around_sum[:, : model.width], degree)
            typical = sum(self.typical[group] for group in kept)
            yield State(rows, hidden.to(self.engine.compute.dtype), totals, typical, degree.to(hidden.dtype), where)

    def state(self, rows: Rows, where: Where | None = None, mask: Collection[int] = ()) -> State:
        """First layer of some spots under one mask, see :meth:`states`."""
        return next(self.states(rows, where, [mask]))

    @torch.inference_mode()
    def embed(self, state: State) -> Floats32:
        """Embedding, shape (spots, embedding_dim)."""
        return to_numpy(self.engine.canonical.embed(state.hidden))

    @torch.inference_mode()
    def predict(self, state: State, target: Target) -> Floats32:
        """Predicted log1p counts, shape (spots, genes of the target)."""
        model = self.engine.canonical
        return to_numpy(model.decode(model.embed(state.hidden), target.genes, *self.means(state, target)))

    def means(self, state: State, target: Target) -> tuple[Tensor | None, Tensor | None]:
        """Means of the target's genes over neighbors and over similar spots, as the decoder adds them.

        Where no spot shows a gene, its mean in training at the depth of the spot stands for both.
        """
        model, dtype = self.engine.canonical, self.engine.compute.dtype
        if model.typical is None or state.totals is None or target.log_counts is None:
            return None, None
        total = state.totals[0]
        typical = (depth_ratio(total, torch.full_like(total, state.typical)) * model.typical[target.genes]).to(dtype)
        if target.similar is None or state.where == "everywhere":
            return typical, typical
        scaled_mean = (state.depth * self.neighbor_mean(state.rows, target.log_counts)).to(dtype)
        similar = self.engine.tensor(target.similar[state.rows]).to(dtype)
        if target.unseen.any():
            return torch.where(target.unseen, typical, scaled_mean), torch.where(target.unseen, typical, similar)
        return scaled_mean, similar

    def neighbor_mean(self, rows: Rows, values: sparse.csr_matrix) -> Tensor:
        """Mean over the neighbors of values of every spot, shape (rows, columns of the values)."""
        return self.engine.tensor(neighbor_mean(self.graph[rows], values))


def neighbor_mean(around: sparse.csr_matrix, values: sparse.csr_matrix) -> Floats32:
    """Mean of values over the spots in each row of a graph; 0 where there are none."""
    return ((around @ values).toarray() / np.maximum(np.diff(around.indptr), 1)[:, None]).astype(np.float32)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Sum that leaves its terms as they are."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def to_numpy(tensor: Tensor) -> Floats32:
    """float32 array on the host."""
    return tensor.float().cpu().numpy()
