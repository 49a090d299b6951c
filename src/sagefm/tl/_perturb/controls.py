"""Control genes, and how unusual a response is among theirs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from sagefm._types import Bools, Floats, Ints
from sagefm._utils import check_whole

if TYPE_CHECKING:
    from sagefm.tl._perturb.clamp import GeneStatistics
    from sagefm.tl._perturb.plan import Genes


# Share of the measured genes that may be hidden in the center: what the model has met in training.
MAX_HIDDEN = 0.3
# Fewer give no standard deviation to speak of.
MIN_CONTROLS = 5
# Ranks are pooled over pairs of similar expression, in as many bins as keep this many ranks in each.
RANKS_A_BIN, MAX_BINS = 2_000, 5


def check_controls(n_controls: int) -> int:
    """Refuse a number of controls that is above 0 and gives no standard deviation to speak of."""
    if 0 < (number := check_whole("n_controls", n_controls, 0)) < MIN_CONTROLS:
        raise ValueError(
            f"n_controls={n_controls} is too few to tell a response from chance: at least {MIN_CONTROLS}, or 0."
        )
    return number


@dataclass(frozen=True)
class ControlComparison:
    """Where a statistic stands among its controls; one value a pair, NaN where there is no comparison."""

    mean: Floats
    sd: Floats
    zscore: Floats
    pval: Floats

    @classmethod
    def missing(cls, n: int) -> ControlComparison:
        """No comparison for n pairs."""
        return cls(*(np.full(n, np.nan) for _ in fields(cls)))

    def fill(self, pairs: Bools, found: ControlComparison) -> None:
        """Put in the comparisons of some pairs."""
        for field in fields(self):
            getattr(self, field.name)[pairs] = getattr(found, field.name)


def draw_controls(
    targets_of: Mapping[Genes, Sequence[Genes]],
    candidates: Ints,
    n_controls: int,
    max_pool: int,
    rng: np.random.Generator,
) -> dict[tuple[Genes, Genes], list[Genes]]:
    """Draw genes for each source and target at random, as the paper does: neither the source nor one of its targets.

    All come from one pool of at most ``max_pool`` of the candidates. A replicate has no gene twice.

    Raises
    ------
    ValueError
        If a source has more targets than the pool has other genes.
    """
    pool, drawn = rng.permutation(candidates)[:max_pool], {}
    for source, targets in targets_of.items():
        sizes = [len(target) for target in targets]
        free = np.setdiff1d(pool, [gene for genes in (source, *targets) for gene in genes])
        if len(free) < sum(sizes):
            raise ValueError(
                f"{sum(sizes)} targets of a gene need as many control genes, and {len(free)} are left to draw from. "
                "Give the gene fewer targets."
            )
        replicates = [rng.choice(free, sum(sizes), replace=False).tolist() for _ in range(n_controls)]
        for target, end in zip(targets, np.cumsum(sizes), strict=True):
            drawn[source, target] = [tuple(genes[end - len(target) : end]) for genes in replicates]
    return drawn


def match_controls(
    genes: Sequence[int],
    statistics: GeneStatistics,
    measured: Ints,
    excluded: Collection[int],
    n_controls: int,
    max_pool: int,
) -> dict[int, Ints]:
    """Genes most alike in mean expression and detection, for each of some genes.

    All controls come from one pool of at most ``max_pool`` genes: every gene in turn adds its nearest that is not
    in there yet. Alike means near in the ranks of mean and of detection among the measured genes.

    Raises
    ------
    ValueError
        If fewer genes than ``n_controls`` are left to choose from.
    """
    from scipy.stats import rankdata
    from sklearn.neighbors import NearestNeighbors

    candidates = measured[statistics.sd[measured] > 0]
    candidates = np.setdiff1d(candidates, np.fromiter(excluded, dtype=np.int64))
    if min(len(candidates), max_pool) < n_controls:
        raise ValueError(
            f"only {min(len(candidates), max_pool)} of the slide's genes can serve as controls, fewer than "
            f"n_controls={n_controls}. Ask for fewer controls or fewer interactions."
        )
    place = np.zeros((len(statistics.mean), 2))
    for axis, values in enumerate((statistics.mean, statistics.detection)):
        place[measured, axis] = rankdata(values[measured]) / len(measured)
    wanted = list(dict.fromkeys(genes))
    size = min(max_pool, n_controls * len(wanted), len(candidates))
    # Near enough: a gene whose nearest are all taken already leaves the pool to the others.
    near = min(len(candidates), 8 * n_controls)
    nearest = NearestNeighbors(n_neighbors=near).fit(place[candidates]).kneighbors(place[wanted], return_distance=False)
    taken = np.zeros(len(candidates), dtype=bool)
    while (n_taken := int(taken.sum())) < size:
        for row in nearest:
            if taken.sum() == size:
                break
            if len(free := row[~taken[row]]):
                taken[free[0]] = True
        if taken.sum() == n_taken:
            break
    if taken.sum() < n_controls:  # few genes wanted, and all near the same ones
        taken[nearest[0][:n_controls]] = True
    pool = candidates[taken]
    found = NearestNeighbors(n_neighbors=n_controls).fit(place[pool]).kneighbors(place[wanted], return_distance=False)
    return dict(zip(wanted, pool[found], strict=True))


def compare(statistic: Floats, controls: Floats, expression: Floats) -> ControlComparison:
    """Rank statistics among those of their controls.

    Parameters
    ----------
    statistic
        Of each pair, shape (pairs,).
    controls
        Of its controls, shape (pairs, controls); missing ones are NaN.
    expression
        What pairs are put into bins by, shape (pairs,).

    Returns
    -------
    ``zscore`` is in standard deviations of the pair's own controls. ``pval`` is two-sided: the rank of the pair's
    distance from its controls among the distances of all controls in the bin, each from the others of its own pair.
    Under the null, pair and controls are exchangeable, and so are these distances; pooling makes p small enough to
    be adjusted over thousands of pairs. A little is added to every standard deviation, the bin's tenth
    percentile, lest controls that hardly respond make a distance of nothing.
    """
    n_pairs, n = len(controls), np.isfinite(controls).sum(axis=1)
    mean, sd = np.nanmean(controls, axis=1), np.nanstd(controls, axis=1, ddof=1)
    zscore = np.divide(statistic - mean, sd, out=np.full(n_pairs, np.nan), where=sd > 0)
    # Each control against the others of its pair.
    others = (n - 1)[:, None]
    others_mean = ((mean * n)[:, None] - controls) / others
    squares = np.nansum((controls - mean[:, None]) ** 2, axis=1)[:, None]
    others_squares = squares - (controls - mean[:, None]) ** 2 * n[:, None] / others
    others_sd = np.sqrt(np.maximum(others_squares, 0) / (others - 1))
    pval = np.empty(n_pairs)
    n_bins = int(np.clip(n.sum() // RANKS_A_BIN, 1, MAX_BINS))
    for members in np.array_split(np.argsort(expression, kind="stable"), n_bins):
        floor = np.quantile(sd[members], 0.1)

        def distance(value: Floats, center: Floats, spread: Floats, size: Floats, floor: float = floor) -> Floats:
            spread = np.sqrt((spread**2 + floor**2) * (1 + 1 / size))
            return np.abs(np.divide(value - center, spread, out=np.zeros_like(value), where=~(spread <= 0)))

        own = distance(statistic[members], mean[members], sd[members], n[members])
        null = distance(controls[members], others_mean[members], others_sd[members], others[members])
        null = np.sort(null[np.isfinite(null)])
        pval[members] = (1 + len(null) - np.searchsorted(null, own, side="left")) / (1 + len(null))
    return ControlComparison(mean, sd, zscore, pval)
