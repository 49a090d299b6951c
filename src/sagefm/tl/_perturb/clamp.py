"""Predictions while genes are clamped in all neighbours of a spot: the arithmetic that every perturbation shares.

Clamping gene l to v in the neighbours adds ``(v - n_il) * Wn[l]`` to the first layer, and masking gene g in the centre
takes away ``x_ig * Wc[g]``; so a perturbation costs the trunk and the decoder's columns that are read, no more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from sagefm.tl._engine import Engine, State, Where

if TYPE_CHECKING:
    from sagefm.pp._counts import Counts

T = TypeVar("T", bound=np.floating)

# Spots at a time.
BATCH_SPOTS = 1024


@dataclass(frozen=True)
class Statistics:
    """What each gene (vocabulary index) of a slide shows: log1p counts over all spots."""

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    detection: NDArray[np.float64]
    low: NDArray[np.float32]
    high: NDArray[np.float32]


def gene_statistics(counts: Counts, n_genes: int, blocks: Iterable[slice]) -> Statistics:
    """Read the slide once and add up."""
    read = counts.reader(np.empty(0, dtype=np.int64), counts.genes)
    total, squares, found = (np.zeros(len(counts.genes)) for _ in range(3))
    low, high = np.full(len(counts.genes), np.inf, dtype=np.float32), np.zeros(len(counts.genes), dtype=np.float32)
    for rows in blocks:
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
    # What is left of a constant by rounding is no variance.
    sd = np.where(high > low, np.sqrt(np.maximum(squares / counts.n_obs - mean**2, 0)), 0.0)

    def spread(column: NDArray[T]) -> NDArray[T]:
        every = np.zeros(n_genes, dtype=column.dtype)
        every[counts.genes] = column
        return every

    return Statistics(spread(mean), spread(sd), spread(found / counts.n_obs), spread(low), spread(high))


class Expression:
    """log1p counts of some genes (vocabulary indices) on the whole slide."""

    def __init__(self, engine: Engine, genes: Sequence[int] | NDArray[np.int64]) -> None:
        self.genes = np.unique(np.asarray(genes, dtype=np.int64))
        self.log_counts = engine.counts.log1p(self.genes, engine.batch_size, engine.scratch)
        """Shape (spots, genes)."""

    def places(self, genes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Columns of some genes."""
        return np.searchsorted(self.genes, np.asarray(genes, dtype=np.int64))

    def sides(self, sides: Sequence[tuple[int, ...]], rows: slice) -> NDArray[np.float32]:
        """Genes and complexes, a complex as its scarcest subunit, shape (rows, sides)."""
        width = max(map(len, sides), default=1)
        units = self.places(np.array([side + side[:1] * (width - len(side)) for side in sides]).reshape(-1, width))
        dense = self.log_counts[rows].toarray()
        low = dense[:, units[:, 0]]
        for unit in units.T[1:]:
            np.minimum(low, dense[:, unit], out=low)
        return low


@dataclass(frozen=True)
class Job:
    """Genes to clamp and genes to read meanwhile, as vocabulary indices.

    Attributes
    ----------
    genes
        Clamped together in all neighbours.
    levels
        log1p counts that they are set to, shape (levels, genes).
    targets
        Genes to predict.
    masked
        Genes masked in the centre beside those that are for all jobs.
    """

    genes: tuple[int, ...]
    levels: NDArray[np.float32]
    targets: NDArray[np.int64]
    masked: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Predicted log1p counts of a job's targets at some spots.

    Attributes
    ----------
    job
        Number of the job.
    spots
        Which spots.
    observed
        With nothing clamped, shape (spots, targets); may be NaN where it was not asked for.
    levels
        Shape (levels, spots, targets).
    """

    job: int
    spots: NDArray[np.int64]
    observed: Tensor
    levels: Tensor


class Clamping:
    """Runs jobs on a slide.

    Parameters
    ----------
    engine
        After :meth:`Engine.project`.
    expression
        Counts of all genes that are clamped, read or masked by a job.
    jobs
        What to do.
    masks
        Masks of :meth:`Engine.project` that hold in the centre throughout.
    observed
        Whether predictions with nothing clamped are wanted.
    """

    def __init__(
        self,
        engine: Engine,
        expression: Expression,
        jobs: Sequence[Job],
        masks: Collection[int],
        *,
        observed: bool = False,
    ) -> None:
        self.engine, self.jobs, self.masks, self._observed = engine, jobs, masks, observed
        model = engine.canonical
        self._clamped = np.unique([gene for job in jobs for gene in job.genes])
        self._targets = np.unique(np.concatenate([job.targets for job in jobs]))
        self._masked = np.unique(np.array([gene for job in jobs for gene in job.masked], dtype=np.int64))
        self._expression = expression
        # Only a decoder with a gain reads the targets.
        sets = (self._clamped, self._targets if model.gain is not None else self._targets[:0], self._masked)
        self._columns = [self._tensor(expression.places(genes)) for genes in sets]
        self._weights = model.neighbors[self._tensor(self._clamped)]
        self._masked_weights = model.center[self._tensor(self._masked)]
        self._read_out = model.read_out(self._tensor(self._targets))
        self._places = [self._place(job) for job in jobs]

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.engine.device)

    def _place(self, job: Job) -> _Place:
        """Where the genes of a job are among those of all jobs."""
        read_itself = [
            (int(np.flatnonzero(job.targets == g)[0]), k) for k, g in enumerate(job.genes) if g in job.targets
        ]
        return _Place(
            clamped=self._tensor(np.searchsorted(self._clamped, job.genes)),
            levels=self._tensor(np.asarray(job.levels, dtype=np.float32)),
            targets=self._tensor(np.searchsorted(self._targets, job.targets)),
            masked=self._tensor(np.searchsorted(self._masked, np.array(job.masked, dtype=np.int64))),
            read_itself=read_itself,
        )

    @torch.inference_mode()
    def run(self, rows: slice, picked: NDArray[np.int64] | None = None, first: int = 0) -> Iterator[Answer]:
        """All jobs from the first on, on a block of spots or on those of it that are picked (counted within it)."""
        model = self.engine.canonical
        block = self._read_block(rows, picked)
        spots = np.arange(rows.start, rows.stop)[slice(None) if picked is None else picked]
        share = model.neighbors_share(block.state.degree)
        unmasked: Tensor | None = None
        for number, place in enumerate(self._places[first:], first):
            shift = share * (place.levels[:, None, :] - block.clamped[:, place.clamped])
            active = (shift != 0).any(2)
            if len(place.masked):
                yield Answer(number, spots, *self._masking(block, place, shift, active))
                continue
            if unmasked is None:  # shared by all jobs without masks of their own
                state = block.state
                scaled = None if block.targets is None else state.depth * block.targets
                unmasked = self._read_out.predict(state.hidden.clone(), scaled_mean=scaled)
            level, spot = active.nonzero(as_tuple=True)
            observed = unmasked[:, place.targets]
            levels = observed.repeat(len(active), 1, 1)
            levels[active] = self._predict(block, block.state, place, spot, level, shift[active])
            yield Answer(number, spots, observed, levels)

    def _masking(self, block: _Block, place: _Place, shift: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions with nothing clamped and at every level, with genes masked for this job alone."""
        model, state = self.engine.canonical, block.state
        x = block.masked[:, place.masked]
        edit = (model.center_share(state.degree) * x).to(state.hidden.dtype)
        hidden = state.hidden - edit @ self._masked_weights[place.masked]
        totals = state.totals
        if totals is not None:
            means = block.masked_means[:, place.masked]
            totals = (totals[0] - x.sum(1, keepdim=True), totals[1] - means.sum(1, keepdim=True))
        state = replace(state, hidden=hidden, totals=totals)
        level, spot = active.nonzero(as_tuple=True)
        # Nothing clamped: only where that is asked for, or a level leaves a spot as it is.
        wanted = active.new_ones(active.shape[1]) if self._observed else ~active.all(0)
        plain = wanted.nonzero().squeeze(1)
        output = self._predict(block, state, place, torch.cat([spot, plain]), level, shift[active])
        observed = output.new_full((active.shape[1], output.shape[1]), float("nan"))
        observed[plain] = output[len(spot) :]
        levels = observed.repeat(len(active), 1, 1)
        levels[active] = output[: len(spot)]
        return observed, levels

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
            for target, gene in place.read_itself:  # its own mean over the neighbours is what it is clamped to
                has_neighbors = state.degree[spot[:n_shifted], 0] > 0
                scaled[:n_shifted, target] = has_neighbors * depth[:n_shifted, 0] * place.levels[level, gene]
        return self._read_out.predict(hidden, place.targets, scaled)

    def _read_block(self, rows: slice, picked: NDArray[np.int64] | None) -> _Block:
        engine = self.engine
        where: Where | None = "center" if len(self.masks) else None
        clamped, targets, masked = self._columns
        state = next(engine.states(rows, where, [self.masks]))
        spots: slice | NDArray[np.int64] = rows
        if picked is not None:
            # Few spots of many rows: only theirs are made dense.
            spots, here = rows.start + picked, self._tensor(picked)
            totals = None if state.totals is None else (state.totals[0][here], state.totals[1][here])
            state = replace(state, hidden=state.hidden[here], totals=totals, degree=state.degree[here])
        means = engine.neighbor_mean(spots, self._expression.log_counts)
        return _Block(
            state=state,
            clamped=means[:, clamped],
            targets=means[:, targets] if engine.canonical.gain is not None else None,
            masked=self._tensor(self._expression.log_counts[spots].toarray())[:, masked],
            masked_means=means[:, masked],
        )


@dataclass(frozen=True)
class _Place:
    """A job's genes as columns of what is held for all jobs."""

    clamped: Tensor
    levels: Tensor
    targets: Tensor
    masked: Tensor
    read_itself: list[tuple[int, int]]


@dataclass(frozen=True)
class _Block:
    """Some spots: first layer, means over the neighbours, and counts in the centre; shape (spots, genes) each."""

    state: State
    clamped: Tensor
    targets: Tensor | None
    masked: Tensor
    masked_means: Tensor


def combine_subunits(change: Tensor) -> Tensor:
    """Change of a complex: its subunit's with the smallest absolute change, 0 where signs differ.

    Shape (..., subunits) to (...).
    """
    if change.shape[-1] == 1:
        return change[..., 0]
    smallest = change.gather(-1, change.abs().argmin(-1, keepdim=True))[..., 0]
    agree = (change > 0).all(-1) | (change < 0).all(-1)
    return torch.where(agree, smallest, 0.0)
