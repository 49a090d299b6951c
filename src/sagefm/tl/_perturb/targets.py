"""In-silico perturbation of a gene and its downstream targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from sagefm import _keys
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._slides import Libraries, find_libraries
from sagefm._stats import adjust_pvalues
from sagefm._types import Floats, Ints
from sagefm._utils import check_choice, check_whole
from sagefm.datasets import textbook_targets
from sagefm.tl._perturb.controls import MIN_CONTROLS, check_controls
from sagefm.tl._perturb.interactions import read_interactions

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model
    from sagefm.tl._perturb.grid import Grid
    from sagefm.tl._perturb.plan import Genes, Pair
    from sagefm.tl._perturb.screen import Screen

Targets: TypeAlias = "Mapping[str, Sequence[str]] | pd.DataFrame"


@fill_docstring
def perturb_targets(
    adata: AnnData | SpatialData,
    targets: Targets | None = None,
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    levels: pd.DataFrame | None = None,
    controls: Literal["matched", "random"] = "matched",
    n_controls: int = 20,
    control_spots: int | None = 500,
    similar: bool = True,
    library_key: str | None = None,
    key_added: str = _keys.PERTURB_TARGETS,
    rng: int | np.random.Generator = 0,
    layer: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    device: str = "auto",
    batch_size: int | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Ask whether a gene in the neighbors moves its known targets more than other genes do.

    Each gene is set to its lowest and to its highest observed log1p count in all neighbors of every spot; its
    targets, masked in the center, are predicted each time. A second run, with targets and controls masked, tells
    whether this is about the gene and its targets: on average the targets have to move more than genes as abundant
    do under this gene, and more than they do themselves under other genes as abundant as this one.

    Parameters
    ----------
    {adata}
    targets
        Targets of each gene: a mapping, or a table with columns ``gene`` and ``target``. By default
        :func:`sagefm.datasets.textbook_targets`.
    {model}
    {levels}
    controls
        Controls of the targets: ``"matched"`` are no gene or target of the call, and nearest in mean and in detection;
        ``"random"`` are drawn from all genes but the perturbed one and its targets, as in the paper.
    n_controls
        Control genes for each target, and as many, matched, for each gene. 0 for neither.
    control_spots
        Spots to score controls on, drawn at random where the slide has more; None takes all.
    {similar}
    library_key
        Column of ``obs`` with the slide, or any other group, of each spot. Adds a table with a row for each group. By
        default, the ``library_key`` of :func:`sagefm.pp.neighborhood_graph`.
    {key_added}
    {rng}
    {layer}
    {connectivity_key}
    {device}
    {batch_size}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``uns["perturb_targets"]["results"]``
        One row for every gene and target: ``gene``, ``target``, ``status`` and the descriptive columns of
        :func:`perturb_lr`, from ``n_spots`` to ``concordant``.
    ``uns["perturb_targets"]["controls"]``
        ``replicate``, ``gene``, ``target``, the ``control`` of that target, and its ``effect``.
    ``uns["perturb_targets"]["tests"]``
        One row for each gene, after one for all (``gene == "all"``): ``n_targets``; ``mean_target``,
        ``mean_control``: mean effect of the targets and of their controls. ``target_t``, ``target_pval``: t-test of
        the targets' mean change, in standard deviations of each, against the means of the control genes, one for each
        replicate (two-sided). ``gene_t``, ``gene_pval``: the same against the targets' means under control genes.
        ``pval`` is the larger of the two; ``padj`` is Benjamini and Hochberg's over the genes.
    ``uns["perturb_targets"]["replicates"]``
        The paper's comparison, of effects E with the targets' controls alone. One row for each ``unit`` (``"gene"``
        takes the mean of its targets, ``"target"`` each by itself), ``library`` and ``replicate`` (``"all"`` pools
        them): ``mean_target``, ``mean_control``, their standard errors ``sem_target`` and ``sem_control``, and ``t``
        and ``pval`` of Student's two-sample t-test.
    ``uns["perturb_targets"]["libraries"]``
        With ``library_key``: ``results`` by ``library``.
    ``uns["perturb_targets"]["params"]``
        What was asked.
    ``var["sage_gene"]``, ``uns["sage_genes"]``
        As :func:`sagefm.pp.align_genes`, if it hasn't run on these genes.

    Raises
    ------
    KeyError
        If the graph, the layer or ``library_key`` is missing.
    ValueError
        If the counts are not raw, too few genes are known, or an argument is wrong.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Methods: in-silico perturbation of upstream genes; Figure 5d to f. The paper tests
    the effects E of all targets against those of random genes: ``replicates``, with ``controls="random"`` and
    ``n_controls=10``. Targets of one gene go together, so that they are no independent draws, and E saturates; in
    ``tests`` a mean over targets is one draw, of mean changes.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_targets(adata, {{"TGFB1": ["COL1A1", "COL3A1", "FN1"]}}, "sagefm-mini", n_controls=5)
    >>> adata.uns["perturb_targets"]["results"]["target"].tolist()
    ['COL1A1', 'COL3A1', 'FN1']
    """
    # The engine brings torch, which takes seconds to import.
    from sagefm.tl._perturb import tables
    from sagefm.tl._perturb.clamp import BATCH_SPOTS
    from sagefm.tl._perturb.levels import read_levels
    from sagefm.tl._perturb.plan import OK, resolve
    from sagefm.tl._perturb.screen import Screen
    from sagefm.tl._run import open_slide

    n_controls = check_controls(n_controls)
    check_choice("controls", controls, ("matched", "random"))
    if control_spots is not None:
        control_spots = check_whole("control_spots", control_spots, 1)
    pairs = _read_targets(targets)
    generator = np.random.default_rng(rng)
    run = open_slide(
        *(adata, model, "tl.perturb_targets", key_added, _keys.PERTURB_TARGETS),
        layer=layer,
        connectivity_key=connectivity_key,
        similar=similar,
        device=device,
        batch_size=batch_size,
        default_batch_size=BATCH_SPOTS,
        table_key=table_key,
        copy=copy,
    )
    libraries = find_libraries(run.adata, library_key, connectivity_key)
    ends = read_levels(levels, run.model.vocabulary)
    screen = Screen(
        *(run.engine, resolve(pairs, run), run.alignment.measured),
        n_controls=n_controls,
        draw=generator if controls == "random" else None,
        ends=ends,
    )
    counts, moments = screen.run(libraries), screen.observed(libraries)
    results = tables.expand(screen, tables.describe(counts.total(), moments.total()), "gene", "target")
    recorded: dict[str, Any] = {"results": results}
    if libraries.key is not None:
        recorded["libraries"] = tables.by_library(screen, counts, moments, libraries, "gene", "target")
    if n_controls and screen.pairs:
        grid = screen.read_controls(control_spots, generator, libraries)
        recorded |= _compare(screen, grid, run.model.vocabulary.symbols, libraries)
    logger.info(
        "Perturbed %d spots with %s; wrote uns['%s']: %d genes and targets, of which %d could be run.",
        *(run.adata.n_obs, run.model.name, key_added, len(pairs), int((results["status"] == OK).sum())),
    )
    params = {
        "controls": controls,
        "n_controls": n_controls,
        "control_spots": control_spots,
        "similar": similar,
        "levels": "slide" if levels is None else "given",
        "library_key": libraries.key,
    }
    return run.commit({}, params, **recorded)


def _read_targets(targets: Targets | None) -> list[tuple[str, str]]:
    """Pairs of gene and target."""
    if targets is None:
        targets = textbook_targets()
    if isinstance(targets, Mapping):
        for gene, names in targets.items():
            if isinstance(names, str):
                raise TypeError(f"targets[{gene!r}] has to be a list of names, got {names!r}.")
        pairs = [(gene, name) for gene, names in targets.items() for name in names]
        if not pairs:
            raise ValueError("targets names no target; leave it out for those of the textbooks.")
        return read_interactions(pairs)
    if not hasattr(targets, "columns"):
        raise TypeError(f"targets has to be a mapping or a DataFrame, got {type(targets).__name__}.")
    if not {"gene", "target"} <= set(targets.columns):
        raise KeyError(f"targets has the columns {list(map(str, targets.columns))}; it needs 'gene' and 'target'.")
    if not len(targets):
        raise ValueError("targets is empty; leave it out for those of the textbooks.")
    return read_interactions(list(targets[["gene", "target"]].itertuples(index=False, name=None)))


def _compare(screen: Screen, grid: Grid, symbols: Sequence[str], libraries: Libraries) -> dict[str, pd.DataFrame]:
    """Controls of the targets, and tests of each gene against them and against genes in its place."""
    import pandas as pd

    from sagefm.tl._perturb.replicates import compare_replicates
    from sagefm.tl._perturb.tables import text_index

    by_source: dict[Genes, list[Pair]] = {}
    for pair in screen.pairs:
        by_source.setdefault(pair.source_genes, []).append(pair)
    rows, places = [], []
    for source, pairs in by_source.items():  # a gene that goes by several names is tested once, under the first
        targets = [pair.target_genes for pair in pairs]
        controls = [screen.controls_of(pair) for pair in pairs]
        sources = controls[0][0]  # control genes of the source
        drawn = list(zip(*(found for _, found in controls), strict=True))  # by replicate and target
        under_source = grid.at([source], [genes for replicate in drawn for genes in replicate])
        under_others = grid.at([genes for genes in sources for _ in targets], targets * len(sources))
        shape = (2, len(sources), len(targets))
        places.append((grid.at([source], targets), np.reshape(under_source, shape), np.reshape(under_others, shape)))
        names = ["_".join(symbols[gene] for gene in genes) for replicate in drawn for genes in replicate]
        for i, (name, effect) in enumerate(zip(names, grid.effect[tuple(under_source)], strict=True)):
            replicate, target = divmod(i, len(targets))
            rows.append((replicate, pairs[0].source, pairs[target].target, name, effect))
    together = [np.concatenate(parts, axis=-1) for parts in zip(*places, strict=True)]
    tests = pd.DataFrame([_test(grid, *place) for place in (together, *places)])
    tests.insert(0, "gene", ["all", *(pairs[0].source for pairs in by_source.values())])
    tests["padj"] = np.append(np.nan, adjust_pvalues(tests["pval"].to_numpy(dtype=float)[1:]))  # over the genes
    controls_table = pd.DataFrame(rows, columns=["replicate", "gene", "target", "control", "effect"])
    found = [(own, under_source) for own, under_source, _ in places]
    # With one library its rows are those of all spots.
    names, effects = (libraries.names, grid.effects) if len(libraries) > 1 else ([], grid.effects[:1])
    replicates = compare_replicates(effects, found, names)
    return {
        "controls": text_index(controls_table),
        "tests": text_index(tests),
        "replicates": text_index(replicates),
    }


def _test(grid: Grid, own: Ints, under_source: Ints, under_others: Ints) -> dict[str, Any]:
    """Mean change of the targets of a gene, beside that of control genes, and that under control genes.

    One mean for each replicate: single targets go together, so that they are no independent draws.
    """
    mean = np.nanmean(grid.change[tuple(own)])
    found: dict[str, Any] = {"n_targets": own[0].size, "mean_target": float(grid.effect[tuple(own)].mean())}
    found["mean_control"] = float(grid.effect[tuple(under_source)].mean())
    pvals = []
    for prefix, at in (("target_", under_source), ("gene_", under_others)):
        means = np.nanmean(grid.change[tuple(at)], axis=1)
        t, pval = _t_test(mean, means[np.isfinite(means)])
        found |= {f"{prefix}t": t, f"{prefix}pval": pval}
        pvals.append(pval)
    return found | {"pval": float(np.max(pvals))}  # NaN if one is


def _t_test(value: float, others: Floats) -> tuple[float, float]:
    """T and two-sided p of one more value among some: their spread is its error."""
    from scipy import stats

    n = len(others)
    if n < MIN_CONTROLS or not np.isfinite(value) or np.ptp(others) <= 0:
        return float("nan"), float("nan")
    t = (value - others.mean()) / (others.std(ddof=1) * np.sqrt(1 + 1 / n))
    return float(t), float(2 * stats.t.sf(abs(t), n - 1))
