"""How well held-out genes were predicted beyond depth, and whether that is more than plain predictors know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from sagefm._depth import N_COLUMNS, DepthSpline, attainable, correlate_residuals, project, residual_sums, whiten
from sagefm._slides import Libraries
from sagefm._stats import MIN_VARIANCE, adjust_pvalues, draw_blocks, pearson_from_moments, pearson_pvalue
from sagefm._types import Array, Floats, Floats32, Ints
from sagefm.models._baselines import relative_depth
from sagefm.tl._projection import neighbor_mean

if TYPE_CHECKING:
    import pandas as pd

    from sagefm.tl._compute import Rows
    from sagefm.tl._engine import Engine, Target

ALPHA = 0.05
MIN_BLOCKS = 5
N_BOOTSTRAPS, BOOTSTRAP_SEED = 300, 2601
GENES_AT_A_TIME = 500
# Prefixes of the columns of each predictor, and those that the model has to be ahead of.
MODEL, DEPTH, NEIGHBORS, DIFFUSION = "", "depth_", "neighbors_", "diffusion_"
RIVALS = (DEPTH, NEIGHBORS)


class HeldOut:
    """Scores of predicted genes beside predictors that need no model.

    Parameters
    ----------
    blocks
        Block of the tissue that each spot lies in.
    slides
        Slide of each spot.
    engine
        What the predictions come from.
    folds
        Genes that are hidden in each fold.
    targets
        Genes that are predicted in each fold, with what was measured of them.
    neighbors_show
        Whether the neighbors show what is hidden at the spot.
    diffusion
        Whether to score the mean of similar spots too, which takes a principal component analysis a fold.
    """

    def __init__(
        self,
        blocks: Ints,
        slides: Libraries,
        engine: Engine,
        folds: Sequence[Ints],
        targets: Sequence[Target],
        *,
        neighbors_show: bool,
        diffusion: bool = False,
    ) -> None:
        self._graph, self._neighbors_show = engine.graph, neighbors_show
        self._log_counts = [target.log_counts for target in targets if target.log_counts is not None]
        self._genes = np.concatenate([target.genes.cpu().numpy() for target in targets])
        self._totals, counts = visible_totals(engine, folds)
        self._slides = slides
        self._scores = [
            Scores(blocks, slides.codes, values, _depth_basis(depth, slides))
            for values, depth in zip(self._log_counts, counts.T, strict=True)
        ]
        self._diffused = [
            engine.similar_mean(hidden, values) if target.similar is None or engine.spatial else target.similar
            for hidden, values, target in zip(folds, self._log_counts, targets, strict=True)
            if diffusion
        ]

    def add(self, rows: Rows, predictions: Sequence[Floats32]) -> None:
        """Add some spots' predictions of every fold's targets."""
        for fold, (scores, prediction) in enumerate(zip(self._scores, predictions, strict=True)):
            scores.add(rows, {MODEL: prediction, **self._rivals(rows, fold)})

    def _rivals(self, rows: Rows, fold: int) -> dict[str, Floats32]:
        """Return what the plain predictors say: the depth, and means of other spots times the relative depth."""
        total, values = self._totals[:, [fold]], self._log_counts[fold]
        found = {DEPTH: np.broadcast_to(total[rows].astype(np.float32), (len(total[rows]), values.shape[1]))}
        if self._neighbors_show:
            around = self._graph[rows]
            ratio = relative_depth(total[rows], neighbor_mean(around, csr_matrix(total)))
            found[NEIGHBORS] = neighbor_mean(around, values) * ratio
        if self._diffused:
            found[DIFFUSION] = self._diffused[fold][rows]
        return found

    def table(self, symbols: Sequence[str]) -> pd.DataFrame:
        """Scores of every gene in the vocabulary's order, see :func:`sagefm.tl.impute`."""
        import pandas as pd

        table = pd.concat([scores.table() for scores in self._scores])
        table.index = pd.Index([symbols[gene] for gene in self._genes])
        return call_reliable(table.iloc[np.argsort(self._genes)])

    def by_slide(self, symbols: Sequence[str]) -> pd.DataFrame:
        """Scores of every gene within each slide, see :func:`sagefm.tl.impute`."""
        import pandas as pd

        parts = []
        for name, rows in self._slides.rows():
            table = pd.concat([scores.of_slide(rows) for scores in self._scores])
            table.index = pd.Index([symbols[gene] for gene in self._genes])
            table.insert(0, "slide", name)
            parts.append(table.iloc[np.argsort(self._genes)])
        return pd.concat(parts)


def _depth_basis(depth: Floats, slides: Libraries) -> Floats:
    """Spline of depth, with knots of each slide's own."""
    basis = np.zeros((len(depth), N_COLUMNS))
    for _, rows in slides.rows():
        basis[rows] = DepthSpline(depth[rows])(depth[rows])
    return basis


def visible_totals(engine: Engine, folds: Sequence[Ints]) -> tuple[Floats, Floats]:
    """Sums of every spot's log1p counts, and of its counts, outside each fold: the depth that a fold leaves.

    Both of shape (spots, folds).
    """
    counts, n_folds = engine.counts, len(folds) + 1
    fold_of = np.full(engine.canonical.n_genes, len(folds))
    for number, genes in enumerate(folds):
        fold_of[genes] = number
    totals = np.zeros((2, counts.n_obs, n_folds))
    read = counts.reader(np.empty(0, dtype=np.int64), counts.genes)
    fold = fold_of[counts.genes]
    for rows in engine.compute.blocks(counts.n_obs):
        block = read(rows)
        n = rows.stop - rows.start
        cell = np.repeat(np.arange(n), np.diff(block.indptr)) * n_folds + fold[block.genes]
        for total, values in zip(totals, (block.values, np.expm1(block.values.astype(float))), strict=True):
            total[rows] = np.bincount(cell, values, n * n_folds).reshape(n, n_folds)
    logs, whole = totals.sum(axis=2, keepdims=True) - totals[:, :, :-1]
    return logs, whole


class Scores:
    """Predictions of the genes of one fold, added up by block of the tissue.

    A block's sums hold all that the partial correlation needs: products with the spline of depth, squares, and products
    with the measured values. So blocks can be drawn anew without going back to the spots.

    Parameters
    ----------
    blocks, slides
        Block and slide of every spot. No block is of two slides.
    log_counts
        What was measured, shape (spots, genes).
    basis
        Spline of the depth that the fold leaves, see :class:`sagefm._depth.DepthSpline`.
    """

    def __init__(self, blocks: Ints, slides: Ints, log_counts: csr_matrix, basis: Floats) -> None:
        self._blocks, self._slides, self._log_counts, self._basis = blocks, slides, log_counts, basis
        self._n_blocks = int(blocks.max()) + 1
        self._slide_of_block = np.zeros(self._n_blocks, dtype=np.int64)
        self._slide_of_block[blocks] = slides
        self._truth = self._empty()
        self._predictors: dict[str, _Sums] = {}
        rows = np.arange(len(basis))
        design = self._design(rows)
        self._gram = np.asarray(design @ basis).reshape(self._n_blocks, N_COLUMNS, N_COLUMNS)

    def _empty(self) -> _Sums:
        return _Sums(self._n_blocks, int(self._slides.max()) + 1, self._log_counts.shape[1])

    def _design(self, rows: Ints) -> csr_matrix:
        """Basis of some spots in the columns of their blocks, transposed."""
        place = self._blocks[rows][:, None] * N_COLUMNS + np.arange(N_COLUMNS)
        spot = np.broadcast_to(np.arange(len(rows))[:, None], place.shape)
        shape = (self._n_blocks * N_COLUMNS, len(rows))
        return csr_matrix((self._basis[rows].ravel(), (place.ravel(), spot.ravel())), shape)

    def add(self, rows: Rows, predictions: Mapping[str, Array]) -> None:
        """Add what predictors say of some spots, each of shape (spots, genes)."""
        spots = np.arange(len(self._blocks))[rows]
        design, t = self._design(spots), self._log_counts[rows].toarray().astype(np.float64)
        kept = self._basis[spots].sum(axis=1)
        member = csr_matrix((kept, (self._blocks[spots], np.arange(len(spots)))), (self._n_blocks, len(spots)))
        of_slide = self._slides[spots]
        self._truth.add(design, member, of_slide, t, t)
        for name, prediction in predictions.items():
            sums = self._predictors.setdefault(name, self._empty())
            sums.add(design, member, of_slide, prediction.astype(np.float64), t)

    def table(self) -> pd.DataFrame:
        """Scores of each gene, see :func:`sagefm.tl.impute`; which are reliable takes all folds together."""
        import pandas as pd

        n = len(self._blocks)
        truth = self._truth.plain.sum(axis=0)
        (t, tt, _), (_, pp, pt) = truth, self._predictors[MODEL].plain.sum(axis=0)
        r = {name: _pearson(sums.plain.sum(axis=0), truth, n) for name, sums in self._predictors.items()}
        squares, errors = tt - t * t / n, pp - 2 * pt + tt
        with np.errstate(invalid="ignore", divide="ignore"):
            r2 = np.where(squares > MIN_VARIANCE * n, 1 - errors / squares, np.nan)
        beyond = {name: sums[0] for name, sums in self._beyond(np.ones((1, self._n_blocks))).items()}
        best = attainable(self._log_counts, self._basis, self._slides)
        spread, pval = self._test(beyond)
        columns = {"r": r[MODEL], "pval": pearson_pvalue(r[MODEL], n), "r2": r2}
        columns |= {"rmse": np.sqrt(np.maximum(errors, 0) / n)}
        columns |= {f"{name}r": values for name, values in r.items() if name != MODEL}
        columns |= {"r_beyond_depth": beyond[MODEL], "r_beyond_depth_se": spread}
        columns |= {f"{name}r_beyond_depth": values for name, values in beyond.items() if name != MODEL}
        columns |= {"attainable_r": best.r_beyond_depth, "share": best.share(beyond[MODEL]), "beyond_pval": pval}
        return pd.DataFrame(columns)

    def of_slide(self, rows: Ints) -> pd.DataFrame:
        """Scores of each gene within one slide, of which these are the spots."""
        import pandas as pd

        slide, model = self._slides[rows[0]], self._predictors[MODEL]
        r = _pearson(model.plain[slide], self._truth.plain[slide], len(rows))
        beyond = self._beyond((self._slide_of_block == slide)[None].astype(float))[MODEL][0]
        best = attainable(self._log_counts[rows], self._basis[rows])
        found = {"r": r, "r_beyond_depth": beyond, "attainable_r": best.r_beyond_depth, "share": best.share(beyond)}
        return pd.DataFrame(found)

    def _beyond(self, drawn: Floats, genes: slice = slice(None)) -> dict[str, Floats]:
        """Partial r of every predictor given depth, for draws of the blocks, shape (draws, genes).

        Each slide has a regression of its own, so differences between slides don't count.
        """
        found: dict[str, list[Floats]] = {}
        for slide in np.unique(self._slide_of_block):
            weights = drawn * (self._slide_of_block == slide)
            white = whiten(np.tensordot(weights, self._gram, 1))
            by, yy, _ = self._truth.drawn(weights, genes)
            fit_y = project(white, by)
            for name, sums in self._predictors.items():
                bx, xx, xy = sums.drawn(weights, genes)
                parts = (*residual_sums(project(white, bx), fit_y, xx, yy, xy), xx, yy)
                total = found.setdefault(name, [np.zeros_like(yy) for _ in parts])
                for whole, part in zip(total, parts, strict=True):
                    whole += part
        return {name: correlate_residuals(*total) for name, total in found.items()}

    def _test(self, beyond: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        """Standard error of the model's partial r; and p-value, that it isn't above 0 and above every rival's.

        The largest p-value of several tests says whether all hold. NaN where too few blocks show a gene.
        """
        from scipy.stats import t as student

        # A gene found in a few blocks has no more to draw from, however many blocks there are.
        found = (self._truth.squares > 0).sum(axis=0)
        drawn = draw_blocks(self._n_blocks, N_BOOTSTRAPS, BOOTSTRAP_SEED)
        rivals = [name for name in RIVALS if name in beyond]
        ahead = [beyond[MODEL], *(beyond[MODEL] - beyond[name] for name in rivals)]
        spread = np.empty((len(ahead), len(found)))
        for start in range(0, len(found), GENES_AT_A_TIME):
            genes = slice(start, start + GENES_AT_A_TIME)
            r = self._beyond(drawn, genes)
            for into, values in zip(spread, (r[MODEL], *(r[MODEL] - r[name] for name in rivals)), strict=True):
                into[genes] = _deviation(values)
        spread *= np.where(found >= MIN_BLOCKS, np.sqrt(found / np.maximum(found - 1, 1)), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            pval = student.sf(ahead / spread, np.maximum(found - 1, 1)).max(axis=0)
        pval[~(spread > 0).all(axis=0)] = np.nan
        return spread[0], pval


class _Sums:
    """Sums of x and its products over the spots of each block, where x is a predictor or what was measured."""

    def __init__(self, n_blocks: int, n_slides: int, n_genes: int) -> None:
        self.plain = np.zeros((n_slides, 3, n_genes))  # of all spots of a slide: x, x², xy
        self.by_basis = np.zeros((n_blocks, N_COLUMNS, n_genes))
        self.squares, self.products = np.zeros((2, n_blocks, n_genes))  # x², xy of the spots that have a depth

    def add(self, design: csr_matrix, member: csr_matrix, slides: Ints, x: Floats, y: Floats) -> None:
        xx, xy = x * x, x * y
        for slide in np.unique(slides):
            here = slides == slide
            self.plain[slide] += np.stack([part[here].sum(axis=0) for part in (x, xx, xy)])
        self.by_basis += (design @ x).reshape(self.by_basis.shape)
        self.squares += member @ xx
        self.products += member @ xy

    def drawn(self, drawn: Floats, genes: slice) -> tuple[Floats, Floats, Floats]:
        """Products with the basis, squares and products, for draws of the blocks."""
        return (
            np.tensordot(drawn, self.by_basis[:, :, genes], 1),
            drawn @ self.squares[:, genes],
            drawn @ self.products[:, genes],
        )


def _pearson(x: Floats, y: Floats, n: int) -> Floats:
    """Pearson correlation of n spots from sums of x, its square, and its product with y."""
    return pearson_from_moments(*(part / n for part in (x[0], y[0], x[1], y[1], x[2])))


def _deviation(r: Floats) -> Floats:
    """Standard deviation over draws; a gene of few spots may be absent from a draw."""
    known = np.isfinite(r)
    r, n = np.where(known, r, 0), np.maximum(known.sum(axis=0), 2)
    mean = r.sum(axis=0) / n
    return np.asarray(np.sqrt((((r - mean) ** 2) * known).sum(axis=0) / (n - 1)))


def call_reliable(table: pd.DataFrame) -> pd.DataFrame:
    """Adjust p-values over all genes, and call genes reliable.

    Genes in which chance could have made all there is to predict are no tests: the counts alone say so, whatever the
    model predicted. They would only take power from the others.
    """
    table.insert(2, "padj", adjust_pvalues(table["pval"].to_numpy()))
    pval = table["beyond_pval"].to_numpy()
    padj = adjust_pvalues(np.where(table["share"].notna(), pval, np.nan))
    return table.assign(beyond_padj=padj, testable=np.isfinite(pval), reliable=padj < ALPHA)
