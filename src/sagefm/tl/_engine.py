"""The one inference loop: project first, aggregate after.

Neighbourhood means are linear, so ``mean(x) @ W`` is ``mean(x @ W)``: each spot's counts meet the big first
matrix once, and its 15 neighbourhoods reuse the narrow result. Counts are dense one row block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from sagefm import _keys, models
from sagefm._settings import logger
from sagefm._utils import get_device, progress
from sagefm.pp._counts import Counts
from sagefm.pp._genes import Alignment, get_alignment

if TYPE_CHECKING:
    from anndata import AnnData

    from sagefm.models import Model
    from sagefm.models._canonical import Canonical

Precision = Literal["float32", "bfloat16"]
Where = Literal["center", "everywhere"]

BATCH_SIZE = 1024
# Genes found in fewer spots than this are added up from their non-zeros, which is then faster than the dense
# product (break-even at about 7 % on two CPU cores). A gene that is zero on the whole slide costs nothing.
MIN_DENSITY = 0.05


class Engine:
    """One model on one slide.

    Call :meth:`project` once, then read :meth:`hidden` per row block, and :meth:`embed` and :meth:`decode`
    what comes.

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
        dtype: torch.dtype = torch.float32,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.canonical = canonical.to(device, dtype)
        self.counts = counts
        self.device = device
        self.dtype = dtype
        self.batch_size = batch_size
        self._neighbors = self._tensor(graph.indices.astype(np.int64))
        self._indptr = self._tensor(graph.indptr.astype(np.int64))
        self._projections: list[tuple[Tensor, Tensor]] = []

    def blocks(self, desc: str) -> Iterator[slice]:
        """Row blocks, with a progress bar."""
        n = self.counts.n_obs
        starts = range(0, n, self.batch_size)
        for start in progress(starts, desc, total=len(starts)):
            yield slice(start, min(start + self.batch_size, n))

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
        weights = [self.canonical.center]
        if not self.canonical.shares_weights:
            weights.append(self.canonical.neighbors)
        dense_weights = [weight[self._tensor(np.concatenate(dense))] for weight in weights]
        sparse_weights = [weight[self._tensor(np.concatenate(sparse_))] for weight in weights]
        # One product per group and weight; a group masked is a group left out of the sum, exactly.
        n, width = self.counts.n_obs, self.canonical.width
        products = [[torch.empty(n, width, device=self.device) for _ in weights] for _ in in_group]
        for rows in self.blocks("Projecting"):
            block = read(rows)
            x = self._tensor(block.dense).to(self.dtype)
            i = j = 0
            for common, rare, product in zip(dense, sparse_, products, strict=True):
                here, there = slice(i, i := i + len(common)), slice(j, j := j + len(rare))
                entries, values, offsets = [self._tensor(part) for part in block.nonzeros(there.start, there.stop)]
                entries, values = entries.long(), values.to(self.dtype)
                for target, weight, rare_weight in zip(product, dense_weights, sparse_weights, strict=True):
                    part = x[:, here] @ weight[here]
                    if len(rare):
                        part += F.embedding_bag(
                            entries, rare_weight[there], offsets, per_sample_weights=values, mode="sum"
                        )
                    target[rows] = part
        self._projections = [(product[0], product[-1]) for product in products]

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    @torch.inference_mode()
    def hidden(self, rows: slice, where: Where | None = None) -> Iterator[Tensor]:
        """First layer before its activation, shape (rows, width).

        Yields it once with nothing masked (``where=None``), or once per mask of :meth:`project`, masked in
        the ``"center"`` or ``"everywhere"``.
        """
        n_masks = len(self._projections) - 1
        degree = (self._indptr[rows.start + 1 : rows.stop + 1] - self._indptr[rows]).unsqueeze(1)
        every = range(n_masks + 1)
        neighbors_of_all = None if where == "everywhere" else self._aggregate(rows, every)
        for mask in [None] if where is None else range(n_masks):
            kept = [group for group in every if group != mask]
            center = sum_of([self._projections[group][0][rows] for group in kept])
            neighbors = self._aggregate(rows, kept) if neighbors_of_all is None else neighbors_of_all
            yield self.canonical.first_layer(center, neighbors, degree).to(self.dtype)

    def _aggregate(self, rows: slice, groups: Sequence[int]) -> Tensor:
        """Sum of the neighbours' projections over some groups."""
        first, last = self._indptr[rows.start], self._indptr[rows.stop]
        neighbors, offsets = self._neighbors[first:last], self._indptr[rows] - first
        return sum_of(
            [F.embedding_bag(neighbors, self._projections[group][1], offsets, mode="sum") for group in groups]
        )

    @torch.inference_mode()
    def embed(self, hidden: Tensor) -> Tensor:
        """Embedding from the first layer."""
        return self.canonical.embed(hidden)

    @torch.inference_mode()
    def decode(self, embedding: Tensor, genes: Tensor) -> NDArray[np.float32]:
        """Predicted log1p counts of some genes (vocabulary indices)."""
        return to_numpy(self.canonical.decode(embedding, genes))


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Sum that leaves its terms as they are."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def to_numpy(tensor: Tensor) -> NDArray[np.float32]:
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
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size != int(batch_size) or batch_size < 1):
        raise ValueError(f"batch_size={batch_size!r} has to be a positive whole number.")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r} is none of 'float32', 'bfloat16'.")
    found_device = get_device(device)
    graph = _get_graph(adata, connectivity_key)
    loaded = models.load(model)
    _check_degrees(graph, loaded, connectivity_key)
    alignment, is_new = get_alignment(adata, loaded.vocabulary)
    engine = Engine(
        loaded.canonical(),
        Counts(adata, alignment.index, layer),
        graph,
        device=found_device,
        dtype=getattr(torch, dtype),
        batch_size=int(batch_size or BATCH_SIZE),
    )
    return engine, loaded, alignment, is_new


def _get_graph(adata: AnnData, connectivity_key: str) -> sparse.csr_matrix:
    """Neighbours of every spot from ``obsp``: its pattern alone, without the diagonal."""
    key = _keys.connectivities(connectivity_key)
    if key not in adata.obsp:
        raise KeyError(f"{key!r} not in adata.obsp. Run sg.pp.neighborhood_graph(adata) first.")
    graph = sparse.csr_matrix(adata.obsp[key], copy=True)
    graph.sum_duplicates()
    graph.setdiag(0)
    graph.eliminate_zeros()
    return graph


def _check_degrees(graph: sparse.csr_matrix, model: Model, connectivity_key: str) -> None:
    degree = np.diff(graph.indptr)
    if len(degree) and (degree != model.n_spots - 1).any():
        logger.warning(
            "The graph %r has %d to %d neighbours a spot; %s was trained with %d.",
            connectivity_key,
            degree.min(),
            degree.max(),
            model.name,
            model.n_spots - 1,
        )
