"""In-silico perturbation of a gene and its downstream targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from sagefm import _keys
from sagefm._anndata import check_free, get_anndata
from sagefm._settings import logger
from sagefm._utils import check_whole
from sagefm.datasets import textbook_targets
from sagefm.tl._perturb.interactions import OK, read_interactions, resolve
from sagefm.tl._perturb.lr import get_libraries, library_rows

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model
    from sagefm.tl._perturb.interactions import Interaction
    from sagefm.tl._perturb.screen import Screen

Targets: TypeAlias = "Mapping[str, Sequence[str]] | pd.DataFrame"


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
    """Ask whether a gene in the neighbours moves its known targets more than random genes.

    Each gene is set to its lowest and to its highest observed log1p count in all neighbours of every spot; its
    targets, masked in the centre, are predicted each time. Random genes, as many as there are targets, are read
    in a second run with targets and controls masked; the t-tests compare what both do there.

    Parameters
    ----------
    adata
        Slide with raw counts and the graph of :func:`sagefm.pp.neighborhood_graph`.
    targets
        Targets of each gene: a mapping, or a table with columns ``gene`` and ``target``. By default
        :func:`sagefm.datasets.textbook_targets`.
    model
        Name, path or loaded model, see :func:`sagefm.models.load`.
    n_controls
        Times that control genes are drawn; 0 for none. They are varying genes of the slide other than the genes
        and targets of the call.
    library_key
        Column of ``obs`` with the slide, or any group, of each spot: adds a table by group.
    key_added
        Where results go.
    rng
        Seed or generator of the controls.
    layer
        Layer with the raw counts; ``X`` by default.
    connectivity_key
        Graph in ``obsp``, as in :func:`sage_embed`.
    device
        ``"cuda"``, ``"mps"``, ``"cpu"``, or the first of them there is (``"auto"``).
    batch_size
        Spots at a time; it changes memory and speed only. By default 1,024.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    copy
        Return a copy instead of writing in place.

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
        If the counts are no raw counts, too few genes are known, or an argument is wrong.

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
    >>> sg.tl.perturb_targets(adata, {"TGFB1": ["COL1A1", "COL3A1", "FN1"]}, "sagefm-mini", n_controls=2)
    >>> adata.uns["perturb_targets"]["results"]["target"].tolist()
    ['COL1A1', 'COL3A1', 'FN1']
    """
    from sagefm.tl import _engine
    from sagefm.tl._perturb.clamp import BATCH_SPOTS
    from sagefm.tl._perturb.screen import Screen
    from sagefm.tl._perturb.tally import Libraries

    n_controls = check_whole("n_controls", n_controls, 0)
    pairs = _read_targets(targets)
    generator = np.random.default_rng(rng)
    adata = get_anndata(adata, table_key, copy=copy)
    check_free(adata, key_added, _keys.PERTURB_TARGETS, [], "tl.perturb_targets")
    libraries = get_libraries(adata, library_key)
    engine, loaded, alignment, is_new = _engine.prepare(
        adata,
        model,
        layer=layer,
        connectivity_key=connectivity_key,
        device=device,
        batch_size=BATCH_SPOTS if batch_size is None else batch_size,
        dtype="float32",
    )
    everywhere = Libraries(["all"], np.zeros(adata.n_obs, dtype=np.int64))
    interactions = resolve(pairs, adata, alignment, loaded.vocabulary)
    screen = Screen(engine, interactions, alignment.measured)
    tally, moments = screen.run(libraries or everywhere), screen.reference(libraries or everywhere)
    names = {"ligand": "gene", "receptor": "target"}
    results = screen.expand(screen.describe(tally.total(), moments.total(), 0)).rename(columns=names)
    written: dict[str, object] = {"results": results}
    if libraries is not None:
        written["libraries"] = library_rows(screen, tally, moments, libraries).rename(columns=names)
    if n_controls and screen.pairs:
        drawn = _draw_controls(screen, alignment.measured, n_controls, generator)
        symbols = loaded.vocabulary.symbols
        control_pairs = [
            _control_pair(pair, gene, symbols[gene]) for (_, pair), genes in drawn.items() for gene in genes
        ]
        # The engine is projected anew, with controls masked beside the targets.
        second = Screen(engine, [*screen.pairs, *control_pairs], alignment.measured)
        effects = second.describe(second.run(everywhere), second.reference(everywhere), 0)["effect"].to_numpy()
        effect_of = {(p.ligand_genes, p.receptor_genes): e for p, e in zip(second.pairs, effects, strict=True)}
        written |= _compare(screen, drawn, effect_of, symbols)

    params: dict[str, object] = {"function": "tl.perturb_targets", "model": loaded.name, "n_controls": n_controls}
    params["connectivity_key"] = connectivity_key
    params |= {name: value for name, value in {"library_key": library_key, "layer": layer}.items() if value is not None}
    if is_new:
        alignment.write(adata)
    adata.uns[key_added] = {"params": params, **written}
    logger.info(
        "Perturbed %d spots with %s; wrote uns['%s']: %d genes and targets, of which %d could be run.",
        adata.n_obs,
        loaded.name,
        key_added,
        len(pairs),
        int((results["status"] == OK).sum()),
    )
    return adata if copy else None


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


def _draw_controls(
    screen: Screen, measured: np.ndarray, n_controls: int, rng: np.random.Generator
) -> dict[tuple[int, Interaction], np.ndarray]:
    """Random genes for each replicate and gene (a pair of it), as many as it has targets."""
    from sagefm.tl._perturb.controls import MAX_MASKED

    used = {gene for pair in screen.pairs for gene in pair.ligand_genes + pair.receptor_genes}
    n_targets = {gene for pair in screen.pairs for gene in pair.receptor_genes}
    candidates = np.setdiff1d(measured[screen.statistics.sd[measured] > 0], np.fromiter(used, dtype=np.int64))
    # More than the model has met masked in training would be masked otherwise.
    room = max(int(MAX_MASKED * len(measured)) - len(n_targets), 1)
    pool = rng.permutation(candidates)[:room]
    by_gene: dict[tuple[int, ...], list[Interaction]] = {}
    for pair in screen.pairs:
        by_gene.setdefault(pair.ligand_genes, []).append(pair)
    if max(map(len, by_gene.values())) > len(pool):
        raise ValueError(f"only {len(pool)} genes of the slide can serve as controls. Ask for fewer targets at a time.")
    return {
        (replicate, members[0]): rng.choice(pool, len(members), replace=False)
        for replicate in range(n_controls)
        for members in by_gene.values()
    }


def _control_pair(pair: Interaction, gene: int, symbol: str) -> Interaction:
    return replace(pair, receptor=symbol, receptor_genes=(int(gene),))


def _compare(
    screen: Screen,
    drawn: dict[tuple[int, Interaction], np.ndarray],
    effect_of: dict[tuple[tuple[int, ...], tuple[int, ...]], float],
    symbols: Sequence[str],
) -> dict[str, pd.DataFrame]:
    """Controls, and t-tests of targets against them, all from the run with both masked."""
    import pandas as pd
    from scipy import stats

    controls = pd.DataFrame(
        [
            (replicate, pair.ligand, symbols[gene], effect_of[pair.ligand_genes, (int(gene),)])
            for (replicate, pair), genes in drawn.items()
            for gene in genes
        ],
        columns=["replicate", "gene", "control", "effect"],
    )
    # A gene that goes by several names is tested once, under the first.
    name_of: dict[tuple[int, ...], str] = {}
    for pair in screen.pairs:
        name_of.setdefault(pair.ligand_genes, pair.ligand)
    targets = pd.DataFrame(
        [(name_of[pair.ligand_genes], effect_of[pair.ligand_genes, pair.receptor_genes]) for pair in screen.pairs],
        columns=["gene", "effect"],
    )
    rows = []
    for gene in ["all", *dict.fromkeys(targets["gene"])]:
        own = targets if gene == "all" else targets[targets["gene"] == gene]
        others = controls if gene == "all" else controls[controls["gene"] == gene]
        for replicate in ["pooled", *controls["replicate"].unique()]:
            part = others if replicate == "pooled" else others[others["replicate"] == replicate]
            row = {"gene": gene, "replicate": str(replicate), "n_targets": len(own), "n_controls": len(part)}
            row |= {"mean_target": own["effect"].mean(), "mean_control": part["effect"].mean()}
            # E saturates at 1 and -1: two groups that don't vary have no t.
            if min(len(own), len(part)) > 1 and max(np.ptp(own["effect"]), np.ptp(part["effect"])) > 0:
                row["t"], row["pval"] = stats.ttest_ind(own["effect"], part["effect"])
            rows.append(row)
    tests = pd.DataFrame(rows, columns=[*rows[0], *(name for name in ("t", "pval") if name not in rows[0])])
    for table in (controls, tests):
        table.index = table.index.astype(str)
    return {"controls": controls, "tests": tests}
