"""The one inference loop: project first, aggregate after.

The first layer is linear, so the mean over a neighborhood and the product with the big first matrix can change places:
``mean(x) @ W`` is ``mean(x @ W)``. Each spot's 14,558 counts meet that matrix once, in :meth:`Engine.project`, and all
neighborhoods that the spot belongs to reuse the narrow result. Hiding genes is exact in this form too: the product is
kept apart for each set of genes that may be hidden, and a hidden set is left out of the sum.

A tool says which sets may be hidden, and gives a function of a block of spots to :meth:`Projection.map`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from sagefm._io.scratch import Scratch
from sagefm._types import Array, Bools, Floats32, Ints
from sagefm.models._canonical import depth_ratio, depth_scale
from sagefm.pp._counts import Counts
from sagefm.tl._compute import Compute, Rows
from sagefm.tl._similar import SimilarSpots

if TYPE_CHECKING:
    from sagefm.models._canonical import Canonical

T = TypeVar("T")
Where = Literal["center", "everywhere"]

# Genes found in a smaller share of the spots are added up from their non-zeros, which is then faster than the dense
# product (they break even at about 7 % on two CPU cores). A gene that is zero on the whole slide costs nothing.
MIN_DENSITY = 0.07


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
