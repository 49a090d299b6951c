"""Whether a model can be trusted on a slide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sagefm import _keys, models
from sagefm._anndata import check_free, get_anndata
from sagefm._io.files import atomic
from sagefm._settings import logger
from sagefm.pp._assess import card as _card
from sagefm.pp._assess import checks as _checks
from sagefm.pp._assess.checks import CARE, UNKNOWN, VERDICTS, Check, recorded_of
from sagefm.pp._assess.markers import MARKERS
from sagefm.pp._counts import Counts
from sagefm.pp._genes import Alignment, get_alignment
from sagefm.pp._graph import get_graph

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model
    from sagefm.models._calibration import Calibration

N_SAMPLED, BATCH_SIZE = 1_000, 2_048


def assess(
    adata: AnnData | SpatialData,
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    layer: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    key_added: str = _keys.ASSESSMENT,
    save: str | Path | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Say whether a model can be trusted on a slide: its trust card.

    Nothing is predicted. The slide's genes, depth, arrangement and composition are compared with what the model was
    trained on and with how it did on donors left out of training.

    Parameters
    ----------
    adata
        Slide with raw counts and the graph of :func:`sagefm.pp.neighborhood_graph`.
    model
        Name, path or loaded model.
    layer
        Layer with the raw counts; ``X`` by default.
    connectivity_key
        Graph in ``obsp``.
    key_added
        Where the card goes, in ``uns``.
    save
        File to write the card to, ``.html`` or ``.txt``.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    copy
        Return a copy instead of writing in place.

    Returns
    -------
    ``None``, or the copy. Writes ``uns["sage_assessment"]``:

    ``verdict``
        ``"fine"``: in every respect like slides of left-out donors on which the model was ahead of the plain
        baseline. ``"with care"``: in some respect not. ``"outside what the model knows"``: beyond what it was tried
        on, or where it is of no use. ``"unknown"``: the model carries no calibration to compare with.
    ``checks``
        One row each, with its ``value``, limits ``care`` and ``outside``, on which side of them values are ``worse``,
        ``verdict`` and ``text``. One that can't be looked at is ``"unknown"``, and lets the slide pass with care only:

        - ``genes``: share of the vocabulary that the slide lacks.
        - ``depth``: median counts of a spot in the model's genes (of each slide, if the graph knows several; here and
          below the worst one is named); what a panel leaves out is made up for by the
          share that its genes have of the counts in training.
        - ``neighbours``: share of spots with a neighbour more than five spacings away, or none; and whether all have as
          many as in training.
        - ``lattice``: arrangement and spacing of the spots.
        - ``composition``: median cosine distance of the spots' neighbourhood means to the nearest of the training
          data's, over the genes that the slide has (of 1,000 spots a slide).
        - ``species``: only where genes were translated by a table of orthologs.
    ``expected_r``, ``expected_r_sd``
        Correlation to expect of a gene that the slide lacks, mean over those genes (all genes if none is lacking),
        and its standard deviation between donors; NaN where the model carries no calibration.
    ``markers_unknown``, ``markers_missing``
        Well-known genes that the model doesn't know, and that it knows but the slide lacks.
    ``text``
        All this to read.

    Raises
    ------
    KeyError
        If the graph or the layer is missing.
    ValueError
        If the counts are no raw counts, the slide is empty, or ``save`` has another ending.

    Notes
    -----
    The limits are the model's own, measured when it was calibrated (:func:`sagefm.train.calibrate` says how), but for
    the share of far neighbours, which is a convention. A verdict speaks of slides like this one, not of single genes:
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
    import pandas as pd

    if save is not None and Path(save).suffix not in (".html", ".txt"):
        raise ValueError(f"save={str(save)!r} has to end with .html or .txt.")
    adata = get_anndata(adata, table_key, copy=copy)
    check_free(adata, key_added, _keys.ASSESSMENT, [], "pp.assess")
    if not adata.n_obs:
        raise ValueError("the slide has no spots.")
    graph = get_graph(adata, connectivity_key)
    loaded = models.load(model)
    slides = _slides(adata, connectivity_key)
    # Panels are judged, not refused.
    alignment, _ = get_alignment(adata, loaded.vocabulary, min_coverage=0)
    picked = np.sort(np.concatenate([_sample(adata, spots) for spots in slides.values()]))
    totals, means = _read(Counts(adata, alignment.index, layer), graph, picked)
    calibration = loaded.calibration
    found_by_slide = [
        [
            _checks.depth(totals[spots], alignment, calibration),
            _checks.neighbours(adata, graph, spots, connectivity_key, loaded),
            _checks.lattice(adata, spots, connectivity_key, calibration),
            _checks.composition(means[np.isin(picked, spots)], alignment, calibration),
        ]
        for spots in slides.values()
    ]
    checks = [_checks.genes(adata, alignment, calibration)]
    for parts in zip(*found_by_slide, strict=True):
        worst = max(range(len(parts)), key=lambda at: (VERDICTS.index(parts[at].verdict), parts[at].badness, -at))
        name = f" (slide {list(slides)[worst]!r}, the worst of {len(slides)})" if len(slides) > 1 else ""
        checks.append(replace(parts[worst], text=parts[worst].text + name))
    if alignment.report.get("orthologs"):
        checks.append(Check("species", np.nan, "genes of another species, by a table of orthologs", verdict=CARE))
    # What couldn't be looked at is no reason for trust.
    levels = [CARE if check.verdict == UNKNOWN else check.verdict for check in checks]
    verdict = UNKNOWN if calibration is None else max(levels, key=VERDICTS.index)
    expected, between = _expected_r(alignment, calibration)
    found = {
        "verdict": verdict,
        "checks": pd.DataFrame(
            {
                "value": [check.value for check in checks],
                "care": [check.care for check in checks],
                "outside": [check.outside for check in checks],
                "worse": [check.worse for check in checks],
                "verdict": [check.verdict for check in checks],
                "text": [check.text for check in checks],
            },
            index=pd.Index([check.name for check in checks]),
        ),
        "expected_r": expected,
        "expected_r_sd": between,
        **_markers(alignment, loaded),
        "params": {
            "function": "pp.assess",
            "model": loaded.name,
            "connectivity_key": connectivity_key,
            "n_spots": adata.n_obs,
        },
    }
    if layer is not None:
        found["params"]["layer"] = layer
    found["text"] = _card.to_text(found)
    if save is not None:
        text = _card.to_html(found) if Path(save).suffix == ".html" else found["text"] + "\n"
        with atomic(save) as partial:
            partial.write_text(text, encoding="utf-8")
    adata.uns[key_added] = found
    logger.info("%s\nWrote uns['%s'].", found["text"], key_added)
    return adata if copy else None


def _slides(adata: AnnData, connectivity_key: str) -> dict[str, NDArray[np.int64]]:
    """Spots of each slide, as the graph tells them apart."""
    library_key = recorded_of(adata, connectivity_key).get("library_key")
    if not isinstance(library_key, str) or library_key not in adata.obs:
        return {"": np.arange(adata.n_obs)}
    library = adata.obs[library_key].map(str).to_numpy(dtype=str)
    return {str(name): np.flatnonzero(library == name) for name in np.unique(library)}


def _sample(adata: AnnData, spots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some of the spots, drawn by name, so that their order doesn't matter."""
    by_name = spots[np.argsort(adata.obs_names[spots].to_numpy().astype(str), kind="stable")]
    return by_name[np.random.default_rng(0).permutation(len(spots))[:N_SAMPLED]]


def _read(
    counts: Counts, graph: sparse.csr_matrix, picked: NDArray[np.int64]
) -> tuple[NDArray[np.float64], sparse.csr_matrix]:
    """Counts of every spot, and mean log1p counts of some spots with their neighbours, in the slide's genes."""
    n = counts.n_obs
    around = graph[picked]
    needed = np.union1d(picked, around.indices)
    totals, kept = np.empty(n), []
    read = counts.reader(np.empty(0, dtype=np.int64), counts.genes)
    for start in range(0, n, BATCH_SIZE):
        stop = min(start + BATCH_SIZE, n)
        block = read(slice(start, stop))
        values = sparse.csr_matrix((block.values, block.genes, block.indptr), (stop - start, len(counts.genes)))
        totals[start:stop] = np.asarray(values.expm1().sum(axis=1)).ravel()
        kept.append(values[needed[(needed >= start) & (needed < stop)] - start])
    rows = sparse.vstack(kept, format="csr")
    members = around[:, needed] + sparse.csr_matrix(
        (np.ones(len(picked)), (np.arange(len(picked)), np.searchsorted(needed, picked))), (len(picked), len(needed))
    )
    members.data[:] = 1
    size = np.asarray(members.sum(axis=1))
    return totals, sparse.csr_matrix((members @ rows).multiply(1 / size))


def _expected_r(alignment: Alignment, calibration: Calibration | None) -> tuple[float, float]:
    """Mean prior correlation of the genes that the slide lacks, of all if it lacks none, and their spread."""
    if calibration is None:
        return float("nan"), float("nan")
    prior = calibration.prior(1 - alignment.report["coverage"])
    chosen = np.setdiff1d(np.arange(len(prior)), alignment.measured)
    if not np.isfinite(prior[chosen]).any():
        chosen = np.arange(len(prior))
    return float(np.nanmean(prior[chosen])), float(np.nanmean(calibration.prior_sd[chosen]))


def _markers(alignment: Alignment, model: Model) -> dict[str, Any]:
    names = [name for group in MARKERS.values() for name in group]
    index = model.vocabulary.find(names)
    has = np.isin(index, alignment.measured)
    return {
        "markers_unknown": [name for name, gene in zip(names, index, strict=True) if gene < 0],
        "markers_missing": [
            name for name, gene, there in zip(names, index, has, strict=True) if gene >= 0 and not there
        ],
    }
