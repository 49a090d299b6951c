"""In-silico perturbation of ligands in the neighborhood."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sagefm import _keys
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._slides import find_libraries
from sagefm._utils import check_choice, check_whole
from sagefm.tl._perturb.controls import check_controls
from sagefm.tl._perturb.interactions import Interactions, read_interactions

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm._types import Floats32
    from sagefm.models import Model
    from sagefm.tl._perturb.screen import Screen
    from sagefm.tl._run import SlideRun

SIDES = ("ligand", "receptor")


@fill_docstring
def perturb_lr(
    adata: AnnData | SpatialData,
    interactions: Interactions | None = None,
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    contrast: Literal["max_vs_min", "max_vs_observed"] = "max_vs_min",
    n_levels: int = 2,
    levels: pd.DataFrame | None = None,
    mask: Literal["all", "pair"] = "all",
    n_controls: int = 20,
    control_spots: int | None = 500,
    n_shuffles: int = 0,
    similar: bool = True,
    library_key: str | None = None,
    store_spots: bool = False,
    key_added: str = _keys.PERTURB_LR,
    rng: int | np.random.Generator = 0,
    layer: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    device: str = "auto",
    batch_size: int | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Ask what a ligand in the neighbors does to a receptor in the spot, for any number of pairs.

    The ligand is set to its lowest and to its highest observed log1p count in all neighbors of every spot, and
    the receptor, which the spot doesn't show, is predicted each time. How many spots go up or down is the paper's
    measure. It says nothing about size, and nearly every gene moves a little whatever the ligand is; so the mean
    change stands beside it, and controls say whether it is about this pair: the receptor has to move more than genes
    as abundant do under this ligand, and more than it does itself under other genes as abundant as the ligand.

    A response is a statement about the model: that this ligand in the neighborhood goes together with this
    receptor in the tissue that it was trained on. It is no proof of signalling. The published model moreover sees
    14/15 of one mean of all 15 spots, so that it can't tell a neighbor's ligand from the spot's own.

    Parameters
    ----------
    {adata}
    interactions
        Pairs ``(ligand, receptor)``, or a table with these columns (or ``source`` and ``target``), or the
        name of a resource of LIANA such as ``"consensus"``, which needs ``liana``, or ``"paper"``, the default:
        :func:`sagefm.datasets.paper_interactions`. ``"A_B"`` is a complex of genes.
    {model}
    contrast
        What the highest level is compared with: the lowest one, or the neighbors as they are.
    n_levels
        Levels between the lowest and the highest count, both among them; more than 2 give a dose response.
    {levels}
    mask
        What is masked in the center while a pair is scored: the receptors of all pairs, as in the published
        code, or the pair's own alone, which takes a run of the network for every pair instead of every ligand.
    n_controls
        Control genes for each receptor, and as many for each ligand: no ligand or receptor of the call, and nearest
        in mean and in detection. They are scored in a second run, with receptors and controls masked, and compared
        with the pair's response there, so they don't change any other column. 0 for neither.
    control_spots
        Spots to score controls on, drawn at random where the slide has more; None takes all.
    n_shuffles
        Runs in which every spot gets another spot's neighbors (of its own slide): does the response depend
        on the neighbors it has? Adds columns that begin with ``shuffled_``. 0 for none; each costs as much as
        the first run.
    {similar}
    library_key
        Column of ``obs`` with the slide, or any other group, of each spot. Adds a table with a row for each group. By
        default, the ``library_key`` of :func:`sagefm.pp.neighborhood_graph`.
    store_spots
        Keep the response of every spot.
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

    ``uns["perturb_lr"]["results"]``
        One row for every pair asked for, in that order, named ``LIGAND|RECEPTOR``:

        - ``status``: ``ok``, ``not_in_model``, ``not_measured``, or ``constant_ligand``; the other columns
          are missing where it isn't ``ok``.
        - ``n_spots``, ``n_up``, ``n_down``, ``n_same`` and ``frac_*``: spots where the predicted
          receptor rises, falls, or changes by less than 1e-8.
        - ``effect``: E = (up - down) / all. ``mean_delta``: mean change of the predicted log1p count.
        - ``reference_r``, ``reference_pval``: Pearson correlation over spots of the ligand's mean in the
          neighbors with the receptor in the center, as measured. ``concordant``: whether E has its sign.
        - ``control_mean``, ``control_sd``, ``zscore``: mean and standard deviation of the statistic, which is the mean
          change in standard deviations of the receptor, over the receptor's controls; the pair's distance from
          their mean in their standard deviations. ``ligand_control_mean``, ``ligand_control_sd``,
          ``ligand_zscore``: the same with the ligand's controls.
        - ``receptor_pval``, ``ligand_pval``: rank of this distance among those of all controls of similar
          expression, each from the others of its pair (two-sided). ``pval`` is the larger of the two, so a small one
          needs both; ``padj`` is Benjamini and Hochberg's.
        - ``verdict``: ``responds`` (``padj`` < 0.05), ``not distinguishable from controls``, or ``not
          testable`` (not ``ok``, a receptor that doesn't vary, or fewer than 5 controls that do).
    ``uns["perturb_lr"]["libraries"]``
        With ``library_key``: the columns up to ``concordant`` by ``pair`` and ``library``. Without ``levels``, levels
        are those of all spots of the call. :func:`perturbation_overlap` compares two of them.
    ``uns["perturb_lr"]["doses"]``
        With ``n_levels`` above 2: by pair and ``level``, ``dose`` (of the ligand, or of a complex's first subunit)
        and ``mean`` predicted receptor, both log1p counts.
    ``uns["perturb_lr"]["pairing"]``
        With controls and at least 10 pairs: do the pairs respond more than the same genes in other pairs? ``n_pairs``;
        ``auc``, the chance that a pair responds more than a re-paired one (0.5 is none); ``pval``, one-sided. A
        re-paired set leaves each gene its number of partners and holds no pair of the call.
    ``uns["perturb_lr"]["params"]``
        What was asked.
    ``obsm["perturb_lr"]``
        With ``store_spots``: ``DataFrame`` of the change at every spot, one column a pair.
    ``var["sage_gene"]``, ``uns["sage_genes"]``
        As :func:`sagefm.pp.align_genes`, if it hasn't run on these genes.

    Raises
    ------
    ImportError
        If a resource of LIANA is named and ``liana`` is not installed.
    KeyError
        If the graph, the layer, ``library_key`` or a resource of that name is missing.
    ValueError
        If the counts are not raw, too few genes are known, or an argument is wrong.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Methods: in-silico perturbation; Figure 5a to c. Of a ligand complex all subunits
    are clamped, each to its own extremes; of a receptor complex the change is the subunit's that changes least, 0
    where signs differ. Complexes are measured by their scarcest subunit at each spot.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4"), ("CSF1", "CSF1R")], "sagefm-mini", n_controls=5)
    >>> adata.uns["perturb_lr"]["results"].index.tolist()
    ['CXCL12|CXCR4', 'CSF1|CSF1R']
    """
    # The engine brings torch, which takes seconds to import.
    from sagefm.tl._perturb import tables
    from sagefm.tl._perturb.clamp import BATCH_SPOTS
    from sagefm.tl._perturb.levels import read_levels
    from sagefm.tl._perturb.plan import resolve
    from sagefm.tl._perturb.screen import Screen
    from sagefm.tl._run import open_slide

    check_choice("contrast", contrast, ("max_vs_min", "max_vs_observed"))
    check_choice("mask", mask, ("all", "pair"))
    n_levels, n_shuffles = check_whole("n_levels", n_levels, 2), check_whole("n_shuffles", n_shuffles, 0)
    n_controls = check_controls(n_controls)
    if control_spots is not None:
        control_spots = check_whole("control_spots", control_spots, 1)
    pairs = read_interactions(interactions)
    generator = np.random.default_rng(rng)
    run = open_slide(
        *(adata, model, "tl.perturb_lr", key_added, _keys.PERTURB_LR, ["obsm"]),
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
    screen = Screen(
        run.engine,
        resolve(pairs, run),
        run.alignment.measured,
        n_levels=n_levels,
        to_unclamped=contrast == "max_vs_observed",
        alone=mask == "pair",
        n_controls=n_controls,
        ends=read_levels(levels, run.model.vocabulary),
    )
    counts, moments = screen.run(libraries, store_spots=store_spots), screen.observed(libraries)
    table = tables.describe(counts.total(), moments.total())
    grid = screen.read_controls(control_spots, generator, crossed=True) if n_controls and screen.pairs else None
    tables.add_controls(table, screen, grid)
    if n_shuffles:
        tables.add_shuffles(table, counts.mean_change, screen.shuffles(n_shuffles, libraries, generator))
    results = tables.add_verdict(tables.expand(screen, table, *SIDES))
    recorded: dict[str, Any] = {"results": results}
    if libraries.key is not None:
        recorded["libraries"] = tables.by_library(screen, counts, moments, libraries, *SIDES)
    if grid is not None and (pairing := tables.pairing(screen, grid, generator)):
        recorded["pairing"] = pairing
    if n_levels > 2:
        recorded["doses"] = tables.doses(screen, counts)
    written = {} if counts.spots is None else {("obsm", key_added): _spot_table(run, screen, counts.spots)}
    params: dict[str, Any] = {"contrast": contrast, "n_levels": n_levels, "mask": mask, "n_controls": n_controls}
    params |= {
        "n_shuffles": n_shuffles,
        "control_spots": control_spots,
        "similar": similar,
        "levels": "slide" if levels is None else "given",
        "library_key": libraries.key,
    }
    verdicts = results["verdict"].value_counts()
    logger.info(
        "Perturbed %d spots with %s; wrote uns['%s']: %d pairs, of which %d respond, %d are like controls and %d "
        "can't be tested.",
        *(run.adata.n_obs, run.model.name, key_added, len(pairs)),
        *(verdicts.get(name, 0) for name in (tables.RESPONDS, tables.LIKE_CONTROLS, tables.NOT_TESTABLE)),
    )
    return run.commit(written, params, **recorded)


def _spot_table(run: SlideRun, screen: Screen, change: Floats32) -> pd.DataFrame:
    """Change at every spot, under all names that a pair goes by."""
    import pandas as pd

    columns = screen.columns
    return pd.DataFrame(change[:, list(columns.values())], index=run.adata.obs_names, columns=list(columns))
