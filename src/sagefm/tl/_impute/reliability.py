"""How well held-out genes were predicted, and whether that is more than a plain baseline knows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from sagefm import _keys
from sagefm._stats import adjust_pvalues
from sagefm._types import Floats
from sagefm._utils import shorten
from sagefm.pp._graph import check_coordinates, find_coordinates

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    from sagefm.pp._counts import Counts
    from sagefm.tl._engine import Engine


ALPHA = 0.05
# Blocks of about 7 x 7 spots, wider than a neighbourhood of 15; on large slides as many blocks, of more spots.
BLOCK_SPOTS, MAX_BLOCKS, MIN_BLOCKS = 49, 32, 5
N_BOOTSTRAPS, BOOTSTRAP_SEED = 300, 2601
# Below this a variance is rounding.
MIN_VARIANCE = 1e-10
GENES_AT_A_TIME = 2_000


def spatial_blocks(adata: AnnData, graph: sparse.csr_matrix) -> NDArray[np.int64]:
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


def unmasked_totals(counts: Counts, folds: Sequence[NDArray[np.int64]], n_genes: int, batch_size: int) -> Floats:
    """Sum of the log1p counts of every spot outside each fold, shape (spots, folds)."""
    fold_of, n_folds = np.full(n_genes, len(folds)), len(folds) + 1
    for number, genes in enumerate(folds):
        fold_of[genes] = number
    totals = np.zeros((counts.n_obs, n_folds))
    read = counts.reader(np.empty(0, dtype=np.int64), counts.genes)
    fold = fold_of[counts.genes]
    for start in range(0, counts.n_obs, batch_size):
        block = read(slice(start, min(start + batch_size, counts.n_obs)))
        n = len(block.indptr) - 1
        row = np.repeat(np.arange(n), np.diff(block.indptr))
        cell = row * n_folds + fold[block.genes]
        totals[start : start + n] = np.bincount(cell, block.values, n * n_folds).reshape(n, n_folds)
    return totals.sum(axis=1, keepdims=True) - totals[:, :-1]


class HeldOut:
    """Scores of predicted genes beside the baseline.

    Parameters
    ----------
    tiles
        Tile of the tissue that each spot lies in.
    engine
        What the predictions come from.
    targets
        Genes that are predicted in each fold, as vocabulary indices.
    log_counts
        What was measured of them, shape (spots, genes) each.
    folds
        Genes that are masked in each fold.
    neighbors_show
        Whether the neighbours keep what is masked at the spot.
    """

    def __init__(
        self,
        tiles: NDArray[np.int64],
        engine: Engine,
        targets: Sequence[NDArray[np.int64]],
        log_counts: Sequence[sparse.csr_matrix],
        folds: Sequence[NDArray[np.int64]],
        *,
        neighbors_show: bool,
    ) -> None:
        self._engine, self._log_counts, self._neighbors_show = engine, log_counts, neighbors_show
        self._genes = np.concatenate(targets)
        ends = np.cumsum([0, *map(len, targets)])
        self._slices = [slice(start, stop) for start, stop in pairwise(ends)]
        self._scores = Scores(tiles, len(self._genes))
        self._depth = unmasked_totals(engine.counts, folds, engine.canonical.n_genes, engine.batch_size)

    def add(self, rows: slice, predictions: Sequence[NDArray[np.float32]]) -> None:
        """Add some spots' predictions of every fold's targets, of all folds or, where it fails, of none."""
        baselines = [self._baseline(rows, fold) for fold in range(len(predictions))]
        for fold, prediction in enumerate(predictions):
            truth = self._log_counts[fold][rows].toarray()
            self._scores.add(rows, self._slices[fold], prediction, truth, baselines[fold])

    def _baseline(self, rows: slice, fold: int) -> NDArray[np.float32]:
        """The neighbours' mean scaled by depth; the depth alone where the neighbours hide the gene."""
        import torch

        from sagefm.models._canonical import depth_ratio

        depth = self._depth[:, [fold]]
        if not self._neighbors_show:
            return np.repeat(depth[rows].astype(np.float32), self._log_counts[fold].shape[1], axis=1)
        around = self._engine.neighbor_mean(rows, csr_matrix(depth)).cpu().double()
        ratio = depth_ratio(torch.from_numpy(depth[rows]), around).float().numpy()
        return self._engine.neighbor_mean(rows, self._log_counts[fold]).cpu().numpy() * ratio

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

    def __init__(self, blocks: NDArray[np.int64], n_genes: int) -> None:
        self._blocks = blocks
        self.n = np.bincount(blocks).astype(float)
        self.sums = np.zeros((8, len(self.n), n_genes))  # t, t², p, p², pt, b, b², bt

    def add(
        self,
        rows: slice,
        genes: slice,
        prediction: NDArray[np.float32],
        truth: NDArray[np.float32],
        baseline: NDArray[np.float32],
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
        r, baseline_r = _correlations(total, n)
        squares = tt - t * t / n
        with np.errstate(invalid="ignore", divide="ignore"):
            r2 = np.where(squares > MIN_VARIANCE * n, 1 - (pp - 2 * pt + tt) / squares, np.nan)
            student = np.abs(r) * np.sqrt((n - 2) / np.maximum(1 - r * r, 1e-12))
        pval = 2 * stats.t.sf(student, max(n - 2, 1))
        # A gene found in a few blocks has no more to draw from, however many blocks there are.
        found = (self.sums[0] > 0).sum(axis=0)
        spread = np.where(found >= MIN_BLOCKS, self._spread() * np.sqrt(found / np.maximum(found - 1, 1)), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            better = stats.t.sf((r - baseline_r) / spread, np.maximum(found - 1, 1))
        better[~(spread > 0)] = np.nan
        table = pd.DataFrame(
            {
                "r": r,
                "pval": pval,
                "padj": adjust_pvalues(pval),
                "r2": r2,
                "rmse": np.sqrt(np.maximum(pp - 2 * pt + tt, 0) / n),
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
        rng = np.random.default_rng(BOOTSTRAP_SEED)
        drawn = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), N_BOOTSTRAPS).astype(float)
        n = (drawn @ self.n)[:, None]
        spread = np.empty(n_genes)
        for start in range(0, n_genes, GENES_AT_A_TIME):
            genes = slice(start, start + GENES_AT_A_TIME)
            r, baseline_r = _correlations(np.array([drawn @ sums[:, genes] for sums in self.sums]), n)
            # A gene of few spots may be absent from a draw.
            difference = r - baseline_r
            known = np.isfinite(difference)
            difference = np.where(known, difference, 0)
            m = np.maximum(known.sum(axis=0), 2)
            mean = difference.sum(axis=0) / m
            spread[genes] = np.sqrt((((difference - mean) ** 2) * known).sum(axis=0) / (m - 1))
        return spread


def _correlations(sums: Floats, n: float | Floats) -> tuple[Floats, Floats]:
    """Pearson r of prediction and of baseline with the truth: NaN where the truth is constant, 0 where they are."""
    t, tt, p, pp, pt, b, bb, bt = sums / n
    var_t = tt - t * t

    def r(x: Floats, xx: Floats, xt: Floats) -> Floats:
        var_x = xx - x * x
        scale = np.sqrt(np.maximum(var_x, MIN_VARIANCE) * np.maximum(var_t, MIN_VARIANCE))
        values = np.where(var_x > MIN_VARIANCE, (xt - x * t) / scale, 0.0).clip(-1, 1)
        return np.where(var_t > MIN_VARIANCE, values, np.nan)

    return r(p, pp, pt), r(b, bb, bt)
