"""A screen: pairs of genes on one slide, from what is clamped to where each pair stands among controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sagefm._slides import Libraries
from sagefm._types import Floats, Floats32, Ints
from sagefm.tl._perturb.clamp import Expression, gene_statistics
from sagefm.tl._perturb.controls import MAX_HIDDEN, MIN_CONTROLS, ControlComparison, compare, match_controls
from sagefm.tl._perturb.observed import ObservedMoments, observed_moments
from sagefm.tl._perturb.plan import (
    CONSTANT,
    OK,
    Clamp,
    Genes,
    Pair,
    clamps_of_controls,
    clamps_of_pairs,
    clamps_with_controls,
    matched,
)
from sagefm.tl._perturb.responses import Responder, ResponseCounts

if TYPE_CHECKING:
    from sagefm.tl._engine import Engine

TARGETS, BOTH = (0,), (0, 1)  # sets of the projection: targets, and controls beside them


class Screen:
    """Some pairs on one slide.

    Parameters
    ----------
    engine
        Model and slide.
    pairs
        As asked for, duplicates and all; only those that can be run are.
    measured
        Vocabulary indices of the genes that the slide has.
    n_levels
        Levels of a clamp, from the lowest to the highest count seen.
    to_unclamped
        Whether the highest level is compared with the neighbors as they are, not with the lowest level.
    alone
        Whether every pair hides its own target alone.
    n_controls, n_control_sources
        Matched genes for a target, and for a source.
    """

    def __init__(
        self,
        engine: Engine,
        pairs: Sequence[Pair],
        measured: Ints,
        *,
        n_levels: int = 2,
        to_unclamped: bool = False,
        alone: bool = False,
        n_controls: int = 0,
        n_control_sources: int = 0,
    ) -> None:
        self._engine, self._measured = engine, measured
        self.n_levels, self._to_unclamped, self._alone = n_levels, to_unclamped, alone
        self.statistics = gene_statistics(engine)
        varies = self.statistics.high > self.statistics.low
        self.asked = [
            replace(pair, status=CONSTANT) if pair.status == OK and not varies[list(pair.source_genes)].any() else pair
            for pair in pairs
        ]
        distinct: dict[tuple[Genes, Genes], Pair] = {}
        for pair in self.asked:
            if pair.status == OK:
                distinct.setdefault((pair.source_genes, pair.target_genes), pair)
        self.pairs = list(distinct.values())
        """Those that can be run, each once, under the first of its names."""
        number = {key: i for i, key in enumerate(distinct)}
        self.position = np.array([number.get((p.source_genes, p.target_genes), -1) for p in self.asked])
        """Number in ``pairs`` of every pair asked for, -1 where it can't be run."""
        self._n = n_controls, n_control_sources
        self._controls, self._control_sources = self._match(n_controls, n_control_sources)

    @property
    def columns(self) -> dict[str, int]:
        """Every name of a pair that is run, and which it is: one pair may go by several names."""
        return {pair.name: int(i) for pair, i in zip(self.asked, self.position, strict=True) if i >= 0}

    @property
    def genes(self) -> set[int]:
        """Genes of all pairs that can be run."""
        return {gene for pair in self.pairs for gene in pair.source_genes + pair.target_genes}

    @property
    def _targets(self) -> Ints:
        return np.unique(np.array([gene for pair in self.pairs for gene in pair.target_genes], dtype=np.int64))

    @property
    def room(self) -> int:
        """Genes that may be hidden beside the targets; the model has met no more in training."""
        return int(MAX_HIDDEN * len(self._measured)) - len(self._targets)

    def _match(self, n_targets: int, n_sources: int) -> tuple[dict[int, Ints], dict[int, Ints]]:
        """Controls of every target and of every source."""
        sources = sorted({gene for pair in self.pairs for gene in pair.source_genes})
        wanted = (
            (n_targets, self._targets.tolist(), max(self.room, n_targets), "n_controls"),
            (n_sources, sources, 5 * n_sources, "n_control_ligands"),
        )
        found = [
            match_controls(genes, self.statistics, self._measured, self.genes, n, most, argument)
            if self.pairs and n
            else {}
            for n, genes, most, argument in wanted
        ]
        return found[0], found[1]

    # What is run.

    def open(self, controls: Ints, sources: Ints) -> Responder:
        """Project the slide, so that targets and controls can be hidden."""
        genes = np.array(sorted(self.genes), dtype=np.int64)
        expression = Expression(self._engine, np.concatenate([genes, controls, sources]))
        return Responder(self._engine.project([self._targets, controls]), expression, self._to_unclamped)

    @cached_property
    def _responder(self) -> Responder:
        return self.open(_pool(self._controls), _pool(self._control_sources))

    def run(
        self, libraries: Libraries, *, store_spots: bool = False, responder: Responder | None = None
    ) -> ResponseCounts:
        """Clamp every source and count what every target does; output i is pair i."""
        n_doses = self.n_levels if self.n_levels > 2 else 0
        clamps = clamps_of_pairs(self.pairs, self.levels if n_doses else self.extremes, alone=self._alone)
        return (responder or self._responder).count(
            clamps,
            () if self._alone else TARGETS,
            libraries,
            len(self.pairs),
            "Perturbing",
            n_doses=n_doses,
            store_spots=store_spots,
        )

    def controls(self, n_spots: int | None, rng: np.random.Generator) -> ControlComparison:
        """Read control genes in a second run that hides them beside the targets: where each pair stands among them."""
        n, n_obs = self._n[0], self._engine.counts.n_obs
        spots = None if n_spots is None or n_spots >= n_obs else np.sort(rng.choice(n_obs, n_spots, replace=False))
        clamps = clamps_with_controls(self.pairs, self.extremes, self._controls, n)
        sd = [
            [self._sd_of[genes] for genes in (pair.target_genes, *matched(self._controls, pair.target_genes))]
            for pair in self.pairs
        ]
        return self._compare(clamps, BOTH, n, np.array(sd).reshape(-1, n + 1), "Controls", spots)

    def control_sources(self) -> ControlComparison:
        """Clamp control genes instead: where each pair stands among other sources."""
        n = self._n[1]
        clamps = clamps_of_controls(self.pairs, self.extremes, self._control_sources, n)
        sd = np.array([self._sd_of[pair.target_genes] for pair in self.pairs])[:, None]
        return self._compare(clamps, TARGETS, n, sd, "Control sources")

    def shuffles(self, n_shuffles: int, libraries: Libraries, rng: np.random.Generator) -> Floats:
        """Mean change of every pair while spots have the neighbors of others, shape (shuffles, pairs)."""
        means, graph = [], self._engine.graph
        for _ in range(n_shuffles):
            order = np.arange(len(libraries.codes))
            for _, members in libraries.rows():
                order[members] = rng.permutation(members)
            responder = self._responder.with_graph(graph[order])
            means.append(self.run(self._together, responder=responder).mean_change)
        return np.array(means).reshape(n_shuffles, len(self.pairs))

    def effects(self, readouts: Mapping[Genes, Sequence[Genes]]) -> list[Floats]:
        """E of each source on some genes, all of which are hidden beside the targets."""
        ends = np.cumsum([0, *map(len, readouts.values())])
        clamps = [
            Clamp(source, self.extremes(source), read, np.arange(start, start + len(read)))
            for (source, read), start in zip(readouts.items(), ends[:-1], strict=True)
        ]
        every = np.array([gene for read in readouts.values() for genes in read for gene in genes], dtype=np.int64)
        responder = self.open(np.setdiff1d(every, self._targets), np.empty(0, dtype=np.int64))
        counts = responder.count(clamps, BOTH, self._together, int(ends[-1]), "Controls")
        return np.split(counts.effect, ends[1:-1])

    def observed(self, libraries: Libraries) -> ObservedMoments:
        """What was measured of the pairs."""
        return observed_moments(self._responder, self.pairs, libraries)

    # How.

    @property
    def _together(self) -> Libraries:
        return Libraries(["all"], np.zeros(self._engine.counts.n_obs, dtype=np.int64))

    def levels(self, genes: Genes) -> Floats32:
        """Levels from the lowest to the highest count seen, shape (levels, genes)."""
        low, high = self.statistics.low[list(genes)], self.statistics.high[list(genes)]
        return np.linspace(low, high, self.n_levels, dtype=np.float32)

    def extremes(self, genes: Genes) -> Floats32:
        """Levels that a contrast takes: the highest, and the lowest where it is compared with that."""
        levels = self.levels(genes)
        return levels[-1:] if self._to_unclamped else levels[[0, -1]]

    def _compare(
        self, clamps: list[Clamp], masks: tuple[int, ...], n: int, sd: Floats, desc: str, spots: Ints | None = None
    ) -> ControlComparison:
        """Rank each pair's mean change among those of its n controls, in standard deviations of what is read."""
        n_pairs = len(self.pairs)
        counts = self._responder.count(clamps, masks, self._together, n_pairs * (n + 1), desc, spots=spots)
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic = counts.mean_change.reshape(n_pairs, n + 1) / sd
        # Controls that don't vary have no statistic.
        finite = np.isfinite(statistic)
        known = finite[:, 0] & (finite[:, 1:].sum(axis=1) >= MIN_CONTROLS)
        statistic = np.where(finite, statistic, np.nan)
        comparison = ControlComparison.missing(n_pairs)
        if known.any():
            mean = self.statistics.mean
            expression = np.array([mean[list(pair.target_genes)].min() for pair in self.pairs], dtype=float)
            comparison.fill(known, compare(statistic[known, 0], statistic[known, 1:], expression[known]))
        return comparison

    @cached_property
    def _sd_of(self) -> dict[Genes, float]:
        """Standard deviation of every target and control, complexes as their scarcest subunit."""
        targets = {pair.target_genes for pair in self.pairs}
        wanted = targets | {genes for own in targets if self._controls for genes in matched(self._controls, own)}
        complexes = [genes for genes in wanted if len(genes) > 1]
        total, squares = np.zeros(len(complexes)), np.zeros(len(complexes))
        low, high = np.full(len(complexes), np.inf), np.zeros(len(complexes))
        n = self._engine.counts.n_obs
        for rows in self._engine.compute.blocks(n) if complexes else ():
            values = self._responder.expression.of(complexes, rows)
            total += values.sum(axis=0, dtype=np.float64)
            squares += np.einsum("ij,ij->j", values, values, dtype=np.float64)
            low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
        variance = np.where(high > low, np.maximum(squares / n - (total / n) ** 2, 0), 0)  # not rounding of a constant
        singles = {genes: float(self.statistics.sd[genes[0]]) for genes in wanted if len(genes) == 1}
        return singles | dict(zip(complexes, np.sqrt(variance).tolist(), strict=True))


def _pool(controls: dict[int, Ints]) -> Ints:
    """All controls, each once."""
    return np.unique(np.concatenate([[], *controls.values()]).astype(np.int64))
