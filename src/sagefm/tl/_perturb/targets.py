"""In-silico perturbation of a gene and its downstream targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sagefm import _keys
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._slides import find_libraries
from sagefm._types import Floats, Ints
from sagefm._utils import check_whole
from sagefm.datasets import textbook_targets
from sagefm.tl._perturb.interactions import read_interactions

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model
    from sagefm.tl._perturb.plan import Genes, Pair
    from sagefm.tl._perturb.screen import Screen

Targets: TypeAlias = "Mapping[str, Sequence[str]] | pd.DataFrame"


@fill_docstring
def perturb_targets(
    adata: AnnData | SpatialData,
    targets: Targets | None = None,
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    n_controls: int = 10,
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
    """Ask whether a gene in the neighbors moves its known targets more than random genes.

    Each gene is set to its lowest and to its highest observed log1p count in all neighbors of every spot; its
    targets, masked in the center, are predicted each time. Random genes, as many as there are targets, are read
    in a second run with targets and controls masked; the t-tests compare what both do there.

    Parameters
    ----------
    {adata}
    targets
        Targets of each gene: a mapping, or a table with columns ``gene`` and ``target``. By default
        :func:`sagefm.datasets.textbook_targets`.
    {model}
    n_controls
        Times that control genes are drawn; 0 for none. They are varying genes of the slide other than the genes
        and targets of the call.
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
        ``replicate``, ``gene``, ``control`` and its ``effect``.
    ``uns["perturb_targets"]["tests"]``
        Student's t-test of the targets' effects against the controls', two-sided, for each gene and for all
        (``gene == "all"``), pooled over replicates (``replicate == "pooled"``) and for each: ``n_targets``,
        ``n_controls``, ``mean_target``, ``mean_control``, ``t``, ``pval``.
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
    SAGE-FM (arXiv 2601.15504), Methods: in-silico perturbation of upstream genes; Figure 5d to f. Effects of the
    targets of one gene are correlated over spots and among each other, so the tests' p-values say less than
    they seem to.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_targets(adata, {{"TGFB1": ["COL1A1", "COL3A1", "FN1"]}}, "sagefm-mini", n_controls=2)
    >>> adata.uns["perturb_targets"]["results"]["target"].tolist()
    ['COL1A1', 'COL3A1', 'FN1']
    """
    # The engine brings torch, which takes seconds to import.
    from sagefm.tl._perturb import tables
    from sagefm.tl._perturb.clamp import BATCH_SPOTS
    from sagefm.tl._perturb.plan import OK, resolve
    from sagefm.tl._perturb.screen import Screen
    from sagefm.tl._run import open_slide

    n_controls = check_whole("n_controls", n_controls, 0)
    pairs = _read_targets(targets)
    generator = np.random.default_rng(rng)
    run = open_slide(
        *(adata, model, "tl.perturb_targets", key_added, _keys.PERTURB_TARGETS),
        layer=layer,
        connectivity_key=connectivity_key,
        device=device,
        batch_size=batch_size,
        default_batch_size=BATCH_SPOTS,
        table_key=table_key,
        copy=copy,
    )
    libraries = find_libraries(run.adata, library_key, connectivity_key)
    screen = Screen(run.engine, resolve(pairs, run), run.alignment.measured)
    counts, moments = screen.run(libraries), screen.observed(libraries)
    results = tables.expand(screen, tables.describe(counts.total(), moments.total()), "gene", "target")
    recorded: dict[str, Any] = {"results": results}
    if libraries.key is not None:
        recorded["libraries"] = tables.by_library(screen, counts, moments, libraries, "gene", "target")
    if n_controls and screen.pairs:
        recorded |= _compare(screen, run.alignment.measured, n_controls, generator, run.model.vocabulary.symbols)
    logger.info(
        "Perturbed %d spots with %s; wrote uns['%s']: %d genes and targets, of which %d could be run.",
        *(run.adata.n_obs, run.model.name, key_added, len(pairs), int((results["status"] == OK).sum())),
    )
    return run.commit({}, {"n_controls": n_controls, "library_key": libraries.key}, **recorded)


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


def _compare(
    screen: Screen, measured: Ints, n_controls: int, rng: np.random.Generator, symbols: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Controls, and t-tests of targets against them, all from a run with both hidden."""
    import pandas as pd

    from sagefm.tl._perturb.tables import text_index

    by_source: dict[Genes, list[Pair]] = {}
    for pair in screen.pairs:
        by_source.setdefault(pair.source_genes, []).append(pair)
    drawn = _draw_controls(screen, by_source, measured, n_controls, rng)
    readouts = {
        source: [pair.target_genes for pair in pairs]
        + [(gene,) for gene in np.unique(np.concatenate([genes[source] for genes in drawn])).tolist()]
        for source, pairs in by_source.items()
    }
    effects = dict(zip(readouts, screen.effects(readouts), strict=True))
    effect_of = {source: dict(zip(readouts[source], found, strict=True)) for source, found in effects.items()}
    # A gene that goes by several names is tested once, under the first.
    name_of = {source: pairs[0].source for source, pairs in by_source.items()}
    targets = pd.DataFrame(
        [(name_of[p.source_genes], effect_of[p.source_genes][p.target_genes]) for p in screen.pairs],
        columns=["gene", "effect"],
    )
    controls = pd.DataFrame(
        [
            (replicate, name_of[source], symbols[gene], effect_of[source][int(gene),])
            for replicate, genes_of in enumerate(drawn)
            for source, genes in genes_of.items()
            for gene in genes
        ],
        columns=["replicate", "gene", "control", "effect"],
    )
    return {"controls": text_index(controls), "tests": text_index(_tests(targets, controls))}


def _draw_controls(
    screen: Screen, by_source: Mapping[Genes, Sequence[Pair]], measured: Ints, n_controls: int, rng: np.random.Generator
) -> list[dict[Genes, Ints]]:
    """Random genes for each replicate and source, as many as it has targets."""
    varying = measured[screen.statistics.sd[measured] > 0]
    candidates = np.setdiff1d(varying, np.fromiter(screen.genes, dtype=np.int64))
    pool = rng.permutation(candidates)[: max(screen.room, 1)]
    if max(map(len, by_source.values())) > len(pool):
        raise ValueError(f"only {len(pool)} genes of the slide can serve as controls. Ask for fewer targets at a time.")
    return [
        {source: rng.choice(pool, len(pairs), replace=False) for source, pairs in by_source.items()}
        for _ in range(n_controls)
    ]


def _tests(targets: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """Student's t-tests of targets against controls, of each gene and of all, pooled and for each replicate."""
    import pandas as pd

    rows = []
    for gene in ["all", *dict.fromkeys(targets["gene"])]:
        own = targets if gene == "all" else targets[targets["gene"] == gene]
        others = controls if gene == "all" else controls[controls["gene"] == gene]
        for replicate in ["pooled", *controls["replicate"].unique()]:
            part = others if replicate == "pooled" else others[others["replicate"] == replicate]
            t, pval = _t_test(own["effect"].to_numpy(), part["effect"].to_numpy())
            rows.append(
                {
                    "gene": gene,
                    "replicate": str(replicate),
                    "n_targets": len(own),
                    "n_controls": len(part),
                    "mean_target": own["effect"].mean(),
                    "mean_control": part["effect"].mean(),
                    "t": t,
                    "pval": pval,
                }
            )
    return pd.DataFrame(rows)


def _t_test(own: Floats, others: Floats) -> tuple[float, float]:
    """T and p; NaN where there is no t, as E saturates at 1 and -1 and two groups may not vary at all."""
    from scipy import stats

    if min(len(own), len(others)) < 2 or max(np.ptp(own), np.ptp(others)) <= 0:
        return float("nan"), float("nan")
    t, pval = stats.ttest_ind(own, others)
    return float(t), float(pval)
