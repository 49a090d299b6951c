"""The checks of the trust card: what a slide shows, and how far from what the model knows that lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from sagefm import _keys
from sagefm._anndata import recorded_params
from sagefm._types import Floats, Ints
from sagefm.models._seen import hash_spots, hashed_genes
from sagefm.pp._genes import Alignment, hint_at_names
from sagefm.pp._graph import FAR_SPACINGS
from sagefm.pp._neighbors import lattice_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from sagefm.models import Model
    from sagefm.models._calibration import Calibration

FINE, CARE, OUTSIDE, UNKNOWN = "fine", "with care", "outside what the model knows", "unknown"
# From good to bad.
VERDICTS = [FINE, UNKNOWN, CARE, OUTSIDE]
MODEL = "model"  # as trials name it, beside the baselines
ABOVE, BELOW = "above", "below"
MANY_TRAINED = 0.05  # share of a slide's spots; single ones may be alike by chance


@dataclass(frozen=True)
class Check:
    """One line of the card; NaN where there is no value or no limit. ``worse`` values lie above or below."""

    name: str
    value: float
    text: str
    care: float = float("nan")
    outside: float = float("nan")
    worse: str = ""
    verdict: str = UNKNOWN

    @property
    def severity(self) -> float:
        """Larger for the worse of two values that are judged alike; 0 where there is nothing to tell by."""
        return {ABOVE: self.value, BELOW: -self.value}.get(self.worse, 0.0)


def _judged(name: str, value: float, text: str, limit: Mapping[str, float] | None, *, form: str) -> Check:
    """A check against limits, which its text names."""
    if limit is None or not np.isfinite(value):
        return Check(name, value, text)
    care, outside, sign = limit["care"], limit.get("outside", float("nan")), 1 if limit["above"] else -1
    verdict = OUTSIDE if sign * value > sign * outside else CARE if sign * value > sign * care else FINE
    way = "up to" if sign > 0 else "from"
    text += f"; fine {way} {care:{form}}"
    if np.isfinite(outside):
        text += f", known {way} {outside:{form}}"
    return Check(name, value, text, care, outside, ABOVE if sign > 0 else BELOW, verdict)


def _limit(calibration: Calibration | None, name: str) -> Mapping[str, float] | None:
    return None if calibration is None else calibration.limits.get(name)


def graph_params(adata: AnnData, connectivity_key: str) -> Mapping[str, Any]:
    """What was recorded of the graph."""
    return recorded_params(adata, _keys.NEIGHBORS.format(connectivity_key.removesuffix("_connectivities")))


def genes(adata: AnnData, alignment: Alignment, calibration: Calibration | None) -> Check:
    lacking = 1 - alignment.report["coverage"]
    n_matched, n = alignment.report["n_matched"], alignment.report["n_vocabulary"]
    text = f"{n_matched:,} of the model's {n:,} genes, so {lacking:.1%} are lacking"
    if lacking > 0.7 and (hint := hint_at_names(adata, alignment.report.get("gene_symbols"))):
        text += f" ({hint.rstrip('. ')})"
    return _judged("genes", lacking, text, _limit(calibration, "lacking"), form=".1%")


def depth(totals: Floats, alignment: Alignment, calibration: Calibration | None) -> Check:
    share = 1.0 if calibration is None else float(calibration.count_share[alignment.measured].sum())
    median = float(np.median(totals)) if len(totals) else 0.0
    value = median / share if share > 0 else 0.0
    text = f"{median:,.0f} counts a spot (median) in the model's genes"
    if share < 0.95 and share > 0:
        text += f", as much as {value:,.0f} in all of them"
    deepest = _limit(calibration, "deepest")
    if deepest is not None and value > deepest["care"]:
        return _judged("depth", value, text, deepest, form=",.0f")
    return _judged("depth", value, text, _limit(calibration, "depth"), form=",.0f")


class Distances:
    """Distances from spots to their neighbors in a graph, as far as they are stored.

    Attributes
    ----------
    known
        Whether any are stored, at ``obsp[key]``; the other attributes are only there if so.
    ranked, degree, first
        Distances, ascending for each spot, how many each has, and where its first is.
    on_lattice
        Whether they are in spacings of the lattice.
    spacing
        Median distance to the nearest neighbor.
    unit
        What the graph records of their unit.
    """

    def __init__(self, adata: AnnData, spots: Ints, connectivity_key: str) -> None:
        self.key = _keys.DISTANCES.format(connectivity_key.removesuffix("_connectivities"))
        stored = adata.obsp.get(self.key)
        self.known = stored is not None
        if stored is None:
            return
        if hasattr(stored, "compute"):  # as read_lazy reads it
            stored = stored.compute()
        rows = sparse.coo_matrix(sparse.csr_matrix(stored)[spots])
        other = rows.col != spots[rows.row]  # a spot is no neighbor of its own
        row, values = rows.row[other], rows.data[other].astype(float)
        self.ranked = values[np.lexsort((values, row))]
        self.degree = np.bincount(row, minlength=len(spots))
        self.first = np.cumsum(self.degree) - self.degree
        nearest = self.ranked[self.first[self.degree > 0]]
        self.spacing = float(np.median(nearest[nearest > 0])) if (nearest > 0).any() else float("nan")
        recorded = graph_params(adata, connectivity_key)
        self.on_lattice, self.unit = recorded.get("method") == "visium", recorded.get("distance_unit")


def neighbors(graph: sparse.csr_matrix, spots: Ints, distances: Distances, model: Model) -> Check:
    """Share of spots with far or no neighbors, and whether they have as many as in training."""
    n_neighbors = np.diff(graph.indptr)[spots]
    expected, unlike = model.n_spots - 1, ""
    if (n_neighbors != expected).any():
        unlike = f"; {n_neighbors.min()} to {n_neighbors.max()} neighbors a spot, where training had {expected}"
    if not distances.known:
        return Check("neighbors", float("nan"), f"no obsp['{distances.key}'], so not looked at{unlike}")
    spacing = 1.0 if distances.on_lattice else distances.spacing
    farthest = distances.ranked[np.cumsum(distances.degree)[distances.degree > 0] - 1]
    far = 1 - float((farthest <= FAR_SPACINGS * spacing).sum()) / len(spots)
    if np.isnan(spacing):
        far = float("nan")
    text = f"{far:.1%} of the spots have a neighbor more than {FAR_SPACINGS:g} spacings away, or none"
    check = _judged("neighbors", far, text, _limit(model.calibration, "far"), form=".0%")
    if unlike and check.verdict == FINE:
        check = replace(check, verdict=CARE)
    return replace(check, text=check.text + unlike)


def lattice(distances: Distances, calibration: Calibration | None) -> Check:
    """Arrangement and spacing of the spots."""
    if not distances.known:
        return Check("lattice", float("nan"), "no distances, so not looked at")
    full, kind = distances.degree >= 6, "irregular"
    if full.any():
        kind, _ = lattice_of(distances.ranked[distances.first[full][:, None] + np.arange(6)])
    unit = "" if distances.unit is None else f" in the unit of {distances.unit}"
    where = f"spots {distances.spacing:.4g} apart{unit}"
    if distances.on_lattice:
        where = "on the lattice of array_row and array_col"
    verdict = UNKNOWN if calibration is None else FINE if kind in calibration.lattices else CARE
    trained = "" if calibration is None else f"; in training: {', '.join(calibration.lattices)}"
    return Check("lattice", distances.spacing, f"{kind}, {where}{trained}", verdict=verdict)


def expression(means: sparse.csr_matrix, alignment: Alignment, calibration: Calibration | None) -> Check:
    if calibration is None:
        return Check("expression", float("nan"), "the model carries no calibration to compare with")
    if not len(alignment.measured):
        return Check("expression", float("nan"), "no genes to compare", verdict=OUTSIDE)
    value = float(np.median(calibration.distance(means[:, alignment.measured].toarray(), alignment.measured)))
    text = f"neighborhoods {value:.2f} from the nearest of training (cosine distance)"
    return _judged("expression", value, text, _limit(calibration, "distance"), form=".2f")


def training(log_counts: sparse.csr_matrix, model: Model) -> list[Check]:
    """Whether the model was trained on some of the spots; nothing where it doesn't carry what they are known by."""
    if model.trained_spots is None or model.gene_mean is None:
        return []
    found, enough = hash_spots(log_counts.expm1(), hashed_genes(model.gene_mean))
    share = float(np.isin(found[enough], model.trained_spots).mean()) if enough.any() else 0.0
    text = f"{share:.0%} of the spots were in the model's training"
    if share > MANY_TRAINED:
        text += ", so all that is said of its predictions flatters it"
    return [Check("training", share, text, MANY_TRAINED, worse=ABOVE, verdict=CARE if share > MANY_TRAINED else FINE)]


def prediction(tried: pd.DataFrame, verdict: str) -> Check:
    """How the model does on the slide itself, in both respects beside the best baseline in each."""
    own, others = tried.loc[MODEL], tried.drop(index=MODEL)
    r, best, closest = own["r_beyond_depth"], others["r_beyond_depth"], others["rmse"]
    if verdict == UNKNOWN:
        text = f"what {own['n_genes']:.0f} hidden genes in over 30% of the spots show is depth and chance"
        return Check("prediction", float("nan"), text)
    text = (
        f"hidden genes: r = {r:.2f} beyond depth ({best.idxmax()} {best.max():.2f}, attainable "
        f"{own['attainable_r']:.2f}), RMSE {own['rmse']:.3f} ({closest.idxmin()} {closest.min():.3f})"
    )
    return Check("prediction", float(r), text, worse=BELOW, verdict=verdict)
