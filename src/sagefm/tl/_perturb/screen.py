"""A screen: pairs of genes on one slide, from what is clamped to where each pair stands among controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from sagefm._slides import Libraries
from sagefm._types import Floats, Floats32, Ints
from sagefm.tl._perturb.clamp import Expression, gene_statistics
from sagefm.tl._perturb.controls import MAX_HIDDEN, draw_controls, match_controls
from sagefm.tl._perturb.grid import Grid
from sagefm.tl._perturb.observed import ObservedMoments, observed_moments
from sagefm.tl._perturb.plan import (
    CONSTANT,
    OK,
    Genes,
    Pair,
    clamps_of_pairs,
    clamps_of_readouts,
    matched,
)
from sagefm.tl._perturb.responses import Responder, ResponseCounts

if TYPE_CHECKING:
    from sagefm.tl._engine import Engine

CLAMPS_A_CONTROL = 10  # control sources of all pairs together, in multiples of those of one pair
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
    n_controls
        Matched genes for every target, and for every source.
    draw
        Takes those of the targets at random instead, as the paper does.
    ends
        Lowest and highest level of each gene (vocabulary index); NaN, or None, for what the slide shows.
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
        draw: np.random.Generator | None = None,
        ends: tuple[Floats32, Floats32] | None = None,
    ) -> None:
        self._engine, self._measured = engine, measured
        self.n_levels, self._to_unclamped, self._alone = n_levels, to_unclamped, alone
        self.statistics = gene_statistics(engine)
        self._low, self._high = self.statistics.low, self.statistics.high
        if ends is not None:
            self._low, self._high = (
                np.where(np.isnan(given), own, given) for given, own in zip(ends, (self._low, self._high), strict=True)
            )
        varies = self._high > self._low
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
        self._controls: dict[tuple[Genes, Genes], list[Genes]] = {}
        self._control_sources: dict[int, Ints] = {}
        if self.pairs and n_controls:
            self._find_controls(n_controls, draw)

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

    def _find_controls(self, n: int, draw: np.random.Generator | None) -> None:
        """Controls of every target, which have to be hidden, and of every source, each of which is a clamp more."""
        sources = sorted({gene for pair in self.pairs for gene in pair.source_genes})
        match = partial(match_controls, statistics=self.statistics, measured=self._measured, excluded=self.genes)
        self._control_sources = match(sources, n_controls=n, max_pool=CLAMPS_A_CONTROL * n)
        if draw is None:
            found = match(self._targets.tolist(), n_controls=n, max_pool=max(self.room, n))
            for pair in self.pairs:
                self._controls[pair.source_genes, pair.target_genes] = matched(found, pair.target_genes)
            return
        targets_of: dict[Genes, list[Genes]] = {}
        for pair in self.pairs:
            targets_of.setdefault(pair.source_genes, []).append(pair.target_genes)
        varying = self._measured[self.statistics.sd[self._measured] > 0]
        self._controls = draw_controls(targets_of, varying, n, max(self.room, n), draw)

    # What is run.

    @cached_property
    def _responder(self) -> Responder:
        """The slide, projected so that targets and their controls can be hidden."""
        read = {gene for found in self._controls.values() for genes in found for gene in genes}
        clamped = {gene for found in self._control_sources.values() for gene in found.tolist()}
        genes = np.array(sorted(self.genes | read | clamped), dtype=np.int64)
        controls = np.setdiff1d(np.array(sorted(read), dtype=np.int64), self._targets)  # drawn ones may be targets
        expression = Expression(self._engine, genes)
        return Responder(self._engine.project([self._targets, controls]), expression, self._to_unclamped)

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

    def controls_of(self, pair: Pair) -> tuple[list[Genes], list[Genes]]:
        """Controls of a pair's source, and of its target."""
        of_target = self._controls[pair.source_genes, pair.target_genes]
        return matched(self._control_sources, pair.source_genes), of_target

    def read_controls(
        self,
        n_spots: int | None,
        rng: np.random.Generator,
        libraries: Libraries | None = None,
        *,
        crossed: bool = False,
    ) -> Grid:
        """Read every pair, its source with the target's controls, and its target with the source's controls.

        All in one run that hides targets and their controls, on spots drawn at random where there are more, counted
        by library where these are given. With ``crossed``, every target is read under every source as well.
        """
        n_obs = self._engine.counts.n_obs
        spots = None if n_spots is None or n_spots >= n_obs else np.sort(rng.choice(n_obs, n_spots, replace=False))
        targets = list(dict.fromkeys(pair.target_genes for pair in self.pairs))
        readouts: dict[Genes, dict[Genes, None]] = {}  # ordered sets
        for pair in self.pairs:
            sources, controls = self.controls_of(pair)
            own = readouts.setdefault(pair.source_genes, dict.fromkeys(targets if crossed else ()))
            own |= dict.fromkeys([pair.target_genes, *controls])
            for source in sources:
                readouts.setdefault(source, {})[pair.target_genes] = None
        read = {source: list(found) for source, found in readouts.items()}
        clamps = clamps_of_readouts(read, self.extremes)
        n_outputs = sum(map(len, read.values()))
        counts = self._responder.count(clamps, BOTH, libraries or self._together, n_outputs, "Controls", spots=spots)
        sd = np.array([self._sd_of[genes] for found in read.values() for genes in found])
        with np.errstate(divide="ignore", invalid="ignore"):
            return Grid.of(read, counts.mean_change / sd, counts.effects)

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

    def observed(self, libraries: Libraries) -> ObservedMoments:
        """What was measured of the pairs."""
        return observed_moments(self._responder, self.pairs, libraries)

    # How.

    @property
    def _together(self) -> Libraries:
        return Libraries(["all"], np.zeros(self._engine.counts.n_obs, dtype=np.int64))

    def levels(self, genes: Genes) -> Floats32:
        """Levels from the lowest to the highest, shape (levels, genes)."""
        low, high = self._low[list(genes)], self._high[list(genes)]
        return np.linspace(low, high, self.n_levels, dtype=np.float32)

    def extremes(self, genes: Genes) -> Floats32:
        """Levels that a contrast takes: the highest, and the lowest where it is compared with that."""
        levels = self.levels(genes)
        return levels[-1:] if self._to_unclamped else levels[[0, -1]]

    @cached_property
    def _sd_of(self) -> dict[Genes, float]:
        """Standard deviation of every target and control, complexes as their scarcest subunit."""
        wanted = {pair.target_genes for pair in self.pairs}
        wanted |= {genes for found in self._controls.values() for genes in found}
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
