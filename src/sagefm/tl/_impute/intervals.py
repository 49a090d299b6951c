"""How far off a predicted value may be: conformal intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sagefm._depth import MIN_DETECTION
from sagefm._slides import Libraries, sample_spots
from sagefm._types import Bools, Floats, Floats32, Ints
from sagefm.models._calibration import ends, misfit, spread

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    from sagefm.models import Model
    from sagefm.tl._compute import Rows
    from sagefm.tl._impute.request import Request
    from sagefm.tl._projection import Target
    from sagefm.tl._run import SlideRun


N_PARTS, ROUNDING = 5, 1e-4
# Spots of one class that lie outside their intervals, on average, so that a quantile is known; classes at most.
OUTSIDE, MAX_CLASSES = 10, 5
# Absent genes: a fifth of the genes that the slide has is hidden on it, to see whether intervals of other donors hold.
HIDDEN, N_SPOTS, MIN_GENES, MIN_DONORS = 5, 500, 10, 3
MAX_WIDENING = 1.5  # a slide that needs more is unlike those donors
SLIDE, DONORS = "slide", "left-out donors"


@dataclass(frozen=True)
class Intervals:
    """Lower and upper ends in log1p counts, shape (spots, genes), and what is known of each gene."""

    names: list[str]
    lower: Floats
    upper: Floats
    coverage: Floats
    source: str
    trusted: Bools
    widened: float = 1.0  # the most of any slide

    def table(self, level: float) -> pd.DataFrame:
        """One row a gene."""
        import pandas as pd

        with np.errstate(invalid="ignore"):
            width = (self.upper - self.lower).mean(axis=0)
        columns = {"level": level, "coverage": self.coverage, "width": width, "source": self.source}
        columns |= {"widened": self.widened, "trusted": self.trusted}
        return pd.DataFrame(columns, index=pd.Index(self.names))


def of_measured(
    names: list[str],
    prediction: Floats32,
    log_counts: sparse.csr_matrix | None,
    tiles: Ints | None,
    level: float,
) -> Intervals:
    """Intervals from the slide's own held-out errors, those of a part of the slide from the other parts.

    Split conformal prediction (Lei et al. 2018, 10.1080/01621459.2017.1307116) with errors in units of their expected
    scale, and tiles of the tissue instead of single spots kept apart, since neighboring spots are alike. Each gene has
    classes of its own, from the spots with the lowest predictions to those with the highest (Mondrian, Vovk et al.
    2003): with one reach for all, intervals of a gene would be too wide where it is low, and too narrow where it
    is high, as it is in the deepest spots.

    Parameters
    ----------
    names
        The genes.
    prediction, log_counts
        Held-out predictions and what was measured, log1p counts, shape (spots, genes).
    tiles
        Tile of each spot.
    level
        Share of values that should lie inside.
    """
    assert log_counts is not None
    assert tiles is not None
    truth = log_counts.toarray()
    part = tiles % min(N_PARTS, int(tiles.max()) + 1)
    p = prediction.astype(np.float64)
    order = np.argsort(p, axis=0, kind="stable")
    errors, part = np.take_along_axis(misfit(p, truth), order, axis=0), part[order]
    reach = np.empty_like(errors)
    n_classes = int(np.clip(len(p) * (1 - level) / OUTSIDE, 1, MAX_CLASSES))
    for rows in np.array_split(np.arange(len(p)), n_classes):
        for number in range(part.max() + 1):
            here = part[rows] == number
            others = np.sort(np.where(here, np.inf, errors[rows]), axis=0)
            n_others = (~here).sum(axis=0)
            at = np.ceil((n_others + 1) * level).astype(int) - 1
            # At the end are the spots left out: everything is possible where there are too few others to say.
            quantile = np.take_along_axis(others, np.minimum(at, len(rows) - 1)[None], axis=0)
            reach[rows] = np.where(here, np.where(at < n_others, quantile, np.inf), reach[rows])
    scaled = np.empty_like(reach)
    np.put_along_axis(scaled, order, reach, axis=0)
    lower, upper = ends(p, scaled * spread(p))
    coverage = ((truth >= lower - ROUNDING) & (truth <= upper + ROUNDING)).mean(axis=0)
    return Intervals(names, lower, upper, coverage, SLIDE, np.ones(len(names), dtype=bool))


def of_absent(
    names: list[str], prediction: Floats32, genes: Ints, run: SlideRun, slides: Libraries, level: float
) -> Intervals:
    """Intervals from the errors on donors that were left out of training, with the genes hidden on whole sections.

    A slide may be less like training than they are. So genes that it has are hidden on it as well, and what their
    intervals lack is made up for, on each slide by itself.
    """
    calibration = run.model.calibration
    assert calibration is not None
    needed = _widening(run, slides, level)
    widened = np.clip(np.nan_to_num(needed, nan=1.0), 1.0, MAX_WIDENING)
    reach = calibration.reach(prediction, genes, run.lacking, level) * widened[slides.codes, None]
    lower, upper = ends(prediction.astype(np.float64), reach)
    # NaN, of too few genes to tell, is no reason for trust.
    trusted = np.asarray((calibration.n_donors[genes] >= MIN_DONORS) & (needed <= MAX_WIDENING).all())
    return Intervals(names, lower, upper, np.full(len(genes), np.nan), DONORS, trusted, float(widened.max()))


def _widening(run: SlideRun, slides: Libraries, level: float) -> Floats:
    """How much wider intervals have to be to hold as much as they should of frequent genes hidden on each slide.

    Below 1 where they hold more; NaN where the slide has too few frequent genes to tell. Shape (slides,).
    """
    calibration, measured, engine = run.model.calibration, run.alignment.measured, run.engine
    assert calibration is not None
    hidden = np.sort(np.random.default_rng(0).permutation(measured)[: len(measured) // HIDDEN])
    projection, target = engine.project([hidden]), engine.target(hidden, read=True)
    assert target.log_counts is not None

    def predict(rows: Rows) -> Floats32:
        return projection.predict(projection.state(rows, "everywhere", [0]), target)

    needed = np.full(len(slides), np.nan)
    for slide, (_, members) in enumerate(slides.rows()):
        spots = sample_spots(run.adata, members, N_SPOTS)
        log_counts = target.log_counts[spots]
        frequent = np.flatnonzero(log_counts.getnnz(axis=0) > MIN_DETECTION * len(spots))
        if len(frequent) < MIN_GENES:
            continue
        found = [block[:, frequent] for _, block in projection.map(predict, "Absent genes", spots)]
        prediction = np.concatenate(found)
        p = prediction.astype(np.float64)
        given = calibration.reach(prediction, hidden[frequent], run.lacking, level) / spread(p)
        missed = misfit(p, log_counts[:, frequent].toarray()) / np.maximum(given, 1e-6)
        needed[slide] = np.nanquantile(missed, level)
    return needed


def check(level: float | None, genes: object, n_absent: int, adata: AnnData, tiles: Ints | None, model: Model) -> None:
    """Refuse what no interval can be given for.

    Raises
    ------
    TypeError
        If the level is no number.
    ValueError
        If the level is no share, genes aren't named, or nothing is known to base intervals on.
    """
    if level is None:
        return
    if isinstance(level, bool) or not isinstance(level, int | float | np.integer | np.floating):
        raise TypeError(f"intervals has to be a share such as 0.9, got {level!r}.")
    if not 0 < level < 1:
        raise ValueError(f"intervals={level!r} has to lie between 0 and 1, such as 0.9.")
    if genes is None:
        raise ValueError("intervals are computed for the genes asked for: name them, as in genes=['KRT8'].")
    if tiles is not None and tiles.max(initial=0) < 1:
        raise ValueError(
            f"{adata.n_obs} spots are too few for intervals of measured genes: a part of the slide is judged by the "
            "others, and parts have 49 spots or more. Leave intervals out."
        )
    if not n_absent:
        return
    if model.calibration is None:
        raise ValueError(
            f"{model.name} carries no calibration, so nothing is known of its errors on genes that a slide lacks. Ask "
            "for measured genes only, leave intervals out, or calibrate the model (sg.train.calibrate)."
        )
    model.calibration.find_level(level)


def compute(
    run: SlideRun,
    request: Request,
    predicted: Sequence[Floats32],
    absent: Floats32,
    targets: Sequence[Target],
    tiles: Ints | None,
    slides: Libraries,
    level: float,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Lower ends, upper ends and the table of all genes, see :func:`sagefm.tl.impute`."""
    import pandas as pd

    symbols = run.model.vocabulary.symbols
    parts = [
        of_measured([symbols[gene] for gene in genes], prediction, target.log_counts, tiles, level)
        for genes, prediction, target in zip(request.targets, predicted, targets, strict=True)
    ]
    if len(request.absent):
        names = [symbols[gene] for gene in request.absent]
        parts.append(of_absent(names, absent, request.absent, run, slides, level))
    names = [name for part in parts for name in part.names]
    lower, upper = (
        pd.DataFrame(np.hstack(ends).astype(np.float32), index=run.adata.obs_names, columns=names)
        for ends in ([part.lower for part in parts], [part.upper for part in parts])
    )
    return lower, upper, pd.concat([part.table(level) for part in parts])
