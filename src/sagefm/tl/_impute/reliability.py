"""How well held-out genes were predicted, and whether that is more than a plain baseline knows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix

from sagefm import _keys
from sagefm._stats import MIN_VARIANCE, adjust_pvalues, draw_blocks, pearson_from_moments, pearson_pvalue
from sagefm._types import Floats, Floats32, Ints
from sagefm._utils import shorten
from sagefm.models._canonical import depth_ratio
from sagefm.pp._graph import check_coordinates, find_coordinates
from sagefm.tl._engine import neighbor_mean

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    from sagefm.tl._compute import Rows
    from sagefm.tl._engine import Engine, Target

ALPHA = 0.05
# Blocks of about 7 x 7 spots, wider than a neighbourhood of 15; on large slides as many blocks, of more spots.
BLOCK_SPOTS, MAX_BLOCKS, MIN_BLOCKS = 49, 32, 5
N_BOOTSTRAPS, BOOTSTRAP_SEED = 300, 2601
GENES_AT_A_TIME = 2_000


def spatial_blocks(adata: AnnData, graph: sparse.csr_matrix) -> Ints:
    """Square tile of every spot, apart for parts of the slide that the graph doesn't connect.

    Raises
    ------
    KeyError
        If the slide has no coordinates.
    ValueError
        If they are not finite or all the same.
    """
    from scipy.sparse.csgraph import connected_components

    if _keys.SPATIAL in adata.obsm:
        found, _ = find_coordinates(adata, _keys.SPATIAL, None)
        try:
            position = check_coordinates(adata, found, _keys.SPATIAL, np.arange(adata.n_obs), "the slide")[:, :2]
        except ValueError as error:
            raise ValueError(
                f"reliability and intervals part the tissue by the coordinates: {error} Or pass reliability=False and "
                "no intervals."
            ) from error
    elif {_keys.ARRAY_ROW, _keys.ARRAY_COL} <= set(adata.obs):
        position = adata.obs[[_keys.ARRAY_COL, _keys.ARRAY_ROW]].to_numpy(dtype=float) * [0.5, np.sqrt(3) / 2]
    else:
        raise KeyError(
            f"reliability and intervals need the spots' coordinates: {_keys.SPATIAL!r} not in adata.obsm. Put them "
            "there, or pass reliability=False and no intervals."
        )
    bad = ~np.isfinite(position).all(axis=1)
    if bad.any():
        raise ValueError(
            f"the coordinates of {bad.sum()} spots are not finite: {shorten(adata.obs_names[bad])}. Reliability and "
            "intervals part the tissue by them; remove these spots, or pass reliability=False and no intervals."
        )
    if len(position) > 1 and (position == position[0]).all():
        raise ValueError(
            "all spots have the same coordinates, by which reliability and intervals part the tissue. Mend "
            f"obsm[{_keys.SPATIAL!r}], or pass reliability=False and no intervals."
        )
    _, part = connected_components(graph, directed=False)
    low = np.array([position[part == i].min(axis=0) for i in range(part.max() + 1)])
    high = np.array([position[part == i].max(axis=0) for i in range(part.max() + 1)])
    # Numbered by place, so that the order of the spots doesn't matter.
    order = np.lexsort((np.bincount(part), *high.T, *low.T))
    low, high, part = low[order], high[order], np.argsort(order)[part]
    spots = max(BLOCK_SPOTS, adata.n_obs / MAX_BLOCKS)
    side = np.sqrt(max(np.prod(high - low, axis=1).sum(), 1e-12) * spots / adata.n_obs)
    tile = np.column_stack([part, ((position - low[part]) // side).astype(np.int64)])
    return np.unique(tile, axis=0, return_inverse=True)[1].ravel()


def visible_totals(engine: Engine, folds: Sequence[Ints]) -> Floats:
    """Sum of the log1p counts of every spot outside each fold, shape (spots, folds): the depth that a fold leaves."""
    counts, n_folds = engine.counts, len(folds) + 1
    fold_of = np.full(engine.canonical.n_genes, len(folds))
    for number, genes in enumerate(folds):
        fold_of[genes] = number
    totals = np.zeros((counts.n_obs, n_folds))
    read = counts.reader(np.empty(0, dtype=np.int64), counts.genes)
    fold = fold_of[counts.genes]
    for rows in engine.compute.blocks(counts.n_obs):
        block = read(rows)
        n = rows.stop - rows.start
        cell = np.repeat(np.arange(n), np.diff(block.indptr)) * n_folds + fold[block.genes]
        totals[rows] = np.bincount(cell, block.values, n * n_folds).reshape(n, n_folds)
    return totals.sum(axis=1, keepdims=True) - totals[:, :-1]


class HeldOut:
    """Scores of predicted genes beside the baseline.

    Parameters
    ----------
    tiles
        Tile of the tissue that each spot lies in.
    engine
        What the predictions come from.
    folds
        Genes that are hidden in each fold.
    targets
        Genes that are predicted in each fold, with what was measured of them.
    neighbors_show
        Whether the neighbors show what is hidden at the spot.
    """

    def __init__(
        self, tiles: Ints, engine: Engine, folds: Sequence[Ints], targets: Sequence[Target], *, neighbors_show: bool
    ) -> None:
        self._graph, self._neighbors_show = engine.graph, neighbors_show
        self._log_counts = [target.log_counts for target in targets if target.log_counts is not None]
        self._genes = np.concatenate([target.genes.cpu().numpy() for target in targets])
        ends = np.cumsum([0, *(len(target.genes) for target in targets)])
        self._slices = [slice(start, stop) for start, stop in pairwise(ends)]
        self._scores = Scores(tiles, len(self._genes))
        self._depth = visible_totals(engine, folds)

    def add(self, rows: Rows, predictions: Sequence[Floats32]) -> None:
        """Add some spots' predictions of every fold's targets."""
        for fold, (part, prediction) in enumerate(zip(self._slices, predictions, strict=True)):
            truth = self._log_counts[fold][rows].toarray()
            self._scores.add(rows, part, prediction, truth, self._baseline(rows, fold))

    def _baseline(self, rows: Rows, fold: int) -> Floats32:
        """The neighbors' mean scaled by depth; the depth alone where the neighbors hide the gene too."""
        depth, values = self._depth[:, [fold]], self._log_counts[fold]
        if not self._neighbors_show:
            return np.repeat(depth[rows].astype(np.float32), values.shape[1], axis=1)
        around = self._graph[rows]
        near = torch.from_numpy(neighbor_mean(around, csr_matrix(depth))).double()
        return neighbor_mean(around, values) * depth_ratio(torch.from_numpy(depth[rows]), near).float().numpy()

    def table(self, symbols: Sequence[str]) -> pd.DataFrame:
        """Scores of every gene in the vocabulary's order, see :func:`sagefm.tl.impute`."""
        order = np.argsort(self._genes)
        return self._scores.table([symbols[gene] for gene in self._genes]).iloc[order]


class Scores:
    """Prediction p, truth t and baseline b of genes, added up by spatial block.

    Parameters
    ----------
    blocks
        Block of every spot.
    n_genes
        Number of genes.
    """

    def __init__(self, blocks: Ints, n_genes: int) -> None:
        self._blocks = blocks
        self.n = np.bincount(blocks).astype(float)
        self.sums = np.zeros((8, len(self.n), n_genes))  # t, t², p, p², pt, b, b², bt

    def add(
        self,
        rows: Rows,
        genes: slice,
        prediction: Floats32,
        truth: Floats32,
        baseline: Floats32,
    ) -> None:
        """Add some spots and genes, each array of shape (spots, genes)."""
        codes = self._blocks[rows]
        here, place = np.unique(codes, return_inverse=True)
        member = csr_matrix((np.ones(len(codes)), (place.ravel(), np.arange(len(codes)))), (len(here), len(codes)))
        t, p, b = (array.astype(np.float64) for array in (truth, prediction, baseline))
        for sums, values in zip(self.sums, (t, t * t, p, p * p, p * t, b, b * b, b * t), strict=True):
            sums[here, genes] += member @ values

    def table(self, names: list[str]) -> pd.DataFrame:
        """Scores of each gene, see :func:`sagefm.tl.impute`."""
        import pandas as pd
        from scipy import stats

        n = self.n.sum()
        total = self.sums.sum(axis=1)
        t, tt, _, pp, pt = total[:5]
        r, baseline_r = _correlations(total / n)
        squares, errors = tt - t * t / n, pp - 2 * pt + tt
        with np.errstate(invalid="ignore", divide="ignore"):
            r2 = np.where(squares > MIN_VARIANCE * n, 1 - errors / squares, np.nan)
        # A gene found in a few blocks has no more to draw from, however many blocks there are.
        found = (self.sums[0] > 0).sum(axis=0)
        spread = np.where(found >= MIN_BLOCKS, self._spread() * np.sqrt(found / np.maximum(found - 1, 1)), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            better = stats.t.sf((r - baseline_r) / spread, np.maximum(found - 1, 1))
        better[~(spread > 0)] = np.nan
        pval = pearson_pvalue(r, n)
        table = pd.DataFrame(
            {
                "r": r,
                "pval": pval,
                "padj": adjust_pvalues(pval),
                "r2": r2,
                "rmse": np.sqrt(np.maximum(errors, 0) / n),
                "baseline_r": baseline_r,
                "difference": r - baseline_r,
                "difference_se": spread,
                "difference_pval": better,
                "difference_padj": adjust_pvalues(better),
            },
            index=pd.Index(names),
        )
        # Ahead of a baseline that runs the wrong way is not enough.
        table["reliable"] = (table["difference_padj"] < ALPHA) & (table["padj"] < ALPHA) & (table["r"] > 0)
        return table

    def _spread(self) -> Floats:
        """Standard deviation of r minus the baseline's while blocks are drawn anew."""
        n_blocks, n_genes = self.sums.shape[1:]
        drawn = draw_blocks(n_blocks, N_BOOTSTRAPS, BOOTSTRAP_SEED)
        n = (drawn @ self.n)[:, None]
        spread = np.empty(n_genes)
        for start in range(0, n_genes, GENES_AT_A_TIME):
            genes = slice(start, start + GENES_AT_A_TIME)
            r, baseline_r = _correlations(np.array([drawn @ sums[:, genes] for sums in self.sums]) / n)
            # A gene of few spots may be absent from a draw.
            difference = r - baseline_r
            known = np.isfinite(difference)
            difference = np.where(known, difference, 0)
            m = np.maximum(known.sum(axis=0), 2)
            mean = difference.sum(axis=0) / m
            spread[genes] = np.sqrt((((difference - mean) ** 2) * known).sum(axis=0) / (m - 1))
        return spread


def _correlations(means: Floats) -> tuple[Floats, Floats]:
    """Pearson r of prediction and of baseline with the truth, from the means of what :class:`Scores` adds up."""
    t, tt, p, pp, pt, b, bb, bt = means
    return pearson_from_moments(p, t, pp, tt, pt), pearson_from_moments(b, t, bb, tt, bt)
