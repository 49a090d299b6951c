"""The calibration that a model's trust card, and the priors and intervals of absent genes, rest on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sagefm import _keys, models
from sagefm._docs import fill_docstring
from sagefm._types import Bools, Floats, Floats32
from sagefm._utils import check_whole, progress, shorten
from sagefm.models._calibration import Calibration
from sagefm.pp._assess.trial import MARGIN
from sagefm.pp._neighbors import lattice_of
from sagefm.train._corpus import Corpus
from sagefm.train._left_out import LACKING, LeftOut, measure, pick_sorted, quantiles, training_centroids

if TYPE_CHECKING:
    from sagefm.models import Model


# Coverages of the intervals of absent genes.
LEVELS = [0.8, 0.9, 0.95]
# Trusting where one should not is worse than the other way round.
CAUTION = 2
# Conventions, not measured: shares of spots with a far neighbor.
FAR = {"care": 0.05, "outside": 0.5, "above": 1.0}


@fill_docstring
def calibrate(
    model: str | Path | Model, corpus: Corpus | str | Path, left_out: Mapping[str, str | Path | Model], *, rng: int = 0
) -> Model:
    """Give a model the calibration that its trust card, and the priors and intervals of absent genes, rest on.

    Parameters
    ----------
    model
        Model trained on the corpus.
    corpus
        Corpus of :func:`prepare_corpus`, or its path. All sections are used, whatever their split.
    left_out
        For some groups (donors) of the corpus, a model trained by the same recipe without it. It may have been
        validated on the group, if the recipe doesn't choose its epoch by that.
    {seed}

    Returns
    -------
    The model with a ``calibration``; ``save`` keeps it.

    Raises
    ------
    TypeError
        If ``left_out`` is no mapping.
    ValueError
        If fewer than three groups are left out, the corpus has no such group, a model was trained on the group that
        it should not know, or a vocabulary isn't the corpus's.

    Notes
    -----
    On the sections of each group, with the model that doesn't know it:

    - Genes are hidden on the whole section, so that it lacks 25 to 95 % of the vocabulary, and predicted: their
      correlations are the prior of absent genes, their errors the intervals.
    - A third of the genes is hidden in the center and predicted: on the section as it is, on counts thinned down to a
      twentieth, and with 30 to 90 % of the genes missing. The model is *useless* where its r beyond depth, in genes of
      more than 30 % of the spots, is not above that of depth alone. The limit of ``fine`` is the depth, the share of
      missing genes, or the distance to the training data that best parts useless trials from others, one that passes
      wrongly counting as two that are held up wrongly. A slide is outside what the model knows beyond all that was
      tried. Whether the model is ahead of the baselines is not read off such limits: :func:`sagefm.pp.assess` tries it
      on the slide itself.

    Examples
    --------
    Models of random weights stand for those that were trained without a donor each.

    >>> import tempfile
    >>> import sagefm as sg
    >>> slides = {{f"slide{{i}}": sg.datasets.simulated_visium(4, 4, n_genes=5_000, rng=i) for i in range(3)}}
    >>> for name, slide in slides.items():
    ...     slide.obs["donor"] = name
    >>> vocabulary = sg.models.load("sagefm-mini").vocabulary
    >>> model = sg.models.Model("random", sg.models.SAGE(len(vocabulary), hidden=(8, 8)), vocabulary)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     corpus = sg.train.prepare_corpus(slides, f"{{folder}}/corpus.zarr", split=dict.fromkeys(slides, "train"))
    ...     calibrated = sg.train.calibrate(model, corpus, dict.fromkeys(slides, model))
    >>> calibrated.calibration is not None
    True
    """
    seed = check_whole("rng", rng, 0)
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    loaded = models.load(model)
    if not isinstance(left_out, Mapping):
        raise TypeError(f"left_out has to map groups to the models trained without them, got {left_out!r}.")
    groups = list(dict.fromkeys(corpus.sections["group"]))
    if unknown := [group for group in left_out if group not in groups]:
        raise ValueError(f"no group {shorten(unknown)} in the corpus; it has {shorten(groups)}.")
    if len(left_out) < 3:
        raise ValueError(f"{len(left_out)} groups left out show too little of other donors; leave out at least 3.")
    others = {group: models.load(other) for group, other in left_out.items()}
    for group, other in [("", loaded), *others.items()]:
        if other.vocabulary.sha256 != corpus.vocabulary.sha256:
            raise ValueError(f"{other.name} has another vocabulary than the corpus.")
        if group and group in (other.card.get("training") or {}).get("groups", []):
            raise ValueError(f"{other.name} was trained on {group!r}, so it shows nothing of an unseen donor.")
    measured = [
        measure(other, corpus, group, seed=seed)
        for group, other in progress(others.items(), "Measuring left-out donors", total=len(others), unit="donor")
    ]
    return replace(loaded, calibration=combine(corpus, measured, seed=seed))


def combine(corpus: Corpus, measured: list[LeftOut], *, groups: list[str] | None = None, seed: int = 0) -> Calibration:
    """Calibration from left-out groups, each counting as much as any other.

    Parameters
    ----------
    corpus
        What the model was trained on.
    measured
        The left-out groups.
    groups
        Groups of the corpus that the model was trained on; all by default.
    seed
        Seed of the centroids.
    """
    sections = corpus.sections if groups is None else corpus.sections[corpus.sections["group"].isin(groups)]
    names = [str(name) for name in sections.index]
    r, beyond = (np.stack([getattr(part, name) for part in measured]) for name in ("r", "r_beyond_depth"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of genes that no group has, or one alone
        mean, deviation = np.nanmean(r, axis=0), np.nanstd(r, axis=0, ddof=1)
        mean_beyond = np.nanmean(beyond, axis=0)
    by_class, ranks, levels = [], [], np.array(LEVELS)[:, None]
    for at in range(len(LACKING)):
        pooled = quantiles(np.concatenate([part.errors[at].T for part in measured])).T
        if np.isnan(pooled).any():  # what no donor came to takes the errors of the nearest class
            filled = np.flatnonzero(~np.isnan(pooled[:, 0]))
            pooled = pooled[filled[np.abs(filled - np.arange(len(pooled))[:, None]).argmin(axis=1)]]
        by_class.append(pooled)
        # What a share of the others stays under.
        reach = pick_sorted(np.concatenate([part.ranks[at] for part in measured]), lambda n: np.ceil(levels * n))
        ranks.append(np.maximum(reach, levels))
    return Calibration(
        donors=[part.group for part in measured],
        lattices=_lattices(corpus, names),
        lacking=LACKING,
        levels=LEVELS,
        limits=find_limits(pd.concat([part.trials.assign(group=part.group) for part in measured])),
        prior_r=mean.astype(np.float32),
        prior_sd=deviation.mean(axis=0).astype(np.float32),
        prior_beyond_depth=mean_beyond.astype(np.float32),
        n_donors=np.isfinite(r).sum(axis=0).min(axis=0).astype(np.float32),
        errors=np.array(by_class, dtype=np.float32),
        ranks=np.array(ranks, dtype=np.float32),
        centroids=training_centroids(corpus, names, seed),
        count_share=_count_share(corpus, names),
    )


def _lattices(corpus: Corpus, names: list[str]) -> list[str]:
    """Arrangements of spots in some sections."""
    from sklearn.neighbors import NearestNeighbors

    found = set()
    for name in names:
        adata = corpus.read(name)
        if _keys.SPATIAL in adata.obsm and adata.n_obs > 6:
            coordinates = np.asarray(adata.obsm[_keys.SPATIAL], dtype=float)
            distances = NearestNeighbors(n_neighbors=7).fit(coordinates).kneighbors(coordinates)[0]
            found.add(lattice_of(distances[:, 1:])[0])
    return sorted(found)


def _count_share(corpus: Corpus, names: list[str]) -> Floats32:
    """Mean share of each gene in a spot's counts, groups weighing alike."""
    of_group = corpus.sections["group"].loc[names]
    shares = []
    for _, members in of_group.groupby(of_group):
        counts = np.zeros(len(corpus.vocabulary))
        for name in members.index:
            counts += np.asarray(corpus.read(str(name)).X.sum(axis=0), dtype=float).ravel()
        shares.append(counts / max(counts.sum(), 1))
    return np.mean(shares, axis=0).astype(np.float32)


def find_limits(trials: pd.DataFrame, caution: float = CAUTION) -> dict[str, dict[str, float]]:
    """Limits of the trust card from the trials of left-out groups, see :func:`calibrate`."""
    trials = trials.assign(step=trials.groupby(["group", "section"], sort=False).cumcount())
    table = trials.drop(columns="section").groupby(["group", "step", "shift"], as_index=False).mean()
    is_useless = ~(table["r_beyond_depth"] > table["depth_r"] + MARGIN).to_numpy()
    intact = (table["step"] == 0).to_numpy()
    chosen = {
        "lacking": (intact | (table["shift"] == "lacking").to_numpy(), 1),
        "depth": ((table["shift"] == "depth").to_numpy(), -1),
        "distance": (intact, 1),
    }
    limits: dict[str, dict[str, float]] = {}
    for check, (members, sign) in chosen.items():
        # Depths lie orders of magnitude apart.
        value = np.log(table[check].to_numpy()) if check == "depth" else table[check].to_numpy()
        value = sign * value[members]
        found = sign * np.array([_stump(value, is_useless[members], caution), value.max()])
        care, outside = np.exp(found) if check == "depth" else found
        limits[check] = {"care": float(care), "outside": float(outside), "above": float(sign > 0)}
    limits["deepest"] = {"care": float(table.loc[intact, "depth"].max()), "above": 1.0}
    limits["far"] = dict(FAR)
    return {check: {key: round(value, 4) for key, value in limit.items()} for check, limit in limits.items()}


def _stump(value: Floats, bad: Bools, caution: float = CAUTION) -> float:
    """Limit that parts bad trials (above it) from others at the least cost, the lowest of several.

    A bad trial under the limit costs as much as ``caution`` good ones above it. Where nothing is bad the limit is
    the largest value tried.
    """
    order = np.argsort(value, kind="stable")
    value, bad = value[order], bad[order]
    if not bad.any():
        return float(value[-1])
    # Cost if the first i are called good and the others bad.
    passed = caution * np.concatenate([[0], np.cumsum(bad)])
    stopped = np.concatenate([np.cumsum(~bad[::-1])[::-1], [0]])
    at = int(np.argmin(passed + stopped))
    if at == 0:
        return float(value[0])
    return float(value[-1]) if at == len(value) else float((value[at - 1] + value[at]) / 2)
