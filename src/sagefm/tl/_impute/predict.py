"""Prediction of genes from the rest of the spot and its neighbourhood."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sagefm import _keys
from sagefm._anndata import check_free, get_anndata
from sagefm._settings import logger
from sagefm._utils import check_choice, check_whole, shorten
from sagefm.models import available

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model
    from sagefm.models._vocabulary import Vocabulary
    from sagefm.pp._genes import Alignment

# Seed of the gene folds. Part of the method: a gene is in the same fold on every slide.
FOLD_SEED = 2601


def impute(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str] | None = None,
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    mask: Literal["center", "everywhere"] = "center",
    n_folds: int = 4,
    reliability: bool = True,
    intervals: float | None = None,
    key_added: str = _keys.IMPUTED,
    layer: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    device: str = "auto",
    batch_size: int | None = None,
    dtype: Literal["float32", "tf32", "bfloat16"] = "float32",
    store: str | Path | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Predict genes, each from everything but itself.

    Measured genes are split into folds; each fold is predicted while all of it is masked, so no predicted
    value has seen the measured one. Genes that the slide lacks are predicted with nothing masked.

    Parameters
    ----------
    adata
        Slide with raw counts and the graph of :func:`sagefm.pp.neighborhood_graph`.
    genes
        Genes to predict, as ``var_names``, symbols, former symbols or Ensembl ids of the model's vocabulary,
        measured or not. By default every measured gene that the model knows.
    model
        Name, path or loaded model, see :func:`sagefm.models.load`.
    mask
        Where a fold is masked: at the spot alone (``"center"``, the model's training task, which lets it
        read the gene in the neighbours), or in its neighbours too (``"everywhere"``, as if the slide
        lacked it).
    n_folds
        Number of folds; each masks about ``1 / n_folds`` of the genes. Fixed by the position of the gene
        in the vocabulary and a fixed seed, so not by the order or choice of genes.
    reliability
        Score every measured gene asked for by its held-out predictions, beside a baseline that needs no model; say
        what to expect of absent ones, if the model carries a calibration.
    intervals
        Share of values, such as 0.9, that intervals are to cover; none by default. For genes that are named. Those
        of absent genes exist at 0.8, 0.9 and 0.95, and need a model with a calibration.
    key_added
        Where the predictions go, in ``layers`` and ``obsm``. Of what is there already only the default key and
        results of this function are overwritten.
    layer
        Layer with the raw counts; ``X`` by default.
    connectivity_key
        Graph in ``obsp``, as in :func:`sage_embed`.
    device
        ``"cuda"``, ``"mps"``, ``"cpu"``, or the first of them there is (``"auto"``).
    batch_size
        Spots at a time; it changes memory and speed only. By default 2,048.
    dtype
        Precision of the products, as in :func:`sage_embed`.
    store
        Folder to make, ending in ``.zarr``, that the layer is written to as it is computed, instead of being held in
        memory; ``layers["sage_imputed"]`` is then a dask array that reads it. As in :func:`sage_embed`.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    copy
        Return a copy instead of writing in place.

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
          error / squares around the mean. ``rmse``, in log1p counts.
        - ``baseline_r``: the same correlation of the neighbours' mean scaled by the spot's depth, without the
          gene's fold; with ``mask="everywhere"``, where no spot shows the gene, of the depth alone.
        - ``difference``, ``difference_se``: of ``r`` and ``baseline_r``, with its standard error when
          blocks of 49 spots or more are drawn anew (300 times). ``difference_pval``: one-sided, that it is not
          above 0; ``difference_padj`` adjusted. NaN where fewer than five blocks show the gene.
        - ``reliable``: ``difference_padj`` < 0.05, and ``r`` above 0 with ``padj`` < 0.05. The model knows more of
          this gene on this slide than its neighbours do, which may be little: read ``r`` too.
    ``var["sage_reliability"]``
        ``r`` of each column's gene; NaN where it was not asked for or doesn't vary. Of another ``key_added``,
        ``var[f"{key_added}_reliability"]``.
    ``uns["sage_imputed"]["prior"]``
        What to expect of each absent gene asked for (with ``reliability`` and a model that carries a calibration):
        ``r``, its correlation on donors left out of training while it and as much of the vocabulary as here were
        hidden (25 to 95 %, so far as was tried), mean over donors; ``r_sd`` between them; their number
        ``n_donors``. NaN where no donor has it.
    ``obsm["sage_imputed_lower"]``, ``obsm["sage_imputed_upper"]``
        Lowest and highest log1p count to be expected of a spot (with ``intervals``), ``DataFrame`` of shape (spots,
        genes). Both are log1p of whole counts, so a rare gene's interval may be 0 alone. The upper end is infinite
        where the slide has too few spots for the share.
    ``uns["sage_imputed"]["intervals"]``
        One row a gene: ``level``; ``coverage``, the share of measured values inside, NaN for absent genes; mean
        ``width``; and ``source``. ``"slide"``: from the held-out errors of this gene in other parts of this slide
        (split conformal, five sets of tiles). ``"left-out donors"``: from errors on donors left out of training,
        among predictions as high as this one, wider if the gene's own were larger; on a donor unlike those they
        cover less.
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
        If the counts are no raw counts, too few genes are known, an argument is wrong, or there is nothing to base
        ``intervals`` on.
    RuntimeError
        If the layer would be larger than the memory that is free, which ``store`` doesn't need.
    FileExistsError
        If there is something at ``store``.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Methods: masked central spot prediction. A gene that is not reliable may still be
    predicted well, by its neighbours: look at ``r``.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.impute(adata, ["KRT8", "COL1A1"], "sagefm-mini")
    >>> adata[:, "KRT8"].layers["sage_imputed"].shape
    (100, 1)
    >>> adata.uns["sage_imputed"]["reliability"].index.tolist()
    ['COL1A1', 'KRT8']
    """
    import pandas as pd

    from sagefm._io.sink import Store
    from sagefm.tl import _engine
    from sagefm.tl._impute import intervals as _intervals
    from sagefm.tl._impute.reliability import HeldOut, spatial_blocks

    check_choice("mask", mask, ("center", "everywhere"))
    n_folds = check_whole("n_folds", n_folds, 2)  # so that something is left to predict from
    adata = get_anndata(adata, table_key, copy=copy)
    ends_keys = [template.format(key_added) for template in (_keys.LOWER, _keys.UPPER)]
    disk = None if store is None else Store(store)
    if isinstance(genes, str) and genes in available().index:
        raise ValueError(f"genes={genes!r} is the name of a model: pass it as model={genes!r}.")
    column = _keys.RELIABILITY if key_added == _keys.IMPUTED else _keys.RELIABILITY_OF.format(key_added)
    made = [*(("obsm", key) for key in ends_keys), ("var", column)]
    check_free(adata, key_added, _keys.IMPUTED, ["layers", "obsm"], "tl.impute", made)
    if not isinstance(reliability, bool | np.bool_):
        raise TypeError(f"reliability has to be True or False, got {reliability!r}.")
    if key_added == layer:
        raise ValueError(f"key_added={key_added!r} is the layer that the counts are read from.")
    engine, loaded, alignment, is_new = _engine.prepare(
        adata,
        model,
        layer=layer,
        connectivity_key=connectivity_key,
        device=device,
        batch_size=batch_size,
        dtype=dtype,
    )
    measured, absent = _requested(adata, genes, alignment, loaded.vocabulary)
    if disk is None and len(measured):
        _check_memory(adata)
    tiles = spatial_blocks(adata, engine.graph) if len(measured) and (reliability or intervals is not None) else None
    _intervals.check(intervals, genes, len(absent), adata, tiles, loaded)

    fold_of = gene_folds(len(loaded.vocabulary), n_folds)
    folds = [np.flatnonzero(fold_of == fold) for fold in np.unique(fold_of[measured])]
    targets = [np.intersect1d(fold, measured) for fold in folds]
    columns = [_columns_of(alignment.index, target) for target in targets]
    scored = reliability or intervals is not None
    prepared = [engine.target(target, read=scored) for target in targets]
    prepared_absent = engine.target(absent)

    predicted_absent = np.empty((adata.n_obs, len(absent)), dtype=np.float32)
    kept = [np.empty((adata.n_obs, len(target) if intervals else 0), dtype=np.float32) for target in targets]
    held_out = None
    if reliability and tiles is not None:
        log_counts = [target.log_counts for target in prepared]
        held_out = HeldOut(tiles, engine, targets, log_counts, folds, neighbors_show=mask == "center")
    params = {"function": "tl.impute", "model": loaded.name, "mask": mask, "n_folds": n_folds, "dtype": dtype}
    params["connectivity_key"] = connectivity_key
    if layer is not None:
        params["layer"] = layer
    symbols, lacking = loaded.vocabulary.symbols, 1 - len(alignment.measured) / len(loaded.vocabulary)
    absent_names = [symbols[gene] for gene in absent]
    tables: dict[str, pd.DataFrame] = {}
    results: dict[tuple[str, str], Any] = {}
    with nullcontext() if disk is None else disk:
        if disk is not None:
            disk.begin(adata, connectivity_key)
        layer_rows = np.empty((0, adata.n_vars), dtype=np.float32)
        if len(measured) and disk is not None:
            results["layers", key_added] = disk.empty("layers", key_added, adata.shape)
            layer_rows = np.full((min(engine.batch_size, adata.n_obs), adata.n_vars), np.nan, dtype=np.float32)
        elif len(measured):
            results["layers", key_added] = np.full(adata.shape, np.nan, dtype=np.float32)
        engine.project(folds)
        for rows in engine.blocks("Imputing"):
            with engine.computing(rows):
                states = engine.states(rows, mask) if len(measured) else ()
                found = [engine.predict(state, target) for state, target in zip(states, prepared, strict=True)]
                for state in engine.states(rows) if len(absent) else ():
                    predicted_absent[rows] = engine.predict(state, prepared_absent)
                if held_out is not None:
                    held_out.add(rows, found)
                if disk is None and len(measured):
                    block = results["layers", key_added][rows]
                else:
                    block = layer_rows[: rows.stop - rows.start]
                for (into, source), prediction, held in zip(columns, found, kept, strict=True):
                    block[:, into] = prediction[:, source]
                    held[rows] = prediction[:, : held.shape[1]]
                if disk is not None and len(measured):
                    results["layers", key_added][rows] = block

        if held_out is not None:
            tables["reliability"] = held_out.table(symbols)
        if reliability and len(absent) and loaded.calibration is not None:
            known = loaded.calibration
            prior = {"r": known.prior(lacking), "r_sd": known.prior_sd, "n_donors": known.n_donors}
            tables["prior"] = pd.DataFrame({key: value[absent] for key, value in prior.items()}, pd.Index(absent_names))
        if len(absent):
            table = pd.DataFrame(predicted_absent, index=adata.obs_names, columns=absent_names)
            results["obsm", key_added] = table
        if intervals is not None:
            parts = []
            for target, prediction, part in zip(targets, kept, prepared, strict=True):
                names = [symbols[gene] for gene in target]
                parts.append(_intervals.of_measured(names, prediction, part.log_counts, tiles, intervals))
            if len(absent):
                parts.append(_intervals.of_absent(absent_names, predicted_absent, absent, loaded, lacking, intervals))
            *ends, tables["intervals"] = _intervals.join(parts, intervals, adata.obs_names)
            results |= {("obsm", key): end for key, end in zip(ends_keys, ends, strict=True)}
        results["uns", key_added] = {"params": params, **tables}
        if disk is not None:
            for (slot, key), value in results.items():
                if slot != "layers":
                    disk.write(slot, key, value)
            var = adata.var.assign(**{_keys.GENE_INDEX: alignment.index})
            disk.write_genes(_with_reliability(var, column, tables, alignment, measured), alignment.report)
            disk.close()
            if len(measured):
                results["layers", key_added] = disk.read("layers", key_added)

    if is_new:
        alignment.write(adata)
    # One key holds one result: what an earlier call left there would carry this call's parameters.
    for slot, key in (("layers", key_added), *(("obsm", key) for key in (key_added, *ends_keys))):
        getattr(adata, slot).pop(key, None)
    for (slot, key), value in results.items():
        getattr(adata, slot)[key] = value
    n_genes = {"layers": f" ({len(measured)} measured genes)", "obsm": f" ({len(absent)} absent genes)"}
    written = [f"{slot}['{key}']{n_genes[slot] if key == key_added else ''}" for slot, key in results if slot != "uns"]
    written += [f"uns['{key_added}']['{name}']" for name in tables]
    adata.var = _with_reliability(adata.var, column, tables, alignment, measured)
    scores = tables.get("reliability")
    if scores is not None:
        written.append(f"var['{column}']")
    if disk is not None:
        written.append(str(disk.path))
    logger.info("Imputed %d spots with %s; wrote %s.", adata.n_obs, loaded.name, ", ".join(written))
    if scores is not None:
        logger.info(
            "%d of %d genes are predicted better than by %s (reliable).",
            scores["reliable"].sum(),
            len(scores),
            "the neighbours' mean, scaled by depth" if mask == "center" else "the spot's depth",
        )
    if reliability and len(absent) and "prior" not in tables:
        logger.info("%s carries no calibration, so absent genes come without a prior.", loaded.name)
    return adata if copy else None


def gene_folds(n_genes: int, n_folds: int) -> NDArray[np.int64]:
    """Fold of each gene of a vocabulary, of sizes that differ by one at most."""
    return np.random.default_rng(FOLD_SEED).permutation(n_genes) % n_folds


def _requested(
    adata: AnnData, genes: str | Sequence[str] | None, alignment: Alignment, vocabulary: Vocabulary
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vocabulary indices of the genes asked for: measured (ascending), and absent (as asked)."""
    measured = alignment.measured
    if genes is None:
        if not len(measured):
            raise ValueError("the slide has no gene that the model knows, so there is nothing to impute.")
        return measured, np.empty(0, dtype=np.int64)
    if not isinstance(genes, Iterable):
        raise TypeError(f"genes has to be a name or a list of names, got {genes!r}.")
    names = [genes] if isinstance(genes, str) else list(genes)
    if bad := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"genes has to hold names, got {bad[0]!r}.")
    if not names:
        raise ValueError("genes is empty; leave it out to impute every measured gene.")
    wanted = alignment.find(adata, vocabulary, names)
    unknown = [name for name, gene in zip(names, wanted, strict=True) if gene < 0]
    if unknown:
        upper = [name.upper() for name in unknown]
        meant = [name for name, gene in zip(upper, vocabulary.find_symbols(upper), strict=True) if gene >= 0]
        raise KeyError(
            f"not in the vocabulary of the model ({vocabulary.name}, {len(vocabulary)} genes): {shorten(unknown)}."
            + (f" Symbols are in capitals: {shorten(meant)}." if meant else "")
        )
    wanted = np.array(list(dict.fromkeys(wanted)))  # once each, in the order asked
    is_measured = np.isin(wanted, measured)
    return np.sort(wanted[is_measured]), wanted[~is_measured]


def _columns_of(index: NDArray[np.int64], target: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns of the slide that are genes of ``target``, and the position there of each."""
    columns = np.flatnonzero(np.isin(index, target))
    return columns, np.searchsorted(target, index[columns])


def _with_reliability(
    var: pd.DataFrame,
    column: str,
    tables: dict[str, pd.DataFrame],
    alignment: Alignment,
    measured: NDArray[np.int64],
) -> pd.DataFrame:
    """``var`` with the scores of each column's gene, or without those of an earlier call."""
    var = var.drop(columns=column, errors="ignore")
    if "reliability" in tables:
        columns, gene = _columns_of(alignment.index, measured)
        r = np.full(len(var), np.nan)
        r[columns] = tables["reliability"]["r"].to_numpy()[gene]
        var = var.assign(**{column: r})
    return var


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
