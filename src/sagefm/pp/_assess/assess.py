"""Whether a model can be trusted on a slide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from sagefm import _keys, models
from sagefm._anndata import open_run
from sagefm._docs import fill_docstring
from sagefm._io.files import atomic
from sagefm._settings import ROWS_AT_A_TIME, logger
from sagefm._slides import Libraries, find_libraries, sample_spots
from sagefm._types import Floats, Ints
from sagefm._utils import progress
from sagefm.pp._assess import card as _card
from sagefm.pp._assess import checks as _checks
from sagefm.pp._assess.checks import CARE, UNKNOWN, VERDICTS, Check, Distances
from sagefm.pp._assess.markers import MARKERS
from sagefm.pp._counts import Counts
from sagefm.pp._genes import Alignment, get_alignment
from sagefm.pp._graph import get_graph

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model
    from sagefm.models._calibration import Calibration

N_SAMPLED = 1_000
COLUMNS = ["value", "care", "outside", "worse", "verdict", "text"]


@fill_docstring
def assess(
    adata: AnnData | SpatialData,
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    layer: str | None = None,
    library_key: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    key_added: str = _keys.ASSESSMENT,
    save: str | Path | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Say whether a model can be trusted on a slide: its trust card.

    The model is tried on the slide itself, beside plain baselines. The slide's genes, depth, arrangement and expression
    are compared with what the model was trained on and with how it did on donors left out of training.

    Parameters
    ----------
    {adata}
    {model}
    {layer}
    {library_key}
    {connectivity_key}
    {key_added}
    save
        File to write the card to, ``.html`` or ``.txt``.
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes ``uns["sage_assessment"]``:

    ``verdict``
        The worst of the checks. ``"fine"``: the model is ahead of every baseline on this slide, which is like those of
        left-out donors of which it knew more than depth. ``"with care"``: in some respect not, or a check couldn't be
        made. ``"outside what the model knows"``: it knows no more than the depth of the spots, or the slide lies
        beyond all that was tried.
    ``checks``
        One row each, with its ``value``, limits ``care`` and ``outside``, on which side of them values are ``worse``,
        ``verdict`` and ``text``. One that can't be looked at is ``"unknown"``, and lets the slide pass with care only:

        - ``genes``: share of the vocabulary that the slide lacks.
        - ``depth``: median counts of a spot in the model's genes; what a panel leaves out is made up for by the share
          that its genes have of the counts in training. Of several slides, the worst one is named here and below.
        - ``neighbors``: share of spots with a neighbor more than five spacings away, or none; and whether all have as
          many as in training.
        - ``lattice``: arrangement and spacing of the spots.
        - ``expression``: median cosine distance of the spots' neighborhood means to the nearest of the training
          data's, over the genes that the slide has (of 1,000 spots a slide).
        - ``prediction``: r beyond depth of the model, over the genes in more than 30 % of the spots, while a third of
          the genes is hidden in each of 1,000 spots a slide. ``fine`` where this r, and RMSE over all hidden values,
          are better than those of depth alone, of the neighbors' mean × depth and of diffusion × depth. With care
          where r is above that of depth alone by more than 0.02. Unknown with fewer than 10 genes, or where nothing
          varies beyond depth and chance.
        - ``training``: share of the spots that the model was trained on, if it carries their hashes; with care above
          5 %.
        - ``species``: only where genes were translated by a table of orthologs.
    ``slides``
        One row for each slide: its ``verdict``, and the value and verdict of each check that looks at slides, such as
        ``depth_value`` and ``depth_verdict``.
    ``expected_r``, ``expected_r_sd``, ``expected_r_beyond_depth``
        Correlation to expect of a gene that the slide lacks, mean over those genes (all genes if none is lacking); its
        standard deviation between donors; and the same correlation given depth. NaN where the model carries no
        calibration.
    ``markers_unknown``, ``markers_missing``
        Well-known genes that the model doesn't know, and that it knows but the slide lacks.
    ``text``
        All this to read.

    Raises
    ------
    KeyError
        If the graph or the layer is missing.
    ValueError
        If the counts are not raw, the slide is empty, or ``save`` has another ending.

    Notes
    -----
    The limits are the model's own, measured when it was calibrated (:func:`sagefm.train.calibrate` says how), but for
    the share of far neighbors, which is a convention. A verdict speaks of slides like this one, not of single genes:
    see :func:`sagefm.tl.impute` for these.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.pp.assess(adata, "sagefm-mini")
    >>> adata.uns["sage_assessment"]["checks"].loc["genes", "verdict"]
    'fine'
    """
    if save is not None and Path(save).suffix not in (".html", ".txt"):
        raise ValueError(f"save={str(save)!r} has to end with .html or .txt.")
    run = open_run(adata, "pp.assess", key_added, _keys.ASSESSMENT, table_key=table_key, copy=copy)
    loaded = models.load(model)
    # Panels are judged, not refused.
    alignment, _ = get_alignment(run.adata, loaded.vocabulary, min_coverage=0)
    of_all = [_checks.genes(run.adata, alignment, loaded.calibration)]
    if alignment.report.get("orthologs"):
        of_all.append(Check("species", np.nan, "genes of another species, by a table of orthologs", verdict=CARE))
    libraries = find_libraries(run.adata, library_key, connectivity_key)
    counts = Counts(run.adata, alignment.index, layer)
    by_slide = _check_slides(run.adata, libraries, counts, connectivity_key, alignment, loaded)
    worst = _worst_of(by_slide)
    checks = [of_all[0], *worst, *of_all[1:]]
    params = {
        "model": loaded.name,
        "connectivity_key": connectivity_key,
        "n_spots": run.adata.n_obs,
        "layer": layer,
        "library_key": libraries.key,
    }
    found = {
        "verdict": _verdict(checks),
        "checks": _tabulate(checks),
        "slides": pd.DataFrame(
            {
                "verdict": [_verdict([*of_all, *found]) for found in by_slide.values()],
                **{
                    f"{check.name}_{what}": [getattr(found[i], what) for found in by_slide.values()]
                    for i, check in enumerate(worst)
                    for what in ("value", "verdict")
                },
            },
            index=pd.Index(by_slide, name="slide"),
        ),
        **_expected_r(alignment, loaded.calibration),
        **_markers(alignment, loaded),
    }
    found["text"] = _card.to_text(found | {"params": params})
    if save is not None:
        html = Path(save).suffix == ".html"
        text = _card.to_html(found | {"params": params}) if html else found["text"] + "\n"
        with atomic(save) as partial:
            partial.write_text(text, encoding="utf-8")
    logger.info("%s\nWrote uns['%s'].", found["text"], key_added)
    return run.commit({}, params, **found)


def _verdict(checks: list[Check]) -> str:
    """Worst of some checks; what couldn't be looked at is no reason for trust."""
    return max((CARE if check.verdict == UNKNOWN else check.verdict for check in checks), key=VERDICTS.index)


def _tabulate(checks: list[Check]) -> pd.DataFrame:
    return pd.DataFrame(checks, index=[check.name for check in checks])[COLUMNS]


def _check_slides(
    adata: AnnData, libraries: Libraries, counts: Counts, connectivity_key: str, alignment: Alignment, model: Model
) -> dict[str, list[Check]]:
    """Look at each slide."""
    import torch

    from sagefm.pp._assess.trial import judge, try_slide

    genes = alignment.measured
    graph, slides = get_graph(adata, connectivity_key), dict(libraries.rows())
    picked = np.sort(np.concatenate([sample_spots(adata, spots, N_SAMPLED) for spots in slides.values()]))
    needed = np.union1d(picked, graph[picked].indices)
    totals, log_counts = _read(counts, needed, len(model.vocabulary))
    around = graph[needed][:, needed]
    canonical = model.canonical().to(torch.device("cpu"), torch.float32)
    found = {}
    for name, spots in progress(slides.items(), "Trying slides", total=len(slides), unit="slide"):
        distances = Distances(adata, spots, connectivity_key)
        rows = np.searchsorted(needed, np.intersect1d(picked, spots))
        found[name] = [
            _checks.depth(totals[spots], alignment, model.calibration),
            _checks.neighbors(graph, spots, distances, model),
            _checks.lattice(distances, model.calibration),
            _checks.expression(_neighborhoods(log_counts, around, rows), alignment, model.calibration),
            _checks.prediction(tried := try_slide(canonical, log_counts, around, rows, genes), judge(tried)),
            *_checks.training(log_counts[rows], model),
        ]
    return found


def _worst_of(by_slide: dict[str, list[Check]]) -> list[Check]:
    """Worst of the slides in each check, which names it."""
    checks = []
    for found in zip(*by_slide.values(), strict=True):
        name, worst = max(
            zip(by_slide, found, strict=True), key=lambda part: (VERDICTS.index(part[1].verdict), part[1].severity)
        )
        if len(by_slide) > 1:
            text, *limits = worst.text.split(";", 1)
            worst = replace(worst, text=";".join([f"{text} (slide {name!r}, the worst of {len(by_slide)})", *limits]))
        checks.append(worst)
    return checks


def _read(counts: Counts, needed: Ints, n_genes: int) -> tuple[Floats, sparse.csr_matrix]:
    """Counts of every spot, and log1p counts of some in all of the model's genes, shape (needed, genes)."""
    n = counts.n_obs
    totals, kept = np.empty(n), []
    read = counts.reader(np.empty(0, dtype=np.int64), counts.genes)
    for start in range(0, n, ROWS_AT_A_TIME):
        stop = min(start + ROWS_AT_A_TIME, n)
        block = read(slice(start, stop))
        values = sparse.csr_matrix((block.values, block.genes, block.indptr), (stop - start, len(counts.genes)))
        totals[start:stop] = np.asarray(values.expm1().sum(axis=1)).ravel()
        kept.append(values[needed[(needed >= start) & (needed < stop)] - start])
    rows = sparse.vstack(kept, format="csr")
    return totals, sparse.csr_matrix((rows.data, counts.genes[rows.indices], rows.indptr), (len(needed), n_genes))


def _neighborhoods(log_counts: sparse.csr_matrix, graph: sparse.csr_matrix, rows: Ints) -> sparse.csr_matrix:
    """Mean log1p counts of some spots with their neighbors."""
    around = graph[rows]
    size = np.diff(around.indptr) + 1
    return sparse.csr_matrix((around @ log_counts + log_counts[rows]).multiply(1 / size[:, None]))


def _expected_r(alignment: Alignment, calibration: Calibration | None) -> dict[str, float]:
    """Mean priors of the genes that the slide lacks, of all if it lacks none, and their spread."""
    names = ("expected_r", "expected_r_sd", "expected_r_beyond_depth")
    if calibration is None:
        return dict.fromkeys(names, float("nan"))
    lacking = 1 - alignment.report["coverage"]
    prior = calibration.prior(lacking)
    chosen = np.setdiff1d(np.arange(len(prior)), alignment.measured)
    if not np.isfinite(prior[chosen]).any():
        chosen = np.arange(len(prior))
    values = (prior, calibration.prior_sd, calibration.prior_given_depth(lacking))
    return {name: float(np.nanmean(value[chosen])) for name, value in zip(names, values, strict=True)}


def _markers(alignment: Alignment, model: Model) -> dict[str, list[str]]:
    """Well-known genes that the model doesn't know, and that it knows but the slide lacks."""
    names = np.array([name for group in MARKERS.values() for name in group])
    index = model.vocabulary.find(names.tolist())
    missing = (index >= 0) & ~np.isin(index, alignment.measured)
    return {"markers_unknown": names[index < 0].tolist(), "markers_missing": names[missing].tolist()}
