"""In-silico perturbation of ligands in the neighbourhood."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from sagefm import _keys
from sagefm._anndata import check_free, get_anndata
from sagefm._settings import logger
from sagefm._types import Floats
from sagefm._utils import check_choice, check_whole
from sagefm.tl._perturb.interactions import Interactions, read_interactions, resolve

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model
    from sagefm.tl._perturb.screen import Screen
    from sagefm.tl._perturb.tally import Libraries, Moments, Tally


ALPHA = 0.05
RESPONDS, LIKE_CONTROLS, NOT_TESTABLE = "responds", "not distinguishable from controls", "not testable"


def perturb_lr(
    adata: AnnData | SpatialData,
    interactions: Interactions | None = None,
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    contrast: Literal["max_vs_min", "max_vs_observed"] = "max_vs_min",
    n_levels: int = 2,
    mask: Literal["all", "pair"] = "all",
    n_controls: int = 20,
    control_spots: int | None = 500,
    n_control_ligands: int = 0,
    n_shuffles: int = 0,
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
    """Ask what a ligand in the neighbours does to a receptor in the spot, for any number of pairs.

    The ligand is set to its lowest and to its highest observed log1p count in all neighbours of every spot, and
    the receptor, which the spot doesn't show, is predicted each time. How many spots go up or down is the paper's
    measure. It says nothing about size, and nearly every gene moves a little whatever the ligand is; so the mean
    change stands beside it, and control genes that are as abundant as the receptor say whether that is
    more than any gene does.

    A response is a statement about the model: that this ligand in the neighbourhood goes together with this
    receptor in the tissue that it was trained on. It is no proof of signalling. The published model moreover sees
    14/15 of one mean of all 15 spots, so that it can't tell a neighbour's ligand from the spot's own.

    Parameters
    ----------
    adata
        Slide with raw counts and the graph of :func:`sagefm.pp.neighborhood_graph`.
    interactions
        Pairs ``(ligand, receptor)``, or a table with these columns (or ``source`` and ``target``), or the
        name of a resource of LIANA such as ``"consensus"``, which needs ``liana``, or ``"paper"``, the default:
        :func:`sagefm.datasets.paper_interactions`. ``"A_B"`` is a complex of genes.
    model
        Name, path or loaded model, see :func:`sagefm.models.load`.
    contrast
        What the highest level is compared with: the lowest one, or the neighbours as they are.
    n_levels
        Levels between the lowest and the highest count, both among them; more than 2 give a dose response.
    mask
        What is masked in the centre while a pair is scored: the receptors of all pairs, as in the published
        code, or the pair's own alone, which takes a run of the network for every pair instead of every ligand.
    n_controls
        Control genes a receptor: no ligand or receptor of the call, and nearest in mean and in detection. They are
        scored in a second run, with receptors and controls masked, and compared with the receptor's
        response there, so they don't change any other column. 0 for none.
    control_spots
        Spots to score controls on, drawn at random where the slide has more; None takes all.
    n_control_ligands
        Control ligands, matched as controls are: does this receptor respond to this ligand more than to others?
        Adds columns that begin with ``ligand_``. 0 for none.
    n_shuffles
        Runs in which every spot gets another spot's neighbours (of its own slide): does the response depend
        on the neighbours it has? Adds columns that begin with ``shuffled_``. 0 for none; each costs as much as
        the first run.
    library_key
        Column of ``obs`` with the slide, or any group, of each spot: adds a table by group.
    store_spots
        Keep the response of every spot.
    key_added
        Where results go.
    rng
        Seed or generator of what is drawn: spots for controls, and shuffled neighbours.
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

    ``uns["perturb_lr"]["results"]``
        One row for every pair asked for, in that order, named ``LIGAND|RECEPTOR``:

        - ``status``: ``ok``, ``not_in_model``, ``not_measured``, or ``constant_ligand``; the other columns
          are missing where it isn't ``ok``.
        - ``n_spots``, ``n_up``, ``n_down``, ``n_same`` and ``frac_*``: spots where the predicted
          receptor rises, falls, or changes by less than 1e-8.
        - ``effect``: E = (up - down) / all. ``mean_delta``: mean change of the predicted log1p count.
        - ``reference_r``, ``reference_pval``: Pearson correlation over spots of the ligand's mean in the
          neighbours with the receptor in the centre, as measured. ``concordant``: whether E has its sign.
        - ``control_mean``, ``control_sd``, ``zscore``, ``pval``, ``padj``: the statistic is the mean change in
          standard deviations of the receptor. ``zscore`` is its distance from the controls in their standard
          deviations; ``pval`` ranks this distance among those of all controls of similar expression, each from
          the others of its pair (two-sided); ``padj`` is Benjamini and Hochberg's.
        - ``verdict``: ``responds`` (``padj`` < 0.05), ``not distinguishable from controls``, or ``not
          testable`` (not ``ok``, a receptor that doesn't vary, or fewer than 5 controls that do).
    ``uns["perturb_lr"]["libraries"]``
        With ``library_key``: the columns up to ``concordant`` by ``pair`` and ``library``. Levels are those of
        all spots of the call. :func:`perturbation_overlap` compares two of them.
    ``uns["perturb_lr"]["doses"]``
        With ``n_levels`` above 2: by pair and ``level``, ``dose`` (of the ligand, or of a complex's first subunit)
        and ``mean`` predicted receptor, both log1p counts.
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
        If the counts are no raw counts, too few genes are known, or an argument is wrong.

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
    import pandas as pd

    from sagefm.tl import _engine
    from sagefm.tl._perturb.clamp import BATCH_SPOTS
    from sagefm.tl._perturb.controls import MIN_CONTROLS
    from sagefm.tl._perturb.screen import Screen
    from sagefm.tl._perturb.tally import Libraries

    check_choice("contrast", contrast, ("max_vs_min", "max_vs_observed"))
    check_choice("mask", mask, ("all", "pair"))
    n_levels = check_whole("n_levels", n_levels, 2)
    n_controls = check_whole("n_controls", n_controls, 0)
    n_control_ligands = check_whole("n_control_ligands", n_control_ligands, 0)
    for name, value in (("n_controls", n_controls), ("n_control_ligands", n_control_ligands)):
        if 0 < value < MIN_CONTROLS:
            raise ValueError(
                f"{name}={value} is too few to tell a response from chance: at least {MIN_CONTROLS}, or 0."
            )
    n_shuffles = check_whole("n_shuffles", n_shuffles, 0)
    if control_spots is not None:
        control_spots = check_whole("control_spots", control_spots, 1)
    pairs = read_interactions(interactions)
    generator = np.random.default_rng(rng)
    adata = get_anndata(adata, table_key, copy=copy)
    check_free(adata, key_added, _keys.PERTURB_LR, ["obsm"], "tl.perturb_lr")
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
    screen = Screen(
        engine,
        resolve(pairs, adata, alignment, loaded.vocabulary),
        alignment.measured,
        n_levels=n_levels,
        observed=contrast == "max_vs_observed",
        by_pair=mask == "pair",
        n_controls=n_controls,
        n_control_ligands=n_control_ligands,
    )
    tally = screen.run(libraries or everywhere, store_spots=store_spots)
    moments = screen.reference(libraries or everywhere)
    table = screen.describe(tally.total(), moments.total(), 0)
    screen.add_test(table, screen.controls(control_spots, generator) if n_controls else None)
    if n_control_ligands:
        screen.add_test(table, screen.control_ligands(), "ligand_")
    if n_shuffles:
        shuffled = screen.shuffles(n_shuffles, libraries or everywhere, generator)
        add_shuffles(table, tally.mean_delta, shuffled)
    written: dict[str, object] = {"results": add_verdict(screen.expand(table))}
    if libraries is not None:
        written["libraries"] = library_rows(screen, tally, moments, libraries)
    if n_levels > 2:
        written["doses"] = screen.doses(tally)

    params: dict[str, object] = {"function": "tl.perturb_lr", "model": loaded.name, "contrast": contrast}
    params |= {"n_levels": n_levels, "mask": mask, "n_controls": n_controls, "n_control_ligands": n_control_ligands}
    params |= {"n_shuffles": n_shuffles, "connectivity_key": connectivity_key}
    optional = {"control_spots": control_spots, "library_key": library_key, "layer": layer}
    params |= {name: value for name, value in optional.items() if value is not None}
    if is_new:
        alignment.write(adata)
    adata.obsm.pop(key_added, None)
    if tally.spots is not None:
        columns = screen.columns
        spots = tally.spots[:, list(columns.values())]
        adata.obsm[key_added] = pd.DataFrame(spots, index=adata.obs_names, columns=list(columns))
    adata.uns[key_added] = {"params": params, **written}
    counts = written["results"]["verdict"].value_counts()  # type: ignore[index]
    logger.info(
        "Perturbed %d spots with %s; wrote uns['%s']: %d pairs, of which %d respond, %d are like controls and %d "
        "can't be tested.",
        adata.n_obs,
        loaded.name,
        key_added,
        len(pairs),
        *(counts.get(verdict, 0) for verdict in (RESPONDS, LIKE_CONTROLS, NOT_TESTABLE)),
    )
    return adata if copy else None


def get_libraries(adata: AnnData, library_key: str | None) -> Libraries | None:
    """Group of every spot, None without a key."""
    import pandas as pd

    from sagefm.tl._perturb.tally import Libraries

    if library_key is None:
        return None
    if library_key not in adata.obs:
        raise KeyError(f"library_key={library_key!r} not in adata.obs; it has {sorted(adata.obs)}.")
    codes, names = pd.factorize(adata.obs[library_key], sort=True)
    if (codes < 0).any():
        raise ValueError(f"adata.obs[{library_key!r}] is missing at {(codes < 0).sum()} spots.")
    if len({str(name) for name in names}) < len(names):
        raise ValueError(f"adata.obs[{library_key!r}] has libraries of one name and different types: {list(names)}.")
    return Libraries([str(name) for name in names], codes.astype(np.int64))


def library_rows(screen: Screen, tally: Tally, moments: Moments, libraries: Libraries) -> pd.DataFrame:
    """Descriptive rows of every pair by library."""
    import pandas as pd

    parts = []
    for number, name in enumerate(libraries.names):
        rows = screen.expand(screen.describe(tally, moments, number))
        rows.insert(0, "library", name)
        parts.append(rows.rename_axis("pair").reset_index())
    table = pd.concat(parts, ignore_index=True)
    table.index = table.index.astype(str)
    return table


def add_shuffles(table: pd.DataFrame, mean_delta: Floats, shuffled: Floats) -> None:
    """Where the mean change stands among those with shuffled neighbours; two-sided rank."""
    n = len(shuffled)
    mean, sd = shuffled.mean(axis=0), shuffled.std(axis=0, ddof=1) if n > 1 else np.full(len(table), np.nan)
    table["shuffled_mean"], table["shuffled_sd"] = mean, sd
    table["shuffled_zscore"] = np.divide(mean_delta - mean, sd, out=np.full(len(table), np.nan), where=sd > 0)
    tails = np.minimum((shuffled >= mean_delta).sum(axis=0), (shuffled <= mean_delta).sum(axis=0))
    table["shuffled_pval"] = np.minimum(1.0, 2 * (1 + tails) / (1 + n))


def add_verdict(table: pd.DataFrame) -> pd.DataFrame:
    """What the comparison with control receptors comes to."""
    tested = table["padj"].notna()
    table["verdict"] = np.select([tested & (table["padj"] < ALPHA), tested], [RESPONDS, LIKE_CONTROLS], NOT_TESTABLE)
    return table
