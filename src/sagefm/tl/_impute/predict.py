"""Prediction of genes from the rest of the spot and its neighborhood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sagefm import _keys
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._slides import find_libraries
from sagefm._types import Floats, Floats32, Ints, Precision
from sagefm._utils import check_choice, check_whole
from sagefm.models import available
from sagefm.tl._impute.request import N_FOLDS

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm._anndata import Slot
    from sagefm._io.sink import Sink
    from sagefm.models import Model
    from sagefm.tl._compute import Rows
    from sagefm.tl._impute.reliability import HeldOut
    from sagefm.tl._impute.request import Request
    from sagefm.tl._projection import Target
    from sagefm.tl._run import Missing, SlideRun


@fill_docstring
def impute(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str] | None = None,
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    mask: Literal["center", "everywhere"] = "center",
    n_folds: int = N_FOLDS,
    similar: bool = True,
    reliability: bool | Literal["diffusion"] = True,
    intervals: float | None = None,
    missing: Missing = "error",
    key_added: str = _keys.IMPUTED,
    library_key: str | None = None,
    layer: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    device: str = "auto",
    batch_size: int | None = None,
    dtype: Precision = "float32",
    store: str | Path | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Predict genes, each from everything but itself.

    Measured genes are split into folds; each fold is predicted while all of it is masked, so no predicted
    value has seen the measured one. Genes that the slide lacks are predicted with nothing masked.

    Parameters
    ----------
    {adata}
    genes
        Genes to predict, as ``var_names``, symbols, former symbols or Ensembl ids of the model's vocabulary,
        measured or not. By default every measured gene that the model knows.
    {model}
    mask
        Where a fold is masked: at the spot alone (``"center"``, the model's training task, which lets it
        read the gene in the neighbors), or in its neighbors too (``"everywhere"``, as if the slide
        lacked it).
    n_folds
        Number of folds; each masks about ``1 / n_folds`` of the genes. Fixed by the position of the gene
        in the vocabulary and a fixed seed, so not by the order or choice of genes.
    {similar}
    reliability
        Score every measured gene asked for by its held-out predictions, beside predictors that need no model; say
        what to expect of absent ones, if the model carries a calibration. ``"diffusion"`` adds the mean of similar
        spots, the strongest plain predictor.
    intervals
        Share of values, such as 0.9, that intervals are to cover; none by default. For genes that are named. Those
        of absent genes exist at 0.8, 0.9 and 0.95, and need a model with a calibration.
    missing
        What to do with ``genes`` that the model doesn't know: raise an error, or ``"skip"`` them with a warning.
    {key_added}
    {library_key}
    {layer}
    {connectivity_key}
    {device}
    {batch_size}
    {dtype}
    {store}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``layers["sage_imputed"]``
        Predicted log1p counts of measured genes, float32, shape (spots, columns); NaN for columns not asked
        for or unknown to the model. Columns that are one gene get its prediction each. Not written when
        only absent genes are asked for.
    ``obsm["sage_imputed"]``
        ``DataFrame`` of log1p counts of genes asked for that the slide lacks, shape (spots, genes), named
        by the vocabulary's symbols. Not written when there are none. What an earlier call wrote under the
        same key is removed from both slots.
    ``uns["sage_imputed"]["reliability"]``
        How well each measured gene asked for was predicted (with ``reliability``), one row a gene, named by the
        vocabulary's symbols:

        - ``r``, ``pval``, ``padj``: Pearson correlation over spots of prediction and measured log1p count, its
          p-value as if spots were independent, and adjusted by Benjamini and Hochberg. ``r2``: 1 - squared
          error / squares around the mean. ``rmse``, in log1p counts. Most of ``r`` is depth: read the next columns.
        - ``depth_r``: the same correlation of the depth alone (the spot's log1p counts outside the gene's fold).
          ``neighbors_r``: of the neighbors' mean times the spot's depth relative to theirs; not with
          ``mask="everywhere"``, where no neighbor shows the gene. ``diffusion_r``: of the mean of similar spots times
          the depth (with ``reliability="diffusion"``).
        - ``r_beyond_depth``: partial correlation given depth. Prediction and measured values are regressed on a cubic
          spline of the log of the spot's counts outside the fold, and what is left is correlated. Spots with fewer
          than 10 counts are left out. ``r_beyond_depth_se``: its standard error when blocks of 49 spots or more are
          drawn anew (300 times). ``depth_r_beyond_depth``, ``neighbors_r_beyond_depth`` and
          ``diffusion_r_beyond_depth``: of the plain predictors.
        - ``attainable_r``: the ``r_beyond_depth`` of a perfect predictor, which counting noise limits. ``share``:
          ``r_beyond_depth / attainable_r``; NaN where nothing is attainable beyond chance.
          Of several slides ``r_beyond_depth`` and ``attainable_r`` are within slides: each has its own regression, and
          differences between slides don't count.
        - ``beyond_pval``: one-sided, from the same draws, that ``r_beyond_depth`` isn't above 0, above that of the
          depth and above that of the neighbors. ``beyond_padj``: adjusted over the genes that have a ``share``, as
          there is nothing to predict of the others.
        - ``testable``: whether five blocks or more show the gene. Where it is False ``reliable`` is False too, but
          nothing is known.
        - ``reliable``: ``beyond_padj`` < 0.05. The model knows more of this gene on this slide than its depth and its
          neighbors do, which may be little: read ``share`` too.
    ``uns["sage_imputed"]["reliability_by_slide"]``
        Of several slides, ``r``, ``r_beyond_depth``, ``attainable_r`` and ``share`` within each; one row a gene and
        ``slide``.
    ``var["sage_reliability"]``
        ``r_beyond_depth`` of each column's gene; NaN where it was not asked for or doesn't vary. Of another
        ``key_added``, ``var[f"{{key_added}}_reliability"]``.
    ``uns["sage_imputed"]["prior"]``
        What to expect of each absent gene asked for (with ``reliability`` and a model that carries a calibration):
        ``r``, its correlation on donors left out of training while it and as much of the vocabulary as here were
        hidden (25 to 95 %, so far as was tried), mean over donors; ``r_sd`` between them; ``r_beyond_depth``, the same
        given the depth of the spots; and their number ``n_donors``. NaN where no donor has it.
    ``obsm["sage_imputed_lower"]``, ``obsm["sage_imputed_upper"]``
        Lowest and highest log1p count to be expected of a spot (with ``intervals``), ``DataFrame`` of shape (spots,
        genes). Both are log1p of whole counts, so a rare gene's interval may be 0 alone. The upper end is infinite
        where the slide has too few spots for the share.
    ``uns["sage_imputed"]["intervals"]``
        One row a gene: ``level``; ``coverage``, the share of measured values inside, NaN for absent genes; mean
        ``width``; and ``source``. ``"slide"``: from the held-out errors of this gene in other parts of this slide,
        among predictions of like rank (split conformal, five sets of tiles, up to five classes of spots).
        ``"left-out donors"``: from errors on donors left out of training, among predictions as high as this one,
        wider if the gene's own were larger. A fifth of each slide's genes is hidden on it too, and its intervals are
        widened until they hold that share of the frequent ones; ``widened`` is the largest factor. ``trusted`` is
        False where a slide would take more than 1.5 or has too few frequent genes to tell, or where fewer than three
        donors have the gene.
    ``uns["sage_imputed"]["params"]``
        The model and what it read.
    ``var["sage_gene"]``, ``uns["sage_genes"]``
        As :func:`sagefm.pp.align_genes`, if it hasn't run on these genes.

    Raises
    ------
    KeyError
        If the graph or the layer is missing, the model knows none of the names of a gene, or there are no
        coordinates to score genes with.
    ValueError
        If the counts are not raw, too few genes are known, an argument is wrong, or there is nothing to base
        ``intervals`` on.
    RuntimeError
        If the layer would be larger than the memory that is free, which ``store`` doesn't need.
    FileExistsError
        If there is something at ``store``.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Methods: masked central spot prediction. A gene that is not reliable may still be
    predicted well, by its neighbors: look at ``r``.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.impute(adata, ["KRT8", "COL1A1"], "sagefm-mini")
    >>> adata[:, "KRT8"].layers["sage_imputed"].shape
    (100, 1)
    >>> adata.uns["sage_imputed"]["reliability"].index.tolist()
    ['KRT8', 'COL1A1']
    """
    # The engine brings torch, which takes seconds to import.
    from sagefm.tl._impute import intervals as conformal
    from sagefm.tl._impute.blocks import spatial_blocks
    from sagefm.tl._impute.reliability import HeldOut
    from sagefm.tl._impute.request import find_request
    from sagefm.tl._run import open_slide

    check_choice("mask", mask, ("center", "everywhere"))
    check_choice("missing", missing, ("error", "skip"))
    n_folds = check_whole("n_folds", n_folds, 2)  # so that something is left to predict from
    if not isinstance(reliability, bool | np.bool_):
        check_choice("reliability", reliability, (True, False, "diffusion"))
    if isinstance(genes, str) and genes in available().index:
        raise ValueError(f"genes={genes!r} is the name of a model: pass it as model={genes!r}.")
    lower, upper = (("obsm", template.format(key_added)) for template in (_keys.LOWER, _keys.UPPER))
    column = ("var", _keys.RELIABILITY if key_added == _keys.IMPUTED else _keys.RELIABILITY_OF.format(key_added))
    run = open_slide(
        *(adata, model, "tl.impute", key_added, _keys.IMPUTED, ["layers", "obsm"], [lower, upper, column]),
        layer=layer,
        connectivity_key=connectivity_key,
        library_key=library_key,
        similar=similar,
        device=device,
        batch_size=batch_size,
        dtype=dtype,
        store=store,
        table_key=table_key,
        copy=copy,
    )
    request = find_request(run, genes, missing, n_folds)
    if not run.sink.name and len(request.measured):
        _check_memory(run.adata)
    scored = bool(len(request.measured)) and (bool(reliability) or intervals is not None)
    slides = find_libraries(run.adata, library_key, connectivity_key)
    tiles = spatial_blocks(run.adata, run.engine.graph, slides) if scored else None
    conformal.check(intervals, genes, len(request.absent), run.adata, tiles, run.model)

    targets = [
        run.engine.target(target, fold if mask == "center" else None, read=scored)
        for target, fold in zip(request.targets, request.folds, strict=True)
    ]
    scores = None
    if reliability and tiles is not None:
        scores = HeldOut(
            *(tiles, slides, run.engine, request.folds, targets),
            neighbors_show=mask == "center",
            diffusion=reliability == "diffusion",
        )
    written: dict[Slot, Any] = {}
    with run.writing() as sink:
        layer_, found, absent = _predict(run, request, targets, mask, sink, scores, keep=intervals is not None)
        if layer_ is not None:
            written["layers", key_added] = layer_
        if len(request.absent):
            written["obsm", key_added] = _spot_table(run, absent, request.absent)
        tables = _tables(run, request, scores, expected=bool(reliability), by_slide=len(slides) > 1)
        if scores is not None:
            beyond = tables["reliability"]["r_beyond_depth"].to_numpy()
            written[column] = _by_column(run.alignment.index, request.measured, beyond)
        if intervals is not None:
            ends = conformal.compute(run, request, found, absent, targets, tiles, slides, intervals)
            written[lower], written[upper], tables["intervals"] = ends
        tables = request.sort(tables, written, run.model.vocabulary.symbols)
        params = {"mask": mask, "n_folds": n_folds, "similar": similar, "library_key": slides.key}
        result = run.commit(written, params, **tables)
    _report(run, request, written, tables, mask)
    return result


def _predict(
    run: SlideRun,
    request: Request,
    targets: list[Target],
    mask: Literal["center", "everywhere"],
    sink: Sink,
    scores: HeldOut | None,
    *,
    keep: bool,
) -> tuple[Any, list[Floats32], Floats32]:
    """Predict each fold while it is hidden, and absent genes with nothing hidden.

    Returns the layer (None without measured genes), the predictions of each fold's targets (with ``keep``, else
    nothing of them), and those of absent genes. Measured genes are scored on the way, since a layer on disk would have
    to be read again for that.
    """
    n_obs, n_vars = run.adata.shape
    absent_target = run.engine.target(request.absent)
    absent = np.empty((n_obs, len(request.absent)), dtype=np.float32)
    kept = [np.empty((n_obs, len(target) if keep else 0), dtype=np.float32) for target in request.targets]
    columns = [_columns_of(run.alignment.index, target) for target in request.targets]
    layer = sink.empty("layers", run.key, (n_obs, n_vars)) if len(request.measured) else None
    projection = run.engine.project(request.folds)

    def predict(rows: Rows) -> tuple[list[Floats32], Floats32 | None]:
        states = projection.states(rows, mask) if targets else ()
        found = [projection.predict(state, target) for state, target in zip(states, targets, strict=True)]
        return found, projection.predict(projection.state(rows), absent_target) if len(request.absent) else None

    for rows, (found, unseen) in projection.map(predict, "Imputing"):
        if unseen is not None:
            absent[rows] = unseen
        if scores is not None:
            scores.add(rows, found)
        block = np.full((len(absent[rows]), n_vars), np.nan, dtype=np.float32)
        for (into, source), prediction, held in zip(columns, found, kept, strict=True):
            block[:, into] = prediction[:, source]
            held[rows] = prediction[:, : held.shape[1]]
        if layer is not None:
            layer[rows] = block
    return layer, kept, absent


def _tables(
    run: SlideRun, request: Request, scores: HeldOut | None, *, expected: bool, by_slide: bool
) -> dict[str, pd.DataFrame]:
    """Scores of measured genes, and what to expect of absent ones where the model knows."""
    import pandas as pd

    symbols, calibration = run.model.vocabulary.symbols, run.model.calibration
    tables = {} if scores is None else {"reliability": scores.table(symbols)}
    if scores is not None and by_slide:
        tables["reliability_by_slide"] = scores.by_slide(symbols)
    if expected and len(request.absent):
        if calibration is None:
            logger.info("%s carries no calibration, so absent genes come without a prior.", run.model.name)
            return tables
        prior = {"r": calibration.prior(run.lacking), "r_sd": calibration.prior_sd}
        prior |= {"r_beyond_depth": calibration.prior_given_depth(run.lacking), "n_donors": calibration.n_donors}
        names = pd.Index([symbols[gene] for gene in request.absent])
        tables["prior"] = pd.DataFrame({key: value[request.absent] for key, value in prior.items()}, names)
    return tables


def _columns_of(index: Ints, target: Ints) -> tuple[Ints, Ints]:
    """Columns of the slide that are genes of ``target``, and the position there of each."""
    columns = np.flatnonzero(np.isin(index, target))
    return columns, np.searchsorted(target, index[columns])


def _by_column(index: Ints, genes: Ints, values: Floats) -> Floats:
    """Value of each column's gene, NaN for others."""
    columns, gene = _columns_of(index, genes)
    spread = np.full(len(index), np.nan)
    spread[columns] = values[gene]
    return spread


def _spot_table(run: SlideRun, values: Floats32, genes: Ints) -> pd.DataFrame:
    import pandas as pd

    symbols = run.model.vocabulary.symbols
    return pd.DataFrame(values, index=run.adata.obs_names, columns=[symbols[gene] for gene in genes])


def _report(
    run: SlideRun, request: Request, written: dict[Slot, Any], tables: dict[str, pd.DataFrame], mask: str
) -> None:
    """Log what was written, and how many genes are reliable."""
    n_genes = {
        ("layers", run.key): f" ({len(request.measured)} measured genes)",
        ("obsm", run.key): f" ({len(request.absent)} absent genes)",
    }
    places = [f"{slot}['{key}']{n_genes.get((slot, key), '')}" for slot, key in written]
    places += [f"uns['{run.key}']['{name}']" for name in tables] + ([run.sink.name] if run.sink.name else [])
    logger.info("Imputed %d spots with %s; wrote %s.", run.adata.n_obs, run.model.name, ", ".join(places))
    if (scores := tables.get("reliability")) is not None:
        logger.info(
            "%d of %d genes are reliable: predicted beyond depth, and better than by %s.%s",
            scores["reliable"].sum(),
            scores["testable"].sum(),
            "their neighbors" if mask == "center" else "the depth alone",
            "" if (n := (~scores["testable"]).sum()) == 0 else f" {n} genes are seen in too few places to tell.",
        )


def _check_memory(adata: AnnData) -> None:
    """Say how large the layer of predictions is, before it is filled.

    Raises
    ------
    RuntimeError
        If less memory than that is free.
    """
    import psutil

    size, free = adata.n_obs * adata.n_vars * 4, psutil.virtual_memory().available
    what = f"layer of predictions takes {size / 1e9:.1f} GB ({adata.n_obs} spots x {adata.n_vars} columns, float32)"
    if size > free:
        raise RuntimeError(
            f"the {what}, and {free / 1e9:.1f} GB of memory are free. Pass store='imputed.zarr' to write it to disk as "
            "it is computed, or predict a slide with only the columns you need."
        )
    if size > 2**30:
        logger.info("The %s; store='imputed.zarr' would write it to disk.", what)
