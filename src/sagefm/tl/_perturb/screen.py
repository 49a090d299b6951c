"""Screen of ligand-receptor pairs: which network runs they need, and what is counted in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from sagefm._stats import adjust_pvalues
from sagefm._types import Floats
from sagefm._utils import progress
from sagefm.tl._perturb.clamp import Answer, Clamping, Expression, Job, combine_subunits, gene_statistics
from sagefm.tl._perturb.controls import MAX_MASKED, MIN_CONTROLS, Null, compare, match_controls
from sagefm.tl._perturb.interactions import CONSTANT, OK, Interaction
from sagefm.tl._perturb.tally import CHANGED, Libraries, Moments, Tally

if TYPE_CHECKING:
    from sagefm.tl._engine import Engine

Genes = tuple[int, ...]

RECEPTORS, BOTH = (0,), (0, 1)  # masks of the projection: receptors, and controls beside them


class Screen:
    """Some pairs on one slide.

    Parameters
    ----------
    engine
        Before :meth:`Engine.project`, which is done here.
    interactions
        Pairs, duplicates and all; only those that can be run are.
    measured
        Vocabulary indices of the genes that the slide has.
    n_levels
        Levels of a clamp, from the lowest to the highest count seen.
    observed
        Whether the highest level is compared with the neighbours as they are, not with the lowest level.
    by_pair
        Whether every pair masks its own receptor alone.
    n_controls, n_control_ligands
        Matched genes for a receptor, and for a ligand.
    """

    def __init__(
        self,
        engine: Engine,
        interactions: Sequence[Interaction],
        measured: NDArray[np.int64],
        *,
        n_levels: int = 2,
        observed: bool = False,
        by_pair: bool = False,
        n_controls: int = 0,
        n_control_ligands: int = 0,
    ) -> None:
        self.engine, self._observed, self._by_pair = engine, observed, by_pair
        self.n_levels, self._n_controls, self._n_control_ligands = n_levels, n_controls, n_control_ligands
        n_genes = engine.canonical.n_genes
        self.statistics = gene_statistics(engine.counts, n_genes, engine.blocks("Reading"))
        varies = self.statistics.high > self.statistics.low
        self.interactions = [
            replace(pair, status=CONSTANT) if pair.status == OK and not varies[list(pair.ligand_genes)].any() else pair
            for pair in interactions
        ]
        runnable: dict[tuple[Genes, Genes], Interaction] = {}
        for pair in self.interactions:
            if pair.status == OK:
                runnable.setdefault((pair.ligand_genes, pair.receptor_genes), pair)
        self.pairs = list(runnable.values())
        position = {key: i for i, key in enumerate(runnable)}
        self._position = np.array([position.get((p.ligand_genes, p.receptor_genes), -1) for p in self.interactions])

        receptors = {gene for pair in self.pairs for gene in pair.receptor_genes}
        ligands = {gene for pair in self.pairs for gene in pair.ligand_genes}
        self._controls: dict[int, NDArray[np.int64]] = {}
        self._control_ligands: dict[int, NDArray[np.int64]] = {}
        excluded = receptors | ligands
        if self.pairs and n_controls:
            room = int(MAX_MASKED * len(measured)) - len(receptors)
            self._controls = match_controls(
                sorted(receptors), self.statistics, measured, excluded, n_controls, max(room, n_controls)
            )
        if self.pairs and n_control_ligands:
            self._control_ligands = match_controls(
                sorted(ligands),
                self.statistics,
                measured,
                excluded,
                n_control_ligands,
                5 * n_control_ligands,
                argument="n_control_ligands",
            )
        control_pool = np.unique(np.concatenate([[], *self._controls.values()]).astype(np.int64))
        ligand_pool = np.unique(np.concatenate([[], *self._control_ligands.values()]).astype(np.int64))
        genes = np.array(sorted(excluded), dtype=np.int64)
        self._expression = Expression(engine, np.concatenate([genes, control_pool, ligand_pool]))
        if self.pairs:
            engine.project([np.array(sorted(receptors)), control_pool])
        self._sd_of = self._standard_deviations()
        self._sd = np.array([self._sd_of[pair.receptor_genes] for pair in self.pairs])

    @property
    def columns(self) -> dict[str, int]:
        """Every name of a pair that is run, and which it is: one pair may go by several names."""
        return {pair.name: int(i) for pair, i in zip(self.interactions, self._position, strict=True) if i >= 0}

    # What is run.

    def run(self, libraries: Libraries, *, store_spots: bool = False, engine: Engine | None = None) -> Tally:
        """Clamp every ligand and count what every receptor does."""
        n_libraries, n_pairs = len(libraries.names), len(self.pairs)
        shape = (n_libraries, n_pairs)
        tally = Tally(
            n_spots=np.bincount(libraries.codes, minlength=n_libraries)[:, None],
            n_up=np.zeros(shape),
            n_down=np.zeros(shape),
            change=np.zeros(shape),
            doses=np.zeros((self.n_levels, n_pairs)),
            spots=np.empty((len(libraries.codes), n_pairs), dtype=np.float32) if store_spots else None,
        )
        jobs, members = self._jobs()
        masks = () if self._by_pair else RECEPTORS
        for answer in self._answers(jobs, masks, "Perturbing", engine=engine):
            pairs = members[answer.job]
            columns = [self._columns(jobs[answer.job], self.pairs[pair].receptor_genes) for pair in pairs]
            change = self._change(answer, columns).cpu().numpy()
            member = np.zeros((n_libraries, len(answer.spots)))
            member[libraries.codes[answer.spots], np.arange(len(answer.spots))] = 1
            tally.n_up[:, pairs] += member @ (change > CHANGED)
            tally.n_down[:, pairs] += member @ (change < -CHANGED)
            tally.change[:, pairs] += member @ change.astype(np.float64)
            if self.n_levels > 2:
                # A receptor complex is as high as its lowest subunit.
                low = [answer.levels[:, :, column].amin(2).sum(1) for column in columns]
                tally.doses[:, pairs] += torch.stack(low, 1).cpu().numpy()
            if tally.spots is not None:
                tally.spots[answer.spots[:, None], pairs] = change
        return tally

    def controls(self, n_spots: int | None, rng: np.random.Generator) -> Null:
        """Second run, controls masked beside the receptors: where each pair stands among its controls."""
        n = self._n_controls
        jobs, members, columns = [], [], []
        base, grouped = self._jobs(by_pair=False)
        for job, pairs in zip(base, grouped, strict=True):
            units = {pair: self._control_units(self.pairs[pair].receptor_genes) for pair in pairs}
            targets = np.unique(np.concatenate([job.targets, *(unit.ravel() for unit in units.values())]))
            jobs.append(Job(job.genes, self._extremes(job.levels), targets))
            members.append(pairs)
            columns.append(
                [
                    torch.from_numpy(
                        np.searchsorted(targets, np.vstack([[self.pairs[pair].receptor_genes], units[pair]]))
                    ).to(self.engine.device)
                    for pair in pairs
                ]
            )
        sums = np.zeros((len(self.pairs), n + 1))
        picked = self._draw(n_spots, rng)
        for answer in self._answers(jobs, BOTH, "Controls", picked=picked):
            change = self._difference(answer)
            totals = change.sum(0)
            for pair, index in zip(members[answer.job], columns[answer.job], strict=True):
                if index.shape[1] == 1:
                    total = totals[index[:, 0]]
                else:
                    total = combine_subunits(change[:, index]).sum(0)
                sums[pair] += total.cpu().numpy()
        sd = np.array(
            [
                [self._sd_of[tuple(unit)] for unit in self._control_units(pair.receptor_genes).tolist()]
                for pair in self.pairs
            ]
        )
        n_used = self.engine.counts.n_obs if picked is None else int(picked.sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic = sums / n_used / np.column_stack([self._sd, sd.reshape(len(self.pairs), n)])
        return self._compare(statistic)

    def control_ligands(self) -> Null:
        """Other ligands clamped instead, receptors masked: where each pair stands among them."""
        n = self._n_control_ligands
        wanted: dict[Genes, list[tuple[int, int]]] = {}
        for pair, interaction in enumerate(self.pairs):
            units = np.column_stack([self._control_ligands[gene] for gene in interaction.ligand_genes])
            for slot, genes in enumerate([interaction.ligand_genes, *map(tuple, units.tolist())]):
                wanted.setdefault(tuple(dict.fromkeys(genes)), []).append((pair, slot))
        jobs, slots = [], []
        for genes, places in wanted.items():
            receptors = [gene for pair, _ in places for gene in self.pairs[pair].receptor_genes]
            jobs.append(Job(genes, self._extremes(self._levels(genes, 2)), np.unique(receptors)))
            slots.append(tuple(np.array(places).T))
        sums = np.zeros((len(self.pairs), n + 1))
        for answer in self._answers(jobs, RECEPTORS, "Control ligands"):
            pairs = slots[answer.job][0]
            columns = [self._columns(jobs[answer.job], self.pairs[pair].receptor_genes) for pair in pairs]
            change = self._change(answer, columns).sum(0).cpu().numpy()
            sums[slots[answer.job]] += change
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._compare(sums / self.engine.counts.n_obs / self._sd[:, None])

    def shuffles(self, n_shuffles: int, libraries: Libraries, rng: np.random.Generator) -> Floats:
        """Mean change of every pair while spots have the neighbours of others, shape (shuffles, pairs)."""
        means = []
        for _ in range(n_shuffles):
            order = np.arange(len(libraries.codes))
            for code in range(len(libraries.names)):
                members = np.flatnonzero(libraries.codes == code)
                order[members] = rng.permutation(members)
            engine = self.engine.with_graph(self.engine.graph[order])
            means.append(self.run(Libraries(["all"], np.zeros_like(libraries.codes)), engine=engine).mean_delta)
        return np.array(means).reshape(n_shuffles, len(self.pairs))

    def reference(self, libraries: Libraries) -> Moments:
        """Moments of what was measured."""
        ligand_of, ligands = _factorize([pair.ligand_genes for pair in self.pairs])
        receptor_of, receptors = _factorize([pair.receptor_genes for pair in self.pairs])
        x_all, y_all = self._sides(ligands), self._sides(receptors)
        shape = (len(libraries.names), len(self.pairs))
        sums = {name: np.zeros(shape) for name in ("x", "y", "xx", "yy", "xy")}
        for rows in self.engine.slices():
            x = self.engine.neighbor_mean(rows, x_all).cpu().numpy().astype(np.float64)
            y = y_all[rows].toarray().astype(np.float64)
            member = np.zeros((len(libraries.names), len(y)))
            member[libraries.codes[rows], np.arange(len(y))] = 1
            sums["x"] += (member @ x)[:, ligand_of]
            sums["y"] += (member @ y)[:, receptor_of]
            sums["xx"] += (member @ x**2)[:, ligand_of]
            sums["yy"] += (member @ y**2)[:, receptor_of]
            sums["xy"] += member @ (x[:, ligand_of] * y[:, receptor_of])
        n = np.bincount(libraries.codes, minlength=len(libraries.names)).astype(float)
        return Moments(n=np.repeat(n[:, None], len(self.pairs), 1), **sums)

    # Tables.

    def describe(self, tally: Tally, moments: Moments, library: int) -> pd.DataFrame:
        """Descriptive columns of every pair in one library."""
        n = int(tally.n_spots[library, 0])
        up, down = tally.n_up[library], tally.n_down[library]
        measured = {name: values[library] for name, values in moments.table().items()}
        r, effect = measured["reference_r"], (up - down) / max(n, 1)
        concordant = pd.array(np.sign(effect) == np.sign(r), dtype="boolean")
        concordant[np.isnan(r)] = pd.NA
        return pd.DataFrame(
            {
                "n_spots": n,
                "n_up": up.astype(np.int64),
                "n_down": down.astype(np.int64),
                "n_same": (n - up - down).astype(np.int64),
                "frac_up": up / max(n, 1),
                "frac_down": down / max(n, 1),
                "effect": effect,
                "mean_delta": tally.change[library] / max(n, 1),
                **measured,
                "concordant": concordant,
            }
        )

    def add_test(self, table: pd.DataFrame, null: Null | None, prefix: str = "") -> None:
        """Columns of a comparison with controls; missing values without one."""
        missing = np.full(len(self.pairs), np.nan)
        for name in ("control_mean", "control_sd", "zscore", "pval"):
            table[prefix + name] = missing if null is None else getattr(null, name.removeprefix("control_"))
        table[f"{prefix}padj"] = adjust_pvalues(table[f"{prefix}pval"].to_numpy())

    def expand(self, table: pd.DataFrame) -> pd.DataFrame:
        """One row for every pair asked for, missing values where it couldn't be run."""
        counts = [name for name in table if table[name].dtype.kind == "i"]
        rows = table.astype(dict.fromkeys(counts, "Int64")).reindex(self._position).reset_index(drop=True)
        names = pd.DataFrame(
            {
                "ligand": [pair.ligand for pair in self.interactions],
                "receptor": [pair.receptor for pair in self.interactions],
                "status": [pair.status for pair in self.interactions],
            }
        )
        expanded = pd.concat([names, rows], axis=1)
        expanded.index = pd.Index([pair.name for pair in self.interactions])
        return expanded

    def doses(self, tally: Tally) -> pd.DataFrame:
        """Mean predicted receptor at every level, in long form."""
        mean = tally.doses / tally.n_spots.sum()
        rows = [
            (name, level, float(self._levels(self.pairs[i].ligand_genes, self.n_levels)[level, 0]), mean[level, i])
            for name, i in self.columns.items()
            for level in range(self.n_levels)
        ]
        return _text_index(pd.DataFrame(rows, columns=["pair", "level", "dose", "mean"]))

    # How.

    def _jobs(self, *, by_pair: bool | None = None) -> tuple[list[Job], list[list[int]]]:
        """Runs of the network, and the pairs that are read in each."""
        by_pair = self._by_pair if by_pair is None else by_pair
        members: dict[tuple[Genes, int], list[int]] = {}
        for i, pair in enumerate(self.pairs):
            members.setdefault((pair.ligand_genes, i if by_pair else -1), []).append(i)
        jobs = []
        for (genes, alone), pairs in members.items():
            targets = np.unique([gene for pair in pairs for gene in self.pairs[pair].receptor_genes])
            masked = self.pairs[alone].receptor_genes if by_pair else ()
            levels = self._levels(genes, self.n_levels)
            jobs.append(Job(genes, levels if self.n_levels > 2 else self._extremes(levels), targets, masked))
        return jobs, list(members.values())

    def _levels(self, genes: Genes, n_levels: int) -> NDArray[np.float32]:
        """Levels from the lowest to the highest count seen, shape (levels, genes)."""
        low, high = self.statistics.low[list(genes)], self.statistics.high[list(genes)]
        return np.linspace(low, high, n_levels, dtype=np.float32)

    def _extremes(self, levels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Levels that a contrast takes: the highest, and the lowest where it is compared with that."""
        return levels[-1:] if self._observed else levels[[0, -1]]

    def _answers(
        self,
        jobs: Sequence[Job],
        masks: Genes,
        desc: str,
        *,
        picked: NDArray[np.bool_] | None = None,
        engine: Engine | None = None,
    ) -> Iterator[Answer]:
        """Run jobs on all spots, or on those picked."""
        if not jobs:
            return
        engine = engine or self.engine
        clamping = Clamping(engine, self._expression, jobs, masks, observed=self._observed)
        n = engine.counts.n_obs
        # Blocks of about as many spots, however few of them are picked.
        scale = 1.0 if picked is None else n / max(1, int(picked.sum()))

        def answers() -> Iterator[Answer]:
            for rows in engine.slices(scale):
                yield from self._run(clamping, rows, picked, scale)

        n_blocks = -(-n // max(1, int(engine.batch_size * scale)))
        yield from progress(answers(), desc, total=n_blocks * len(jobs), unit="run")

    @staticmethod
    def _run(clamping: Clamping, rows: slice, picked: NDArray[np.bool_] | None, scale: float) -> Iterator[Answer]:
        """All jobs on a block, the rest of them in halves where the device runs out of memory."""
        todo = [(rows, 0)]
        while todo:
            rows, first = todo.pop()
            here = None if picked is None else np.flatnonzero(picked[rows])
            if here is not None and not len(here):
                continue
            failure = None
            try:
                for answer in clamping.run(rows, here, first):
                    yield answer
                    first = answer.job + 1
            except torch.OutOfMemoryError as error:
                failure = error.with_traceback(None)
            if failure is not None:
                todo += [(half, first) for half in clamping.engine.halve(rows, failure, scale)]

    def _difference(self, answer: Answer) -> Tensor:
        """Highest level against what it is compared with, shape (spots, targets)."""
        low = answer.observed if self._observed else answer.levels[0]
        return answer.levels[-1] - low

    def _change(self, answer: Answer, columns: Sequence[list[int]]) -> Tensor:
        """Change of some receptors, each the columns of its subunits, shape (spots, receptors)."""
        change = self._difference(answer)
        if all(len(column) == 1 for column in columns):
            return change[:, [column[0] for column in columns]]
        return torch.stack([combine_subunits(change[:, column]) for column in columns], 1)

    @staticmethod
    def _columns(job: Job, genes: Genes) -> list[int]:
        return np.searchsorted(job.targets, genes).tolist()

    def _control_units(self, receptor: Genes) -> NDArray[np.int64]:
        """Controls of a receptor, shape (controls, subunits)."""
        return np.column_stack([self._controls[gene] for gene in receptor])

    def _standard_deviations(self) -> dict[Genes, float]:
        """Of every receptor and control, complexes as their scarcest subunit."""
        receptors = list(dict.fromkeys(pair.receptor_genes for pair in self.pairs))
        sides = set(receptors)
        if self._controls:
            sides.update(tuple(unit) for receptor in receptors for unit in self._control_units(receptor).tolist())
        complexes = [side for side in sides if len(side) > 1]
        total, squares = np.zeros(len(complexes)), np.zeros(len(complexes))
        low, high = np.full(len(complexes), np.inf), np.zeros(len(complexes))
        for rows in self.engine.slices() if complexes else ():
            values = self._expression.sides(complexes, rows)
            total += values.sum(axis=0, dtype=np.float64)
            squares += np.einsum("ij,ij->j", values, values, dtype=np.float64)
            low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
        n = self.engine.counts.n_obs
        variance = np.where(high > low, np.maximum(squares / n - (total / n) ** 2, 0), 0)  # not rounding of a constant
        singles = {side: float(self.statistics.sd[side[0]]) for side in sides if len(side) == 1}
        return singles | dict(zip(complexes, np.sqrt(variance).tolist(), strict=True))

    def _compare(self, statistic: Floats) -> Null:
        """First column against the others; control complexes that don't vary have no statistic."""
        finite = np.isfinite(statistic)
        known = finite[:, 0] & (finite[:, 1:].sum(axis=1) >= MIN_CONTROLS)
        statistic = np.where(finite, statistic, np.nan)
        null = Null(*(np.full(len(self.pairs), np.nan) for _ in range(4)))
        if known.any():
            expression = np.array(
                [self.statistics.mean[list(pair.receptor_genes)].min() for pair in self.pairs], dtype=float
            )
            found = compare(statistic[known, 0], statistic[known, 1:], expression[known])
            for name in ("mean", "sd", "zscore", "pval"):
                getattr(null, name)[known] = getattr(found, name)
        return null

    def _draw(self, n_spots: int | None, rng: np.random.Generator) -> NDArray[np.bool_] | None:
        n = self.engine.counts.n_obs
        if n_spots is None or n_spots >= n:
            return None
        picked = np.zeros(n, dtype=bool)
        picked[rng.choice(n, n_spots, replace=False)] = True
        return picked

    def _sides(self, sides: Sequence[Genes]) -> sparse.csr_matrix:
        """Expression of genes and complexes, shape (spots, sides)."""
        blocks = (sparse.csr_matrix(self._expression.sides(sides, rows)) for rows in self.engine.slices())
        return self.engine.scratch.csr(blocks, len(sides))


def _factorize(sides: Sequence[Genes]) -> tuple[NDArray[np.int64], list[Genes]]:
    """Number of each side among the different ones, and these."""
    number = {side: i for i, side in enumerate(dict.fromkeys(sides))}
    return np.array([number[side] for side in sides], dtype=np.int64), list(number)


def _text_index(table: pd.DataFrame) -> pd.DataFrame:
    """Index that h5ad can hold."""
    table.index = table.index.astype(str)
    return table
