"""How a model does on a donor that it wasn't trained on, as its sections are and with genes or counts taken away."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from sagefm import _keys
from sagefm._depth import DepthSpline, pearson_beyond_depth
from sagefm._stats import pearson
from sagefm._types import Floats, Floats32, Ints
from sagefm.models._baselines import DEPTH
from sagefm.models._calibration import EDGES, misfit, nearest, unit
from sagefm.models._spots import Spots, predict, read_spots
from sagefm.pp._assess.checks import MODEL
from sagefm.pp._assess.trial import try_slide

if TYPE_CHECKING:
    from sagefm.models import Model
    from sagefm.models._canonical import Canonical
    from sagefm.train._corpus import Corpus


# Enough of a section, a group and the corpus; more are sampled.
SECTION_SPOTS, GROUP_SPOTS, CORPUS_SPOTS = 400, 1_200, 8_000
N_CENTROIDS = 48
# Shares of the vocabulary that a slide lacks.
LACKING = [0.25, 0.5, 0.75, 0.95]
N_QUANTILES, MIN_VALUES = 200, 1_000
MIDDLES = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
THINNED, HIDDEN = (1.0, 0.5, 0.25, 0.1, 0.05), (0.3, 0.6, 0.8, 0.9)


@dataclass(frozen=True)
class LeftOut:
    """What one group shows of a model trained without it.

    Attributes
    ----------
    group
        Its name.
    r, r_beyond_depth
        Correlation of each gene with its prediction while the slide lacked it, and the same given the depth of the
        spots, shape (shares, genes).
    errors
        Quantiles of the misfit among predictions of one class, shape (shares, classes,
        quantiles); NaN for classes that hardly occur.
    ranks
        Quantiles of the rank of each gene's error among those of its class, shape (shares, quantiles, genes).
    trials
        One row for each section and shift: its ``depth``, share ``lacking`` and ``distance``, and ``rmse`` and
        ``r_beyond_depth`` of the model and (``baseline_``) of the best baseline in each; ``depth_r``, the latter of
        depth alone.
    """

    group: str
    r: Floats
    r_beyond_depth: Floats
    errors: Floats32
    ranks: Floats32
    trials: pd.DataFrame


@dataclass
class SampledSection:
    """Some spots of a section with their neighborhoods."""

    log_counts: sparse.csr_matrix
    graph: sparse.csr_matrix
    genes: Ints
    rows: Ints
    hidden: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @classmethod
    def read(cls, corpus: Corpus, name: str, n_spots: int, seed: int) -> SampledSection:
        adata = corpus.read(name)
        counts = sparse.csr_matrix(adata.X, dtype=np.float32)
        counts.data = np.log1p(counts.data)
        graph = sparse.csr_matrix(adata.obsp[_keys.connectivities(_keys.GRAPH)], dtype=np.float32)
        rows = np.random.default_rng(seed).permutation(adata.n_obs)[:n_spots]
        return cls(counts, graph, np.flatnonzero(adata.var["measured"]), np.sort(rows))

    def thinned(self, share: float, rng: np.random.Generator) -> SampledSection:
        """The same with each count kept by chance."""
        if share == 1:
            return self
        counts = np.rint(np.expm1(self.log_counts.data.astype(float))).astype(np.int64)
        kept = sparse.csr_matrix(self.log_counts, copy=True)
        kept.data = np.log1p(rng.binomial(counts, share)).astype(np.float32)
        return replace(self, log_counts=kept)

    def without(self, genes: Ints) -> SampledSection:
        """The same as if it lacked some genes."""
        return replace(self, hidden=genes)

    def spots(self) -> Spots:
        """The spots with their neighbors; what is hidden is 0 in both."""
        unseen = torch.ones(self.log_counts.shape[1], dtype=torch.bool)
        unseen[self.genes] = False
        unseen[self.hidden] = True
        spots = read_spots(self.log_counts, self.graph, self.rows, unseen.expand(len(self.rows), -1))
        spots.center[:, self.hidden] = spots.neighbor_sum[:, self.hidden] = 0
        return spots._replace(unseen=unseen)

    def neighborhood_means(self) -> Floats32:
        """Mean log1p counts of each spot and its neighbors, of the genes that the section has."""
        around = self.graph[self.rows]
        means = (around @ self.log_counts + self.log_counts[self.rows])[:, self.genes].toarray()
        return means / (np.diff(around.indptr)[:, None] + 1)

    def totals(self) -> Floats:
        """Counts of every spot."""
        return np.asarray(self.log_counts.expm1().sum(axis=1), dtype=float).ravel()


def measure(model: Model, corpus: Corpus, group: str, *, seed: int = 0) -> LeftOut:
    """Try a model on the sections of a group that it wasn't trained on."""
    canonical = model.canonical().to(torch.device("cpu"), torch.float32)
    n_genes = len(corpus.vocabulary)
    members = corpus.sections["group"] == group
    centroids = training_centroids(corpus, [str(name) for name in corpus.sections.index[~members]], seed)
    names = [str(name) for name in corpus.sections.index[members]]
    n_spots = min(SECTION_SPOTS, -(-GROUP_SPOTS // len(names)))
    r, beyond = np.full((2, len(names), len(LACKING), n_genes), np.nan)
    absent: list[list[tuple[Floats32, Floats32]]] = [[] for _ in LACKING]
    trials = []
    for number, name in enumerate(names):
        section, rng = SampledSection.read(corpus, name, n_spots, seed), np.random.default_rng(seed)
        distance = float(np.median(nearest(section.neighborhood_means(), centroids[:, section.genes])))
        order = rng.permutation(section.genes)
        for share in THINNED:
            row = {"section": name, "shift": "depth", "distance": distance}
            trials.append(row | _trial(canonical, section.thinned(share, rng)))
        for share in HIDDEN:
            row = {"section": name, "shift": "lacking", "distance": distance}
            trials.append(row | _trial(canonical, section.without(order[: int(share * len(order))])))
        for at, share in enumerate(LACKING):
            r[number, at], beyond[number, at], prediction, error = _absent(canonical, section, order, share)
            absent[at].append((prediction, error))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of genes that no section has
        mean_r, mean_beyond = np.nanmean(r, axis=0), np.nanmean(beyond, axis=0)
    classes = [_ranked(*(np.concatenate(part) for part in zip(*parts, strict=True))) for parts in absent]
    errors, ranks = (np.stack(part) for part in zip(*classes, strict=True))
    return LeftOut(group, mean_r, mean_beyond, errors, ranks, pd.DataFrame(trials))


def _trial(canonical: Canonical, section: SampledSection) -> dict[str, float]:
    """How the model does on a section beside the baselines, with the genes that it still has."""
    n_genes = section.log_counts.shape[1]
    genes = np.setdiff1d(section.genes, section.hidden)
    shown = sparse.csr_matrix(section.log_counts.multiply(np.isin(np.arange(n_genes), genes)))
    tried = try_slide(canonical, shown, section.graph, section.rows, genes)
    others = tried.drop(index=MODEL)
    return {
        "depth": float(np.median(section.totals())),
        "lacking": 1 - len(genes) / n_genes,
        "rmse": tried.loc[MODEL, "rmse"],
        "baseline_rmse": others["rmse"].min(),
        "r_beyond_depth": tried.loc[MODEL, "r_beyond_depth"],
        "baseline_r_beyond_depth": others["r_beyond_depth"].max(),
        "depth_r": tried.loc[DEPTH, "r_beyond_depth"],
    }


@torch.inference_mode()
def _absent(
    canonical: Canonical, section: SampledSection, order: Ints, lacking: float
) -> tuple[Floats, Floats, Floats32, Floats32]:
    """Correlations of each gene, prediction and misfit while the section lacks it and others, as asked for."""
    n_genes = section.log_counts.shape[1]
    # A section may lack more than is asked for; a twentieth of what it has is hidden at least.
    n_hidden = max(len(order) - round((1 - lacking) * n_genes), len(order) // 20, 1)
    r, beyond = np.full((2, n_genes), np.nan)
    errors = np.full((len(section.rows), n_genes), np.nan, dtype=np.float32)
    predictions = np.zeros_like(errors)
    truth = section.log_counts[section.rows].toarray()
    for start in range(0, len(order), n_hidden):
        hidden = np.take(order, np.arange(start, start + n_hidden), mode="wrap")
        spots = section.without(hidden).spots()
        scored = order[start : start + n_hidden]
        predictions[:, scored] = predict(canonical, spots).numpy()[:, scored]
        p, t = predictions[:, scored].astype(float), truth[:, scored].astype(float)
        errors[:, scored], r[scored] = misfit(p, t), pearson(p, t)
        depth = spots.center.expm1().sum(1).numpy().astype(float)
        beyond[scored] = pearson_beyond_depth(p, t, DepthSpline(depth)(depth))
    return r, beyond, predictions, errors


def _ranked(predictions: Floats32, errors: Floats32) -> tuple[Floats32, Floats32]:
    """Quantiles of the errors of each class of predictions, and of each gene's ranks among them."""
    class_of = np.where(np.isfinite(errors), np.digitize(predictions, EDGES), -1)
    by_class = np.full((len(EDGES) + 1, N_QUANTILES), np.nan, dtype=np.float32)
    rank = np.full(errors.shape, np.nan, dtype=np.float32)
    for number in range(len(by_class)):
        members = class_of == number
        values = np.sort(errors[members])
        if len(values):
            rank[members] = np.searchsorted(values, errors[members]) / len(values)
        if len(values) >= MIN_VALUES:
            by_class[number] = values[(MIDDLES * len(values)).astype(int)]
    return by_class, quantiles(rank)


def quantiles(values: Floats32) -> Floats32:
    """Quantiles of each column in the middle of equal shares; NaN where it has no values."""
    return pick_sorted(values, lambda n: MIDDLES[:, None] * n)


def pick_sorted(values: Floats32, places: Callable[[Ints], Floats]) -> Floats32:
    """Values at some places of each sorted column, by the number of its values; NaN where it has none."""
    ranked = np.sort(values, axis=0)  # NaN last
    n = np.isfinite(ranked).sum(axis=0)
    at = np.clip(places(n).astype(int), 0, np.maximum(n - 1, 0))
    return np.where(n > 0, np.take_along_axis(ranked, at, axis=0), np.nan).astype(np.float32)


def training_centroids(corpus: Corpus, names: list[str], seed: int) -> Floats32:
    """Centres of the neighborhood means of some sections, each group with as many spots as any other, at most."""
    from sklearn.cluster import KMeans

    of_group = corpus.sections["group"].loc[names]
    per_group = min(SECTION_SPOTS, CORPUS_SPOTS // of_group.nunique())
    means = []
    for _, members in of_group.groupby(of_group):
        n_spots = -(-per_group // len(members))
        for name in members.index:
            section = SampledSection.read(corpus, str(name), n_spots, seed)
            full = np.zeros((len(section.rows), len(corpus.vocabulary)), dtype=np.float32)
            full[:, section.genes] = section.neighborhood_means()
            means.append(unit(full))
    points = np.concatenate(means)
    found = KMeans(min(N_CENTROIDS, len(points)), n_init=1, random_state=seed).fit(points)
    return unit(found.cluster_centers_)
