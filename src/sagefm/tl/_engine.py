"""The one inference loop: project first, aggregate after.

Neighbourhood means are linear, so ``mean(x) @ W`` is ``mean(x @ W)``: each spot's counts meet the big first
matrix once, and its 15 neighbourhoods reuse the narrow result. Counts are dense one row block at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from sagefm import models
from sagefm._io.scratch import Scratch
from sagefm._settings import logger
from sagefm._utils import check_whole, get_device, progress
from sagefm.models._canonical import depth_scale
from sagefm.pp._counts import Counts
from sagefm.pp._genes import Alignment, get_alignment
from sagefm.pp._graph import get_graph

if TYPE_CHECKING:
    from anndata import AnnData

    from sagefm.models import Model
    from sagefm.models._canonical import Canonical

Precision = Literal["float32", "tf32", "bfloat16"]
Where = Literal["center", "everywhere"]

BATCH_SIZE = 2048
# Genes found in fewer spots than this are added up from their non-zeros, which is then faster than the dense
# product (break-even at about 7 % on two CPU cores). A gene that is zero on the whole slide costs nothing.
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
        Where the decoder reads them: sums of the log1p counts of the centre and of the neighbours' mean, each of
        shape (spots, 1), both without what is masked at the spot, though its neighbours may show it.
    degree
        Number of neighbours, shape (spots, 1).
    where
        What was masked: nothing, the centre, or every spot.
    """

    rows: slice
    hidden: Tensor
    totals: tuple[Tensor, Tensor] | None
    degree: Tensor
    where: Where | None

    @property
    def depth(self) -> Tensor:
        """What scales the mean of the neighbours, shape (spots, 1); 1 where the decoder doesn't read it."""
        return torch.ones_like(self.degree) if self.totals is None else depth_scale(*self.totals)


@dataclass(frozen=True)
class Target:
    """Genes to predict, and their log1p counts, shape (spots, genes), where the decoder reads them."""

    genes: Tensor
    log_counts: sparse.csr_matrix | None


class Engine:
    """One model on one slide.

    Call :meth:`project` once, then read :meth:`states` per row block, and :meth:`embed` or :meth:`predict`
    from what comes.

    Parameters
    ----------
    canonical
        The model.
    counts
        The slide's counts.
    graph
        Row i holds the neighbours of spot i.
    device
        Where products are computed.
    dtype
        Of the products; sums over neighbours are float32 always.
    batch_size
        Rows of a block.
    """

    def __init__(
        self,
        canonical: Canonical,
        counts: Counts,
        graph: sparse.csr_matrix,
        *,
        device: torch.device,
        dtype: Precision = "float32",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        self._tf32 = dtype == "tf32"
        self.canonical = canonical.to(device, self.dtype)
        self.counts = counts
        self.device = device
        self.batch_size = batch_size
        self.scratch = Scratch()
        self._todo: list[slice] = []
        self._use(graph)
        self._centers: list[Tensor] = []
        self._neighborhoods: list[Tensor] = []
        self._totals: list[Tensor] = []

    def with_graph(self, graph: sparse.csr_matrix) -> Engine:
        """Return the same engine on another graph; what :meth:`project` made is shared."""
        other = copy.copy(self)
        other._use(graph)
        return other

    def _use(self, graph: sparse.csr_matrix) -> None:
        self._graph = graph
        self._neighbors = self._tensor(graph.indices.astype(np.int64))
        self._indptr = self._tensor(graph.indptr.astype(np.int64))

    @property
    def graph(self) -> sparse.csr_matrix:
        """Row i holds the neighbours of spot i."""
        return self._graph

    def blocks(self, desc: str) -> Iterator[slice]:
        """Row blocks, with a progress bar; what is done with one belongs inside :meth:`computing`."""
        for rows in progress(self.slices(), desc, total=-(-self.counts.n_obs // self.batch_size)):
            self._todo = [rows]
            while self._todo:
                yield self._todo.pop()

    def slices(self, scale: float = 1) -> Iterator[slice]:
        """Row blocks of ``scale`` times the size, smaller from where the device ran out of memory."""
        start, n = 0, self.counts.n_obs
        while start < n:
            yield slice(start, start := min(start + max(1, int(self.batch_size * scale)), n))

    @contextmanager
    def computing(self, rows: slice) -> Iterator[None]:
        """Work on a block of :meth:`blocks`, at the precision asked for.

        Where the device runs out of memory meanwhile, the rows come again, in two halves: what is done here has to
        come to the same when it is cut short and done again.
        """
        failure, before = None, torch.get_float32_matmul_precision()
        if self._tf32:
            torch.set_float32_matmul_precision("high")
        try:
            yield
        except torch.OutOfMemoryError as error:
            failure = error.with_traceback(None)  # whose frames hold on to what is to be freed
        finally:
            torch.set_float32_matmul_precision(before)
        if failure is not None:
            self._todo += self.halve(rows, failure)

    def halve(self, rows: slice, error: torch.OutOfMemoryError, scale: float = 1) -> list[slice]:
        """Two halves of a block of :meth:`slices` that the device had no memory for, the first one last."""
        n = rows.stop - rows.start
        if n < 2:
            raise error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = -(-n // 2)
        self.batch_size = min(self.batch_size, max(1, int(half / scale)))
        logger.warning("%s: out of memory with %d spots at a time; going on with %d.", self.device, n, half)
        middle = rows.start + half
        return [slice(middle, rows.stop), slice(rows.start, middle)]

    @torch.inference_mode()
    def project(self, masks: Sequence[NDArray[np.int64]] = ()) -> None:
        """Multiply the counts with the first layer's weights, apart for each mask.

        Parameters
        ----------
        masks
            Disjoint sets of vocabulary indices, each to be masked by itself. What lies outside is never masked.
        """
        group_of = np.full(self.canonical.n_genes, len(masks))  # the last group is never masked
        for i, mask in enumerate(masks):
            group_of[mask] = i
        genes, is_dense = self.counts.genes, self.counts.density() >= MIN_DENSITY
        in_group = [group_of[genes] == i for i in range(len(masks) + 1)]
        dense = [genes[members & is_dense] for members in in_group]
        sparse_ = [genes[members & ~is_dense] for members in in_group]
        read = self.counts.reader(np.concatenate(dense), np.concatenate(sparse_))
        weights = self._weights()
        picked = self._tensor(np.concatenate(dense))
        dense_weights = [weight.index_select(0, picked) for weight in weights]
        sparse_genes = self._tensor(np.concatenate(sparse_))
        # One product per group and weight; a group masked is a group left out of the sum, exactly.
        shape = (self.counts.n_obs, dense_weights[0].shape[1])
        products = [[self._empty(shape) for _ in dense_weights] for _ in in_group]
        for rows in self.blocks("Projecting"):
            with self.computing(rows):
                block = read(rows)
                x = self._tensor(block.dense).to(self.dtype)
                i = j = 0
                for common, rare, product in zip(dense, sparse_, products, strict=True):
                    here, there = slice(i, i := i + len(common)), slice(j, j := j + len(rare))
                    entries, values, offsets = [self._tensor(part) for part in block.nonzeros(there.start, there.stop)]
                    entries, values = sparse_genes[there][entries.long()], values.to(self.dtype)
                    for target, dense_weight, weight in zip(product, dense_weights, weights, strict=True):
                        part = x[:, here] @ dense_weight[here]
                        if len(rare):
                            part += F.embedding_bag(entries, weight, offsets, per_sample_weights=values, mode="sum")
                        target[rows] = part
        self._centers = [product[0] for product in products]
        self._neighborhoods = [product[-1] for product in products]
        if self.canonical.gain is not None:
            self._totals = [product[-1][:, -1:].contiguous() for product in products]

    def _weights(self) -> list[Tensor]:
        """First-layer weights of centre and neighbours, once if they are the same; one gene's lie side by side.

        With a gain in the decoder a column of ones comes last; its product is the total that the depth of a
        spot is the ratio of.
        """
        model = self.canonical
        weights = [model.center] if model.shares_weights else [model.center, model.neighbors]
        if model.gain is not None:
            return [F.pad(weight, (0, 1), value=1.0) for weight in weights]
        return [weight.contiguous() for weight in weights]

    def _empty(self, shape: tuple[int, int]) -> Tensor:
        """Room for a product: on the device, if half of what is free there is enough, else on the host."""
        if self.device.type == "cpu" or (
            self.device.type == "cuda" and 8 * shape[0] * shape[1] > torch.cuda.mem_get_info(self.device)[0]
        ):
            return torch.from_numpy(self.scratch.empty(shape))
        return torch.empty(shape, device=self.device)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    @torch.inference_mode()
    def states(
        self, rows: slice, where: Where | None = None, masks: Sequence[Collection[int]] | None = None
    ) -> Iterator[State]:
        """First layer of some spots.

        Yields it once with nothing masked (``where=None``), or once per mask, masked in the ``"center"`` or
        ``"everywhere"``. A mask joins some masks of :meth:`project`; by default each of them is one by itself.
        """
        model = self.canonical
        n_groups = len(self._centers)
        degree = (self._indptr[rows.start + 1 : rows.stop + 1] - self._indptr[rows]).unsqueeze(1)
        neighbors_of_all = (
            None if where == "everywhere" else self._aggregate(rows, self._neighborhoods, range(n_groups))
        )
        if where is None:
            masks = [()]
        elif masks is None:
            masks = [(group,) for group in range(n_groups - 1)]
        for mask in masks:
            kept = [group for group in range(n_groups) if group not in mask]
            center = _sum([self._centers[group][rows].to(self.device) for group in kept])
            neighbors = neighbors_of_all
            if neighbors is None:
                neighbors = self._aggregate(rows, self._neighborhoods, kept)
            totals = None
            if model.gain is not None:
                totals = (center[:, -1:], self._aggregate(rows, self._totals, kept) / degree.clamp(min=1))
            hidden = model.first_layer(center[:, : model.width], neighbors[:, : model.width], degree)
            yield State(rows, hidden.to(self.dtype), totals, degree.to(hidden.dtype), where)

    def _aggregate(self, rows: slice, values: list[Tensor], groups: Sequence[int]) -> Tensor:
        """Sum over the neighbours of values that lie apart by group, over some groups."""
        first, last = self._indptr[rows.start], self._indptr[rows.stop]
        neighbors, offsets = self._neighbors[first:last], self._indptr[rows] - first
        sums = []
        for table in (values[group] for group in groups):
            found = F.embedding_bag(neighbors.to(table.device), table, offsets.to(table.device), mode="sum")
            sums.append(found.to(self.device))
        return _sum(sums)

    @torch.inference_mode()
    def embed(self, state: State) -> NDArray[np.float32]:
        """Embedding, shape (spots, embedding_dim)."""
        return _to_numpy(self.canonical.embed(state.hidden))

    def target(self, genes: NDArray[np.int64], *, read: bool = False) -> Target:
        """Prepare genes (vocabulary indices) for :meth:`predict`; those of a mask must all be of that mask.

        With ``read`` their counts are there even if the decoder doesn't need them.
        """
        read = read or self.canonical.gain is not None
        log_counts = self.counts.log1p(genes, self.batch_size, self.scratch) if read else None
        return Target(self._tensor(genes), log_counts)

    @torch.inference_mode()
    def predict(self, state: State, target: Target) -> NDArray[np.float32]:
        """Predicted log1p counts, shape (spots, genes of the target)."""
        scaled_mean = None
        if self.canonical.gain is not None and target.log_counts is not None and state.where != "everywhere":
            scaled_mean = (state.depth * self.neighbor_mean(state.rows, target.log_counts)).to(self.dtype)
        return _to_numpy(self.canonical.decode(self.canonical.embed(state.hidden), target.genes, scaled_mean))

    def neighbor_mean(self, rows: slice | NDArray[np.int64], values: sparse.csr_matrix) -> Tensor:
        """Mean over the neighbours of values of every spot, shape (rows, columns of the values)."""
        neighbors = self._graph[rows]
        mean = (neighbors @ values).toarray() / np.maximum(np.diff(neighbors.indptr), 1)[:, None]
        return self._tensor(mean.astype(np.float32))


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Sum that leaves its terms as they are."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def _to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    """float32 array on the host."""
    return tensor.float().cpu().numpy()


def prepare(
    adata: AnnData,
    model: str | Path | Model,
    *,
    layer: str | None,
    connectivity_key: str,
    device: str,
    batch_size: int | None,
    dtype: Precision,
) -> tuple[Engine, Model, Alignment, bool]:
    """Check everything a tool reads and build the engine on it; also the model, the genes, whether these are new."""
    rows = BATCH_SIZE if batch_size is None else check_whole("batch_size", batch_size, 1)
    if dtype not in get_args(Precision):
        raise ValueError(f"dtype={dtype!r} is none of {', '.join(map(repr, get_args(Precision)))}.")
    found_device = get_device(device)
    if dtype == "tf32" and found_device.type != "cuda":
        raise ValueError(f"dtype='tf32' is a mode of CUDA GPUs, and this runs on {found_device}; use 'float32'.")
    graph = get_graph(adata, connectivity_key)
    loaded = models.load(model)
    _check_degrees(graph, loaded, connectivity_key)
    alignment, is_new = get_alignment(adata, loaded.vocabulary)
    engine = Engine(
        loaded.canonical(),
        Counts(adata, alignment.index, layer),
        graph,
        device=found_device,
        dtype=dtype,
        batch_size=rows,
    )
    return engine, loaded, alignment, is_new


def _check_degrees(graph: sparse.csr_matrix, model: Model, connectivity_key: str) -> None:
    degree = np.diff(graph.indptr)
    if len(degree) and (degree != model.n_spots - 1).any():
        logger.warning(
            "The graph %r has %d to %d neighbours a spot; %s was trained with %d. If spots were removed since, run "
            "sg.pp.neighborhood_graph again.",
            connectivity_key,
            degree.min(),
            degree.max(),
            model.name,
            model.n_spots - 1,
        )
