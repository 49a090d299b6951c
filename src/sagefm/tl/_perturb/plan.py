"""Planning of a perturbation: pairs of genes, the clamps that they need, and what is read meanwhile. Runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sagefm._types import Floats32, Ints

if TYPE_CHECKING:
    from sagefm.tl._run import SlideRun

Genes = tuple[int, ...]
"""A gene, or the subunits of a complex, as vocabulary indices."""

OK, NOT_IN_MODEL, NOT_MEASURED, CONSTANT = "ok", "not_in_model", "not_measured", "constant_ligand"


@dataclass(frozen=True)
class Pair:
    """A gene or complex that is clamped in the neighbors, and one that is read in the center."""

    source: str
    target: str
    source_genes: Genes
    target_genes: Genes
    status: str

    @property
    def name(self) -> str:
        """How tables name the pair."""
        return f"{self.source}|{self.target}"


def resolve(pairs: Iterable[tuple[str, str]], run: SlideRun) -> list[Pair]:
    """Genes and status of each pair. Whether a source is constant is not known yet."""
    pairs = list(pairs)
    sides = list(dict.fromkeys(side for pair in pairs for side in pair))
    find = run.alignment.find
    whole = dict(zip(sides, find(run.adata, run.model.vocabulary, sides), strict=True))
    # A name with "_" is a complex, unless it is a gene's own.
    units = {side: [side] if whole[side] >= 0 else side.split("_") for side in sides}
    names = list(dict.fromkeys(unit for parts in units.values() for unit in parts))
    gene_of = dict(zip(names, find(run.adata, run.model.vocabulary, names).tolist(), strict=True))
    measured = set(run.alignment.measured.tolist())
    resolved = []
    for source, target in pairs:
        clamped, read = (tuple(dict.fromkeys(gene_of[unit] for unit in units[side])) for side in (source, target))
        every = clamped + read
        if min(every) < 0:
            status = NOT_IN_MODEL
        else:
            status = OK if measured.issuperset(every) else NOT_MEASURED
        resolved.append(Pair(source, target, clamped, read, status))
    return resolved


@dataclass(frozen=True)
class Clamp:
    """Genes to set in all neighbors of a spot, and what to read in the spot meanwhile.

    Attributes
    ----------
    genes
        Set together.
    levels
        log1p counts that they are set to, one level after the other, shape (levels, genes).
    readouts
        Genes and complexes to read.
    outputs
        Position of each readout among the results of all clamps.
    hidden
        Genes hidden in the center for this clamp alone.
    """

    genes: Genes
    levels: Floats32
    readouts: Sequence[Genes]
    outputs: Ints
    hidden: Genes = ()

    @cached_property
    def targets(self) -> Ints:
        """Genes of all readouts, ascending."""
        return np.unique([gene for readout in self.readouts for gene in readout])

    @cached_property
    def columns(self) -> list[Ints]:
        """Where the subunits of each readout are among the targets."""
        return [np.searchsorted(self.targets, readout) for readout in self.readouts]

    @cached_property
    def by_size(self) -> list[tuple[Ints, Ints]]:
        """Readouts with equally many subunits, and the columns of these, shape (readouts, subunits)."""
        size = np.array([len(column) for column in self.columns])
        members = [np.flatnonzero(size == n) for n in np.unique(size)]
        return [(found, np.stack([self.columns[i] for i in found])) for found in members]


Levels = Callable[[Genes], Floats32]
"""Levels that genes are clamped at, shape (levels, genes)."""


def clamps_of_pairs(pairs: Sequence[Pair], levels: Levels, *, alone: bool = False) -> list[Clamp]:
    """One clamp for each source, with all its targets; output i is pair i.

    With ``alone`` there is one for each pair, which hides its own target only.
    """
    members: dict[tuple[Genes, int], list[int]] = {}
    for i, pair in enumerate(pairs):
        members.setdefault((pair.source_genes, i if alone else -1), []).append(i)
    return [
        Clamp(
            genes,
            levels(genes),
            [pairs[i].target_genes for i in found],
            np.array(found),
            pairs[only].target_genes if alone else (),
        )
        for (genes, only), found in members.items()
    ]


def clamps_of_readouts(readouts: Mapping[Genes, Sequence[Genes]], levels: Levels) -> list[Clamp]:
    """One clamp for each source, with what is read meanwhile; outputs are numbered in that order."""
    ends = np.cumsum([0, *map(len, readouts.values())])
    return [
        Clamp(source, levels(source), read, np.arange(start, start + len(read)))
        for (source, read), start in zip(readouts.items(), ends[:-1], strict=True)
    ]


def matched(controls: Mapping[int, Ints], genes: Genes) -> list[Genes]:
    """Controls of a gene or complex: of a complex, one for each of its subunits."""
    return [tuple(units) for units in np.column_stack([controls[gene] for gene in genes]).tolist()]
