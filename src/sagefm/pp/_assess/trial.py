"""How a model does on a slide beside the plain baselines: genes hidden in every spot, and predicted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from sagefm._depth import MIN_DETECTION, DepthSpline, attainable, mean_over_detected, pearson_beyond_depth
from sagefm._types import Bools, Floats32, Ints
from sagefm.models import _baselines
from sagefm.models._spots import predict, read_spots
from sagefm.pp._assess.checks import CARE, FINE, MODEL, OUTSIDE, UNKNOWN
from sagefm.pp._diffusion import Diffusion

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from sagefm.models._canonical import Canonical

# A third of the genes is hidden, about as many as in training.
N_FOLDS, BATCH_SIZE = 3, 256
MARGIN = 0.02  # of r beyond depth; as much comes by chance
MIN_GENES, MIN_ATTAINABLE = 10, 0.05
NEIGHBORS, DIFFUSION = "neighbors × depth", "diffusion × depth"  # beside depth alone


@torch.inference_mode()
def try_slide(
    canonical: Canonical, log_counts: csr_matrix, graph: csr_matrix, rows: Ints, measured: Ints
) -> pd.DataFrame:
    """Predict genes while they are hidden in the center, by the model and by the baselines.

    Parameters
    ----------
    canonical
        The model, on the CPU.
    log_counts, graph
        log1p counts in the model's genes, shape (spots, genes), and neighbors of every spot.
    rows
        Spots to predict. Slide mean and similar spots are of these.
    measured
        Vocabulary indices of the genes that the slide has; a third of them are hidden.

    Returns
    -------
    One row for the model and for each of the three baselines: ``rmse`` over all values, ``r_beyond_depth`` and
    ``attainable_r``, means over the ``n_genes`` genes that more than 30 % of the spots show.
    """
    n_genes = log_counts.shape[1]
    fold_of = np.random.default_rng(0).permutation(n_genes) % N_FOLDS
    genes, own = measured[fold_of[measured] == 0], log_counts[rows]
    hidden = np.isin(np.arange(n_genes), genes)
    truth, visible = own[:, genes].toarray(), own.multiply(~hidden).tocsr()
    depth = np.asarray(visible.expm1().sum(axis=1), dtype=float).ravel()
    basis = DepthSpline(depth)(depth)
    best = attainable(own[:, genes], basis)
    frequent, found = best.detection > MIN_DETECTION, {}
    for name, prediction in _predictions(canonical, log_counts, graph, rows, genes, hidden, truth, visible):
        rmse = np.sqrt(((prediction - truth) ** 2).mean(dtype=float))
        r = pearson_beyond_depth(prediction[:, frequent].astype(float), truth[:, frequent].astype(float), basis)
        found[name] = {"rmse": rmse, "r_beyond_depth": pd.Series(r).mean()}
    table = pd.DataFrame(found).T
    table["attainable_r"] = mean_over_detected(best.r_beyond_depth, best.detection)
    return table.assign(n_genes=int(frequent.sum()))


def judge(tried: pd.DataFrame) -> str:
    """Verdict on a trial: ahead of every baseline in both respects, or at least above depth alone; else outside.

    Unknown where too few genes, or nothing beyond depth and chance, are there to predict.
    """
    own, others = tried.loc[MODEL], tried.drop(index=MODEL)
    if own["n_genes"] < MIN_GENES or not own["attainable_r"] > MIN_ATTAINABLE:
        return UNKNOWN
    if own["r_beyond_depth"] > others["r_beyond_depth"].max() and own["rmse"] < others["rmse"].min():
        return FINE
    return CARE if own["r_beyond_depth"] > tried.loc[_baselines.DEPTH, "r_beyond_depth"] + MARGIN else OUTSIDE


def _predictions(
    canonical: Canonical,
    log_counts: csr_matrix,
    graph: csr_matrix,
    rows: Ints,
    genes: Ints,
    hidden: Bools,
    truth: Floats32,
    visible: csr_matrix,
) -> Iterator[tuple[str, Floats32]]:
    """Each predictor, and what it says of the hidden genes, shape (spots, genes given)."""
    total = np.asarray(visible.sum(axis=1), dtype=float)
    similar = Diffusion.of_slide(visible, graph[rows][:, rows])
    diffused = similar.mean(truth) * _baselines.relative_depth(total, similar.mean(total))
    own, around, totals = np.empty_like(truth), np.empty_like(truth), np.empty_like(total)
    mask, shown = torch.from_numpy(hidden), np.flatnonzero(~hidden)
    for start in range(0, len(rows), BATCH_SIZE):
        block = slice(start, start + BATCH_SIZE)
        spots = read_spots(log_counts, graph, rows[block], mask.expand(len(rows[block]), -1))
        like = torch.zeros_like(spots.center)
        like[:, genes] = torch.from_numpy(diffused[block])
        own[block] = predict(canonical, spots._replace(similar=like)).numpy()[:, genes]
        mean = spots.neighbor_mean
        around[block], totals[block] = mean[:, genes].numpy(), mean[:, shown].sum(1, keepdim=True).numpy()
    yield MODEL, own
    everywhere = np.full_like(total, total.mean())
    yield _baselines.DEPTH, (truth.mean(axis=0) * _baselines.relative_depth(total, everywhere)).astype(np.float32)
    yield NEIGHBORS, around * _baselines.relative_depth(total, totals)
    yield DIFFUSION, diffused
