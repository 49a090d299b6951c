"""What a model was trained on, and what donors left out of training showed of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from sagefm._types import Array, Floats, Floats32, Ints

# What weight files call it.
PREFIX = "calibration."
# Variance of a log1p count beyond that of counting.
EXTRA_VARIANCE = 0.02
# Edges of the classes of predicted log1p counts within which errors are ranked.
EDGES = np.array(
    [0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1, 1.25, 1.5, 2, 2.5, 3]
)
# Small shares of counts don't fit half precision.
SINGLE = ("count_share",)
# NaN there says that no donor has the gene.
UNKNOWN = ("prior_r", "prior_sd", "prior_beyond_depth", "ranks")


def _are_names(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _are_numbers(values: Any) -> bool:
    return all(type(value) in (int, float) and value == value for value in values)


def _are_shares(values: Any) -> bool:
    if not isinstance(values, list) or not values or not _are_numbers(values):
        return False
    return 0 <= values[0] and values[-1] <= 1 and all(a < b for a, b in pairwise(values))


def _are_limits(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(limit, dict)
        and {"care", "above"} <= limit.keys() <= {"care", "outside", "above"}
        and _are_numbers(limit.values())
        for limit in values.values()
    )


# What is stored as text, and has to be.
TEXTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "donors": ("a list of names", _are_names),
    "lattices": ("a list of names", _are_names),
    "lacking": ("ascending shares", _are_shares),
    "levels": ("ascending shares", _are_shares),
    "limits": ("care, outside and above by check", _are_limits),
}


def spread(prediction: Array) -> Array:
    """Scale of the error that a predicted log1p count is expected to have.

    Counts vary as Poisson's do, so log1p of them, where the mean count is m, by about ``m / (1 + m)^2``.
    """
    return np.sqrt(np.expm1(prediction) * np.exp(-2 * prediction) + EXTRA_VARIANCE)


def misfit(prediction: Array, log_counts: Array) -> Array:
    """How far an interval around a prediction has to reach to hold what was measured, in units of :func:`spread`.

    Values in between two counts can't be measured: an interval that begins between them begins at the lower one.
    """
    below = prediction - np.log1p(np.exp(log_counts))  # the next count, log1p
    return np.maximum(np.maximum(below, log_counts - prediction), 0) / spread(prediction)


def ends(prediction: Array, reach: Array) -> tuple[Array, Array]:
    """Lowest and highest log1p count within reach (in log1p counts) of a prediction, the inverse of :func:`misfit`."""
    tolerance = 1e-4  # counts; rounding of float32
    low = np.expm1(np.maximum(prediction - reach, 0))
    high = np.expm1(prediction + reach)
    return np.log1p(np.maximum(np.ceil(low - tolerance) - 1, 0)), np.log1p(np.floor(high * (1 + 1e-6) + tolerance))


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """Knowledge that a model's trust card, priors and intervals of absent genes rest on.

    Attributes
    ----------
    donors
        Groups left out of training in turn, which errors were measured on.
    lattices
        Arrangements of spots in training.
    lacking
        Shares of the vocabulary that a slide lacks, ascending, at which absent genes were tried.
    levels
        Coverages of ``ranks``, ascending.
    limits
        By check, ``care`` and ``outside``: beyond these a slide is not ``fine``, or not known at all. ``above`` says
        whether larger values are worse.
    prior_r
        Correlation of each gene with its prediction while the slide lacked it, mean over donors, shape (shares,
        genes); NaN where no donor varies in it.
    prior_sd
        Standard deviation of that between donors, shape (genes,); NaN for fewer than two.
    prior_beyond_depth
        As ``prior_r``, given the depth of the spots.
    n_donors
        Number of donors it is known from, shape (genes,).
    errors
        Quantiles of the :func:`misfit` among predictions of one class (between two of :data:`EDGES`), in
        the middle of equal shares, shape (shares, classes, quantiles).
    ranks
        Rank of each gene's misfit among those of its class, as a share, that the share ``levels`` of its values stays
        under; never under the level itself. Shape (shares, levels, genes); NaN where no donor has the gene.
    centroids
        Means of 15 spots in training, log1p counts, of length 1, shape (centroids, genes).
    count_share
        Share of each gene in the counts of training, shape (genes,).
    """

    donors: list[str]
    lattices: list[str]
    lacking: list[float]
    levels: list[float]
    limits: dict[str, dict[str, float]]
    prior_r: Floats32
    prior_sd: Floats32
    prior_beyond_depth: Floats32
    n_donors: Floats32
    errors: Floats32
    ranks: Floats32
    centroids: Floats32
    count_share: Floats32

    def prior(self, lacking: float) -> Floats32:
        """Expected correlation of each gene if it is absent and the slide lacks that share of the vocabulary."""
        return self._between(self.prior_r, lacking)

    def prior_given_depth(self, lacking: float) -> Floats32:
        """As :meth:`prior`, given the depth of the spots."""
        return self._between(self.prior_beyond_depth, lacking)

    def reach(self, prediction: Floats32, genes: Ints, lacking: float, level: float) -> Floats:
        """How far intervals have to reach to hold this share of left-out donors' values.

        Parameters
        ----------
        prediction
            Predicted log1p counts of absent genes, shape (spots, genes given).
        genes
            Vocabulary indices of the columns.
        lacking
            Share of the vocabulary that the slide lacks.
        level
            One of ``levels``.

        Returns
        -------
        In log1p counts, of the prediction's shape; NaN for genes that no donor has.

        Raises
        ------
        ValueError
            If the level is none of ``levels``.
        """
        errors = self._between(self.errors, lacking)
        rank = self._between(self.ranks[:, self.find_level(level)], lacking)[genes]
        known = np.isfinite(rank)
        n = errors.shape[1]
        at = np.clip(np.ceil(np.where(known, rank, 0) * n).astype(int), 0, n - 1)
        found = errors[np.digitize(prediction, EDGES), at]
        return np.where(known, found * spread(prediction.astype(np.float64)), np.nan)

    def find_level(self, level: float) -> int:
        """Position of a level among those known.

        Raises
        ------
        ValueError
            If it is none of them.
        """
        found = np.flatnonzero(np.isclose(self.levels, level))
        if not len(found):
            raise ValueError(f"intervals of genes that the slide lacks are known at {self.levels}, not at {level:g}.")
        return int(found[0])

    def _between(self, values: Floats32, lacking: float) -> Floats32:
        """Values at a share between those tried; at the nearest beyond them."""
        position = float(np.interp(lacking, self.lacking, np.arange(len(self.lacking))))
        low = min(int(position), len(self.lacking) - 1)
        high = min(low + 1, len(self.lacking) - 1)
        weight = np.float32(position - low)
        return (1 - weight) * values[low] + weight * values[high]

    def distance(self, means: Array, genes: Ints) -> Floats:
        """Cosine distance of means of 15 spots to the nearest centroid, over the genes that the slide has.

        Parameters
        ----------
        means
            Mean log1p counts, shape (spots, genes given).
        genes
            Vocabulary indices of the columns.
        """
        return nearest(means, self.centroids[:, genes])

    def header(self) -> dict[str, Any]:
        """What is stored as text."""
        return {key: getattr(self, key) for key in TEXTS}

    def arrays(self) -> dict[str, Array]:
        """What is stored as tensors, half precision where that does."""
        return {
            field.name: value.astype(np.float32 if field.name in SINGLE else np.float16)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }


def nearest(means: Array, centroids: Array) -> Floats:
    """Cosine distance of each row to the nearest centroid."""
    found = unit(means) @ unit(centroids).T
    return 1 - found.max(axis=1).astype(np.float64)


def unit(rows: Array) -> Floats32:
    """Rows of length 1; rows of zeros stay."""
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def from_file(header: Mapping[str, Any], arrays: Mapping[str, Array], n_genes: int) -> Calibration:
    """Calibration that a weights file holds, its shapes checked.

    Raises
    ------
    ValueError
        If something is missing, of another shape or not finite.
    """
    if header.keys() != TEXTS.keys():
        raise ValueError(f"the calibration names {sorted(header)}, expected {sorted(TEXTS)}.")
    for key, (what, is_right) in TEXTS.items():
        if not is_right(header[key]):
            raise ValueError(f"the calibration's {key} is {header[key]!r:.80}, expected {what}.")
    n_shares, n_levels = len(header["lacking"]), len(header["levels"])
    # As many as there are, one at least.
    n_centroids = max([1, *arrays["centroids"].shape[:1]]) if "centroids" in arrays else 1
    n_quantiles = max([1, *arrays["errors"].shape[2:]]) if "errors" in arrays else 1
    expected = {
        "prior_r": (n_shares, n_genes),
        "prior_sd": (n_genes,),
        "prior_beyond_depth": (n_shares, n_genes),
        "n_donors": (n_genes,),
        "errors": (n_shares, len(EDGES) + 1, n_quantiles),
        "ranks": (n_shares, n_levels, n_genes),
        "centroids": (n_centroids, n_genes),
        "count_share": (n_genes,),
    }
    if arrays.keys() != expected.keys():
        raise ValueError(f"the calibration holds {sorted(arrays)}, expected {sorted(expected)}.")
    for key, shape in expected.items():
        if arrays[key].shape != shape:
            raise ValueError(f"the calibration's {key} has shape {arrays[key].shape}, expected {shape}.")
        if not np.isfinite(arrays[key][~np.isnan(arrays[key])] if key in UNKNOWN else arrays[key]).all():
            raise ValueError(f"the calibration's {key} holds values that are not finite.")
    values: dict[str, Any] = {key: value.astype(np.float32) for key, value in arrays.items()}
    return Calibration(**header, **values)
