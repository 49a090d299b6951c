"""Ligands and receptors over many sections, one in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._slides import Libraries, find_sections
from sagefm._types import Ints
from sagefm._utils import progress, shorten
from sagefm.pp._graph import neighborhood_graph
from sagefm.read._section import read_section
from sagefm.tl._perturb.interactions import Interactions, read_interactions
from sagefm.tl._perturb.levels import ligand_levels, read_levels
from sagefm.tl._perturb.lr import SIDES
from sagefm.tl._perturb.plan import CONSTANT, NOT_IN_MODEL, NOT_MEASURED, OK

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from sagefm.models import Model
    from sagefm.tl._perturb.observed import ObservedMoments
    from sagefm.tl._perturb.plan import Pair
    from sagefm.tl._perturb.responses import ResponseCounts
    from sagefm.tl._perturb.screen import Screen

# What can be said of a pair on several sections is the best of what can be said on each.
STATUSES = (NOT_IN_MODEL, NOT_MEASURED, CONSTANT, OK)


@fill_docstring
def perturb_sections(
    sections: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    interactions: Interactions | None = None,
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    groups: Mapping[str, str] | None = None,
    levels: pd.DataFrame | None = None,
    similar: bool = True,
    layer: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    table_key: str = "table",
) -> AnnData:
    """Ask what ligands in the neighbors do to receptors, over many sections that needn't fit into memory together.

    Each section is read, perturbed as by :func:`perturb_lr`, and added up. All are clamped at the same levels. Controls
    are matched within a slide, so there are none here, and no verdict: run :func:`perturb_lr` on slides that matter.

    Parameters
    ----------
    sections
        Folder with sections (``.h5ad``, ``.zarr``, or Space Ranger's ``outs``), or their files, or files by name.
    interactions
        As in :func:`perturb_lr`.
    {model}
    groups
        Group of each section, by its name, such as ``{{"slide_1": "validation", "slide_2": "test"}}``. By default each
        section is its own.
    levels
        Lowest and highest log1p count to clamp each gene at. By default what :func:`ligand_levels` finds in the
        sections, which reads them all once more.
    {similar}
    {layer}
    {device}
    {batch_size}
    {table_key}

    Returns
    -------
    An ``AnnData`` of sections and pairs: ``X`` is the effect E of each pair on each section, NaN where it couldn't be
    run; ``obs`` has ``group`` and ``n_spots``. ``uns["perturb_lr"]`` holds ``results`` over all sections and
    ``libraries``, by group, with the columns of :func:`perturb_lr` up to ``concordant``; ``levels``; and ``params``. So
    :func:`perturbation_overlap` and the plots of pairs read it like a slide. A pair counts on the sections that can run
    it, so ``n_spots`` may differ between pairs.

    Raises
    ------
    FileNotFoundError
        If a section isn't there.
    KeyError
        If ``groups`` lacks a section or names one that there isn't, or a section lacks the layer.
    ValueError
        If the counts of a section are not raw, or too few of its genes are known.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 5a to c, on 42 validation and 42 test sections.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import sagefm as sg
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, seed in (("a", 0), ("b", 1)):
    ...     sg.datasets.simulated_visium(8, 8, n_genes=8000, rng=seed).write_h5ad(folder / f"{{name}}.h5ad")
    >>> groups = {{"a": "validation", "b": "test"}}
    >>> found = sg.tl.perturb_sections(folder, [("CXCL12", "CXCR4")], "sagefm-mini", groups=groups)
    >>> found.shape, found.uns["perturb_lr"]["libraries"]["library"].tolist()
    ((2, 1), ['validation', 'test'])
    """
    # The engine brings torch, which takes seconds to import.
    import pandas as pd
    from anndata import AnnData

    from sagefm import models
    from sagefm.tl._perturb import tables

    pairs, loaded = read_interactions(interactions), models.load(model)
    files = find_sections(sections)
    group_of = _groups(groups, files)
    if levels is None:
        levels = ligand_levels(files, loaded, layer=layer, table_key=table_key)
    read_levels(levels, loaded.vocabulary)  # refuses what are none
    names = list(dict.fromkeys(group_of.values()))
    sums: _Sums | None = None
    effects, n_spots = [], []
    for name, path in progress(files.items(), "Sections", unit="section"):
        adata = read_section(path, table_key)
        screen, counts, moments = _perturb(adata, pairs, loaded, levels, similar, layer, device, batch_size)
        sums = sums or _Sums(len(names), screen.asked)
        sums.add(names.index(group_of[name]), screen, counts, moments)
        effects.append(np.append(counts.effects[0], np.nan)[screen.position])
        n_spots.append(adata.n_obs)
    assert sums is not None  # find_sections refuses none
    results, by_group = sums.tables(names)
    params = {"model": loaded.name, "groups": group_of, "similar": similar, "layer": layer, "library_key": "group"}
    is_first = ~results.index.duplicated()
    found = AnnData(
        np.array(effects, dtype=np.float32)[:, is_first],
        obs=pd.DataFrame({"group": pd.Categorical(group_of.values()), "n_spots": n_spots}, index=list(files)),
        var=results.loc[is_first, list(SIDES)],
    )
    found.uns[_keys.PERTURB_LR] = {
        "results": tables.add_verdict(results.assign(padj=np.nan)),
        "libraries": by_group,
        "levels": levels,
        "params": params,
    }
    logger.info(
        "Perturbed %d sections with %s: %d of %d pairs could be run.",
        *(len(files), loaded.name, int((results["status"] == OK).sum()), len(pairs)),
    )
    return found


def _perturb(
    adata: AnnData,
    pairs: Sequence[tuple[str, str]],
    model: Model,
    levels: pd.DataFrame,
    similar: bool,
    layer: str | None,
    device: str,
    batch_size: int | None,
) -> tuple[Screen, ResponseCounts, ObservedMoments]:
    """Perturb one section, all of whose spots count together."""
    from sagefm.tl._perturb.clamp import BATCH_SPOTS
    from sagefm.tl._perturb.plan import resolve
    from sagefm.tl._perturb.screen import Screen
    from sagefm.tl._run import open_slide

    if _keys.connectivities(_keys.GRAPH) not in adata.obsp:
        neighborhood_graph(adata)
    run = open_slide(
        *(adata, model, "tl.perturb_sections", _keys.PERTURB_LR, _keys.PERTURB_LR),
        layer=layer,
        connectivity_key=_keys.GRAPH,
        similar=similar,
        device=device,
        batch_size=batch_size,
        default_batch_size=BATCH_SPOTS,
        table_key="table",
        copy=False,
    )
    ends = read_levels(levels, model.vocabulary)
    screen = Screen(run.engine, resolve(pairs, run), run.alignment.measured, ends=ends)
    together = Libraries(["all"], np.zeros(adata.n_obs, dtype=np.int64))
    return screen, screen.run(together), screen.observed(together)


class _Sums:
    """What every pair asked for did, added up by group of sections."""

    def __init__(self, n_groups: int, asked: Sequence[Pair]) -> None:
        from sagefm.tl._perturb.observed import ObservedMoments
        from sagefm.tl._perturb.responses import ResponseCounts

        shape = (n_groups, len(asked))
        self._asked = asked
        self._status: Ints = np.zeros(shape, dtype=np.int64)
        n_spots, (up, down, change) = np.zeros(shape, dtype=np.int64), np.zeros((3, *shape))
        self._counts = ResponseCounts(n_spots, up, down, change, doses=np.zeros((0, len(asked))))
        self._moments = ObservedMoments(*(np.zeros(shape) for _ in fields(ObservedMoments)))

    def add(self, group: int, screen: Screen, counts: ResponseCounts, moments: ObservedMoments) -> None:
        """Add one section."""
        status = np.array([STATUSES.index(pair.status) for pair in screen.asked])
        self._status[group] = np.maximum(self._status[group], status)
        ran = screen.position >= 0
        at = screen.position[ran]
        self._counts.n_spots[group, ran] += counts.n_spots[0, 0]
        for name in ("n_up", "n_down", "change"):
            getattr(self._counts, name)[group, ran] += getattr(counts, name)[0, at]
        for field in fields(moments):
            getattr(self._moments, field.name)[group, ran] += getattr(moments, field.name)[0, at]

    def tables(self, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Descriptive rows of every pair: over all sections, and by group."""
        import pandas as pd

        from sagefm.tl._perturb.tables import text_index

        whole = self._table(self._counts.total(), self._moments.total(), self._status.max(axis=0))
        parts = []
        for number, name in enumerate(names):
            rows = self._table(self._counts, self._moments, self._status[number], number)
            rows.insert(0, "library", name)
            parts.append(rows.rename_axis("pair").reset_index())
        return whole, text_index(pd.concat(parts, ignore_index=True))

    def _table(self, counts: ResponseCounts, moments: ObservedMoments, status: Ints, library: int = 0) -> pd.DataFrame:
        from sagefm.tl._perturb.tables import describe, expand_to

        asked = [replace(pair, status=STATUSES[best]) for pair, best in zip(self._asked, status, strict=True)]
        position = np.where(status == STATUSES.index(OK), np.arange(len(asked)), -1)
        with np.errstate(divide="ignore", invalid="ignore"):  # of pairs that no section of a group could run
            described = describe(counts, moments, library)
        return expand_to(asked, position, described, *SIDES)


def _groups(groups: Mapping[str, str] | None, files: Mapping[str, Path]) -> dict[str, str]:
    """Group of each section."""
    if groups is None:
        return {name: name for name in files}
    if missing := [name for name in files if name not in groups]:
        raise KeyError(f"groups has no entry for the sections {shorten(missing)}.")
    if unknown := [name for name in groups if name not in files]:
        raise KeyError(f"groups names {shorten(unknown)}, which are no sections; they are {shorten(files)}.")
    return {name: str(groups[name]) for name in files}
