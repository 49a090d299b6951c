"""Tables of a screen: what was counted, what was measured, and how both compare with controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm._stats import adjust_pvalues
from sagefm._types import Floats, Ints
from sagefm.tl._perturb.controls import ControlComparison
from sagefm.tl._perturb.grid import MIN_PAIRS, Grid, compare_pairing, stand_among

if TYPE_CHECKING:
    from sagefm._slides import Libraries
    from sagefm.tl._perturb.observed import ObservedMoments
    from sagefm.tl._perturb.plan import Pair
    from sagefm.tl._perturb.responses import ResponseCounts
    from sagefm.tl._perturb.screen import Screen

ALPHA = 0.05
RESPONDS, LIKE_CONTROLS, NOT_TESTABLE = "responds", "not distinguishable from controls", "not testable"


def describe(counts: ResponseCounts, moments: ObservedMoments, library: int = 0) -> pd.DataFrame:
    """Descriptive columns of every pair that was run, in one library."""
    up, down = counts.n_up[library], counts.n_down[library]
    n = np.broadcast_to(counts.n_spots[library], up.shape)
    r, pval = (values[library] for values in moments.correlation())
    every = np.maximum(n, 1)
    effect = (up - down) / every
    concordant = pd.array(np.sign(effect) == np.sign(r), dtype="boolean")
    concordant[np.isnan(r)] = pd.NA
    return pd.DataFrame(
        {
            "n_spots": n,
            "n_up": up.astype(np.int64),
            "n_down": down.astype(np.int64),
            "n_same": (n - up - down).astype(np.int64),
            "frac_up": up / every,
            "frac_down": down / every,
            "effect": effect,
            "mean_delta": counts.change[library] / every,
            "reference_r": r,
            "reference_pval": pval,
            "concordant": concordant,
        }
    )


def expand(screen: Screen, table: pd.DataFrame, source: str, target: str) -> pd.DataFrame:
    """One row for every pair asked for, missing values where it couldn't be run; names of the first two columns."""
    return expand_to(screen.asked, screen.position, table, source, target)


def expand_to(asked: Sequence[Pair], position: Ints, table: pd.DataFrame, source: str, target: str) -> pd.DataFrame:
    """The same with each pair's number in the table, -1 where it couldn't be run."""
    counts = [name for name in table if table[name].dtype.kind == "i"]
    rows = table.astype(dict.fromkeys(counts, "Int64")).reindex(position).reset_index(drop=True)
    names = pd.DataFrame(
        {
            source: [pair.source for pair in asked],
            target: [pair.target for pair in asked],
            "status": [pair.status for pair in asked],
        }
    )
    expanded = pd.concat([names, rows], axis=1)
    expanded.index = pd.Index([pair.name for pair in asked])
    return expanded


def by_library(
    screen: Screen, counts: ResponseCounts, moments: ObservedMoments, libraries: Libraries, source: str, target: str
) -> pd.DataFrame:
    """Descriptive rows of every pair by library."""
    parts = []
    for number, name in enumerate(libraries.names):
        rows = expand(screen, describe(counts, moments, number), source, target)
        rows.insert(0, "library", name)
        parts.append(rows.rename_axis("pair").reset_index())
    return text_index(pd.concat(parts, ignore_index=True))


def doses(screen: Screen, counts: ResponseCounts) -> pd.DataFrame:
    """Mean predicted target at every level, in long form."""
    mean = counts.doses / counts.n_spots.sum()
    rows = [
        (name, level, float(screen.levels(screen.pairs[i].source_genes)[level, 0]), mean[level, i])
        for name, i in screen.columns.items()
        for level in range(screen.n_levels)
    ]
    return text_index(pd.DataFrame(rows, columns=["pair", "level", "dose", "mean"]))


def add_controls(table: pd.DataFrame, screen: Screen, grid: Grid | None) -> None:
    """Where each pair stands among the controls of its target and of its source; missing values without them.

    The larger of the two p-values tests that it stands out from both (the intersection-union test).
    """
    for side, prefix in enumerate(("ligand_", "")):
        found = ControlComparison.missing(len(table)) if grid is None else _stand(screen, grid, side)
        table[f"{prefix}control_mean"], table[f"{prefix}control_sd"] = found.mean, found.sd
        table[f"{prefix}zscore"], table[f"{prefix or 'receptor_'}pval"] = found.zscore, found.pval
    table["pval"] = table[["receptor_pval", "ligand_pval"]].max(axis=1, skipna=False)
    table["padj"] = adjust_pvalues(table["pval"].to_numpy(dtype=float))


def _stand(screen: Screen, grid: Grid, side: int) -> ControlComparison:
    """Where each pair stands among the controls of its source (side 0) or of its target (1)."""
    own, controls, abundance = [], [], []
    for pair in screen.pairs:
        of_source, of_target = screen.controls_of(pair)
        at = grid.at([pair.source_genes], of_target) if side else grid.at(of_source, [pair.target_genes])
        own.append(grid.change[tuple(grid.at([pair.source_genes], [pair.target_genes]))][0])
        controls.append(grid.change[tuple(at)])
        abundance.append(screen.statistics.mean[list((pair.source_genes, pair.target_genes)[side])].min())
    return stand_among(np.array(own), np.array(controls), np.array(abundance, dtype=float))


def pairing(screen: Screen, grid: Grid, rng: np.random.Generator) -> dict[str, float]:
    """Whether pairs respond more than the same genes in other pairs; nothing of few pairs."""
    if len(screen.pairs) < MIN_PAIRS:
        return {}
    sources, targets = [pair.source_genes for pair in screen.pairs], [pair.target_genes for pair in screen.pairs]
    rows, columns = grid.at(sources, targets)
    allowed = np.isfinite(grid.change)
    for source in set(sources):
        for target in set(targets):
            if not set(source).isdisjoint(target):
                allowed[grid.sources[source], grid.targets[target]] = False
    allowed[rows, columns] = False
    return compare_pairing(grid.change, rows, columns, allowed, rng)


def add_shuffles(table: pd.DataFrame, mean_change: Floats, shuffled: Floats) -> None:
    """Where the mean change stands among those with shuffled neighbors; two-sided rank."""
    n = len(shuffled)
    mean, sd = shuffled.mean(axis=0), shuffled.std(axis=0, ddof=1) if n > 1 else np.full(len(table), np.nan)
    table["shuffled_mean"], table["shuffled_sd"] = mean, sd
    table["shuffled_zscore"] = np.divide(mean_change - mean, sd, out=np.full(len(table), np.nan), where=sd > 0)
    tails = np.minimum((shuffled >= mean_change).sum(axis=0), (shuffled <= mean_change).sum(axis=0))
    table["shuffled_pval"] = np.minimum(1.0, 2 * (1 + tails) / (1 + n))


def add_verdict(table: pd.DataFrame) -> pd.DataFrame:
    """What the comparison with control targets comes to."""
    tested = table["padj"].notna()
    table["verdict"] = np.select([tested & (table["padj"] < ALPHA), tested], [RESPONDS, LIKE_CONTROLS], NOT_TESTABLE)
    return table


def text_index(table: pd.DataFrame) -> pd.DataFrame:
    """The same with an index that h5ad can hold."""
    return table.set_axis(table.index.astype(str))
