"""Predictions while genes are clamped in all neighbors of a spot: the arithmetic that every perturbation shares.

The first layer is ``h = c @ Wc + n @ Wn + b`` with c the center's and n the neighbors' mean log1p counts. So clamping
gene l to v in all neighbors adds ``(v - n_l) * Wn[l]`` to h, and hiding gene g in the center takes away
``c_g * Wc[g]``. Both are edits of rank one: a perturbation costs the narrow layers after the first and the decoder's
columns that are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from sagefm._types import Array, Floats, Floats32, Ints
from sagefm.tl._compute import Rows
from sagefm.tl._projection import State, Where

if TYPE_CHECKING:
    from sagefm.tl._engine import Engine, Projection
    from sagefm.tl._perturb.plan import Clamp, Genes

T = TypeVar("T", bound=np.floating)

# Spots at a time: several levels of a clamp are predicted together.
BATCH_SPOTS = 1024


@dataclass(frozen=True)
class GeneStatistics:
    """What each gene (vocabulary index) of a slide shows: log1p counts over all spots."""

    mean: Floats
    sd: Floats
    detection: Floats
    low: Floats32
    high: Floats32


def gene_statistics(engine: Engine) -> GeneStatistics:
    """Read the slide once and add up."""
    counts = engine.counts
    read = counts.reader(np.empty(0, dtype=np.int64), counts.genes)
    total, squares, found = (np.zeros(len(counts.genes)) for _ in range(3))
    low, high = np.full(len(counts.genes), np.inf, dtype=np.float32), np.zeros(len(counts.genes), dtype=np.float32)
    for rows in engine.compute.blocks(counts.n_obs):
        block = read(rows)
        shape = (len(block.indptr) - 1, len(counts.genes))
        part = sparse.csr_matrix((block.values, block.genes, block.indptr), shape)
        values = part.data.astype(np.float64)
        total += np.bincount(part.indices, values, len(total))
        squares += np.bincount(part.indices, values**2, len(total))
        found += np.bincount(part.indices[values > 0], minlength=len(total))
        low = np.minimum(low, part.min(axis=0).toarray().ravel())
        high = np.maximum(high, part.max(axis=0).toarray().ravel())
    mean = total / counts.n_obs
    # Rounding leaves the variance of a constant a little above zero.
    sd = np.where(high > low, np.sqrt(np.maximum(squares / counts.n_obs - mean**2, 0)), 0.0)

    def spread(column: NDArray[T]) -> NDArray[T]:
        every = np.zeros(engine.canonical.n_genes, dtype=column.dtype)
        every[counts.genes] = column
        return every

    return GeneStatistics(spread(mean), spread(sd), spread(found / counts.n_obs), spread(low), spread(high))


class Expression:
    """log1p counts of some genes (vocabulary indices) on the whole slide."""

    def __init__(self, engine: Engine, genes: Ints) -> None:
        self.genes = np.unique(genes)
        self.log_counts = engine.log_counts(self.genes)
        """Shape (spots, genes)."""

    def places(self, genes: Sequence[int] | Ints) -> Ints:
        """Columns of some genes."""
        return np.searchsorted(self.genes, np.asarray(genes, dtype=np.int64))

    def of(self, complexes: Sequence[Genes], rows: Rows) -> Floats32:
        """Genes and complexes, a complex as its scarcest subunit, shape (rows, complexes)."""
        width = max(map(len, complexes), default=1)
        padded = [genes + genes[:1] * (width - len(genes)) for genes in complexes]
        units = self.places(np.array(padded).reshape(-1, width))
        dense = self.log_counts[rows].toarray()
        low = dense[:, units[:, 0]]
        for unit in units.T[1:]:
            np.minimum(low, dense[:, unit], out=low)
        return low


@dataclass(frozen=True)
class Prediction:
    """Predicted log1p counts of a clamp's targets at some spots.

    Attributes
    ----------
    unclamped
        With nothing clamped, shape (spots, targets); may be NaN where it was not asked for.
    levels
        At every level of the clamp, shape (levels, spots, targets).
    """

    unclamped: Tensor
    levels: Tensor


class Clamping:
    """Predicts under clamps on a slide.

    Parameters
    ----------
    projection
        Model and slide.
    expression
        Counts of all genes that a clamp sets, reads or hides.
    clamps
        What to do.
    masks
        Sets of the projection that are hidden in the center throughout.
    unclamped
        Whether predictions with nothing clamped are wanted.
    """

    def __init__(
        self,
        projection: Projection,
        expression: Expression,
        clamps: Sequence[Clamp],
        masks: Collection[int],
        *,
        unclamped: bool = False,
    ) -> None:
        self._projection, self._masks, self._unclamped = projection, masks, unclamped
        self._model, self._device = projection.engine.canonical, projection.engine.compute.device
        self._clamped = np.unique([gene for clamp in clamps for gene in clamp.genes])
        self._targets = np.unique(np.concatenate([clamp.targets for clamp in clamps]))
        self._hidden = np.unique(np.array([gene for clamp in clamps for gene in clamp.hidden], dtype=np.int64))
        self._expression = expression
        # Only a decoder with a gain reads the targets in the neighbors.
        read = self._targets if self._model.gain is not None else self._targets[:0]
        self._columns = [self._tensor(expression.places(genes)) for genes in (self._clamped, read, self._hidden)]
        self._weights = self._model.neighbors[self._tensor(self._clamped)]
        self._hidden_weights = self._model.center[self._tensor(self._hidden)]
        self._read_out = self._model.read_out(self._tensor(self._targets))
        # Context of a spot, which clamps leave as it is.
        hiding = np.concatenate([self._hidden, *(projection.masks[mask] for mask in masks)])
        self._similar = projection.engine.target(self._targets, hiding).similar
        self._places = [self._place(clamp) for clamp in clamps]

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _place(self, clamp: Clamp) -> _Place:
        """Where the genes of a clamp are among those of all clamps."""
        return _Place(
            clamped=self._tensor(np.searchsorted(self._clamped, clamp.genes)),
            levels=self._tensor(np.asarray(clamp.levels, dtype=np.float32)),
            targets=self._tensor(np.searchsorted(self._targets, clamp.targets)),
            hidden=self._tensor(np.searchsorted(self._hidden, np.array(clamp.hidden, dtype=np.int64))),
            clamped_targets=[
                (int(np.flatnonzero(clamp.targets == gene)[0]), k)
                for k, gene in enumerate(clamp.genes)
                if gene in clamp.targets
            ],
        )

    @torch.inference_mode()
    def predict(self, rows: Rows) -> Iterator[Prediction]:
        """Predictions under all clamps in turn, at some spots."""
        block = self._read_block(rows)
        share = self._model.neighbors_share(block.state.degree)
        plain: Tensor | None = None
        for place in self._places:
            shift = share * (place.levels[:, None, :] - block.clamped[:, place.clamped])
            active = (shift != 0).any(2)  # a level that a spot's neighbors have already changes nothing
            if len(place.hidden):
                yield Prediction(*self._hiding(block, place, shift, active))
                continue
            if plain is None:  # shared by all clamps that hide nothing of their own
                state = block.state
                scaled = None if block.targets is None else state.depth * block.targets
                plain = self._read_out.predict(state.hidden.clone(), scaled_mean=scaled, similar=block.similar)
            level, spot = active.nonzero(as_tuple=True)
            unclamped = plain[:, place.targets]
            levels = unclamped.repeat(len(active), 1, 1)
            levels[active] = self._predict(block, block.state, place, spot, level, shift[active])
            yield Prediction(unclamped, levels)

    def _hiding(self, block: _Block, place: _Place, shift: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions with nothing clamped and at every level, with genes hidden for this clamp alone."""
        state = block.state
        x = block.hidden[:, place.hidden]
        edit = (self._model.center_share(state.degree) * x).to(state.hidden.dtype)
        hidden = state.hidden - edit @ self._hidden_weights[place.hidden]
        totals = state.totals
        if totals is not None:
            means = block.hidden_means[:, place.hidden]
            totals = (totals[0] - x.sum(1, keepdim=True), totals[1] - means.sum(1, keepdim=True))
        state = replace(state, hidden=hidden, totals=totals)
        level, spot = active.nonzero(as_tuple=True)
        # Nothing clamped: only where that is asked for, or a level leaves a spot as it is.
        wanted = active.new_ones(active.shape[1]) if self._unclamped else ~active.all(0)
        plain = wanted.nonzero().squeeze(1)
        output = self._predict(block, state, place, torch.cat([spot, plain]), level, shift[active])
        unclamped = output.new_full((active.shape[1], output.shape[1]), float("nan"))
        unclamped[plain] = output[len(spot) :]
        levels = unclamped.repeat(len(active), 1, 1)
        levels[active] = output[: len(spot)]
        return unclamped, levels

    def _predict(
        self, block: _Block, state: State, place: _Place, spot: Tensor, level: Tensor, shift: Tensor
    ) -> Tensor:
        """Targets at some spots: the first ones shifted to a level, the others as they are."""
        n_shifted = len(level)
        hidden = state.hidden[spot]
        hidden[:n_shifted].addmm_(shift.to(hidden.dtype), self._weights[place.clamped])
        scaled = None
        if block.targets is not None:
            depth = state.depth[spot]
            scaled = depth * block.targets[:, place.targets][spot]
            for target, gene in place.clamped_targets:  # the mean over the neighbors is what the gene is clamped to
                has_neighbors = state.degree[spot[:n_shifted], 0] > 0
                scaled[:n_shifted, target] = has_neighbors * depth[:n_shifted, 0] * place.levels[level, gene]
        similar = None if block.similar is None else block.similar[:, place.targets][spot]
        return self._read_out.predict(hidden, place.targets, scaled, similar)

    def _read_block(self, rows: Rows) -> _Block:
        where: Where | None = "center" if len(self._masks) else None
        clamped, targets, hidden = self._columns
        means = self._projection.neighbor_mean(rows, self._expression.log_counts)
        return _Block(
            state=self._projection.state(rows, where, self._masks),
            clamped=means[:, clamped],
            targets=means[:, targets] if self._model.gain is not None else None,
            similar=None if self._similar is None else self._tensor(self._similar[rows]),
            hidden=self._tensor(self._expression.log_counts[rows].toarray())[:, hidden],
            hidden_means=means[:, hidden],
        )


@dataclass(frozen=True)
class _Place:
    """A clamp's genes as columns of what is held for all clamps; ``clamped_targets``: (target, clamped gene)."""

    clamped: Tensor
    levels: Tensor
    targets: Tensor
    hidden: Tensor
    clamped_targets: list[tuple[int, int]]


@dataclass(frozen=True)
class _Block:
    """Some spots: first layer, means over neighbors and similar spots, counts in the center; (spots, genes) each."""

    state: State
    clamped: Tensor
    targets: Tensor | None
    similar: Tensor | None
    hidden: Tensor
    hidden_means: Tensor


def combine_subunits(change: Tensor) -> Tensor:
    """Change of a complex: its subunit's with the smallest absolute change, 0 where signs differ.

    Shape (..., subunits) to (...).
    """
    if change.shape[-1] == 1:
        return change[..., 0]
    smallest = change.gather(-1, change.abs().argmin(-1, keepdim=True))[..., 0]
    agree = (change > 0).all(-1) | (change < 0).all(-1)
    return torch.where(agree, smallest, 0.0)
