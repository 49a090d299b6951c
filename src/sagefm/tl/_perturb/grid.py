"""Responses of many targets to many sources, and where pairs stand among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sagefm._types import Bools, Floats, Ints
from sagefm.tl._perturb.controls import MIN_CONTROLS, ControlComparison, compare
from sagefm.tl._perturb.plan import Genes

MIN_PAIRS = 10  # a set of fewer pairs isn't compared with others
N_REPAIRED, MAX_SWAPS = 199, 100


@dataclass(frozen=True)
class Grid:
    """Targets read under sources.

    Attributes
    ----------
    sources, targets
        Row and column of each gene or complex.
    change
        Mean change in standard deviations of the target, shape (sources, targets); NaN where it wasn't read, or the
        target doesn't vary.
    effects
        E over all spots, and then in each library, shape (1 + libraries, sources, targets).
    """

    sources: dict[Genes, int]
    targets: dict[Genes, int]
    change: Floats
    effects: Floats

    @property
    def effect(self) -> Floats:
        """E over all spots, shape (sources, targets)."""
        return np.asarray(self.effects[0])

    @classmethod
    def of(cls, read: Mapping[Genes, Sequence[Genes]], change: Floats, effects: Floats) -> Grid:
        """From the outputs, numbered by source and then by what was read."""
        distinct = dict.fromkeys(genes for found in read.values() for genes in found)
        targets = {genes: i for i, genes in enumerate(distinct)}
        rows = np.repeat(np.arange(len(read)), [len(found) for found in read.values()])
        columns = np.array([targets[genes] for found in read.values() for genes in found], dtype=np.int64)
        grids = np.full((1 + len(effects), len(read), len(targets)), np.nan)
        grids[:, rows, columns] = np.vstack([np.where(np.isfinite(change), change, np.nan), effects])
        return cls({source: i for i, source in enumerate(read)}, targets, grids[0], grids[1:])

    def at(self, sources: Sequence[Genes], targets: Sequence[Genes]) -> Ints:
        """Row and column of each source and target, shape (2, n); a single one of either goes with all others."""
        rows = np.array([self.sources[genes] for genes in sources])
        columns = np.array([self.targets[genes] for genes in targets])
        return np.stack(np.broadcast_arrays(rows, columns))


def stand_among(own: Floats, controls: Floats, abundance: Floats) -> ControlComparison:
    """Compare each pair, shape (pairs,), with its controls, shape (pairs, controls), where there are enough."""
    known = np.isfinite(own) & (np.isfinite(controls).sum(axis=1) >= MIN_CONTROLS)
    comparison = ControlComparison.missing(len(own))
    if known.any():
        comparison.fill(known, compare(own[known], controls[known], abundance[known]))
    return comparison


def compare_pairing(
    change: Floats, rows: Ints, columns: Ints, allowed: Bools, rng: np.random.Generator
) -> dict[str, float]:
    """Ask whether pairs respond more than the same genes do in other pairs.

    Parameters
    ----------
    change
        Of every source and target, shape (sources, targets).
    rows, columns
        Those of each pair.
    allowed
        What may become a pair, shape (sources, targets): neither a known one, nor a gene with itself.

    Returns
    -------
    ``n_pairs``; ``auc``: chance that a pair responds more, up or down, than a re-paired one; ``pval``: one-sided, the
    rank of the pairs' mean rank among those of :data:`N_REPAIRED` sets in which each gene has as many partners.
    """
    from scipy.stats import rankdata

    size = np.abs(change)
    finite = np.isfinite(size[rows, columns])
    rows, columns = rows[finite], columns[finite]
    ranks = np.full(size.shape, np.nan)
    ranks[np.isfinite(size)] = rankdata(size[np.isfinite(size)])
    own, means, aucs = ranks[rows, columns], [], []
    for _ in range(N_REPAIRED):
        others = repair(rows, columns, allowed, rng)
        found = ranks[rows, others][allowed[rows, others]]
        found = np.sort(found[np.isfinite(found)])
        if len(found) < MIN_PAIRS:
            continue
        means.append(found.mean())
        below = (np.searchsorted(found, own, side="left") + np.searchsorted(found, own, side="right")) / 2
        aucs.append(below.mean() / len(found))
    if not means:
        return {"n_pairs": len(own), "auc": float("nan"), "pval": float("nan")}
    higher = int((np.array(means) >= own.mean()).sum())
    return {"n_pairs": len(own), "auc": float(np.mean(aucs)), "pval": (1 + higher) / (1 + len(means))}


def repair(rows: Ints, columns: Ints, allowed: Bools, rng: np.random.Generator) -> Ints:
    """Give each source the target of another pair, so that each gene keeps its number of partners.

    Pairs that aren't allowed exchange their target with a pair drawn at random, until none is left or it's no use.
    """
    others = rng.permutation(columns)
    for _ in range(MAX_SWAPS):
        bad = np.flatnonzero(~allowed[rows, others])
        if not len(bad):
            break
        for i, j in zip(bad, rng.integers(0, len(rows), len(bad)), strict=True):
            if allowed[rows[i], others[j]] and (allowed[rows[j], others[i]] or not allowed[rows[j], others[j]]):
                others[[i, j]] = others[[j, i]]
    return others
