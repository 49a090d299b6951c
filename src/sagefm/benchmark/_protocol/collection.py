"""Sections side by side, with what is known of their spots."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from sagefm import _keys, pp
from sagefm._settings import ROWS_AT_A_TIME, logger
from sagefm._slides import section_name
from sagefm._utils import progress
from sagefm.benchmark._protocol.config import Config
from sagefm.pp._counts import Counts
from sagefm.read._section import read_section
from sagefm.tl._labels.composition import get_targets
from sagefm.tl._labels.labels import get_labels
from sagefm.tl._points import get_column

if TYPE_CHECKING:
    from anndata import AnnData

SAMPLE, GROUP, TISSUE, LABEL = "sample", "group", "tissue", "label"
MIN_GENES = 500


class Collection:
    """Sections with their groups, tissues and labels, and the genes that all of them measured.

    Attributes
    ----------
    sections
        Each section as read, with its graph.
    table
        All spots side by side, with the genes in common; ``obs`` holds sample, group, tissue and label, ``obsm``
        what was asked for last.
    """

    def __init__(self, config: Config) -> None:
        import anndata as ad

        self.config = config
        self.sections: dict[str, AnnData] = {}
        for file in progress(config.sections, "Reading", unit="section"):
            path = Path(file)
            name = section_name(path)
            self.sections[name] = self._describe(read_section(path), name)
        if config.label_key is not None and not any(adata.obs[LABEL].notna().any() for adata in self.sections.values()):
            raise KeyError(f"label_key={config.label_key!r}: no spot of any section has such a label in obs.")
        self._refuse_twins()
        genes = self._common_genes()
        self.table: AnnData = ad.concat(
            [self._slim(name)[:, genes].copy() for name in self.sections], pairwise=True, join="inner"
        )
        if config.target_key is not None:
            self.table.obsm[config.target_key] = self._targets(config.target_key)
        logger.info(
            "%d spots of %d sections, %d groups, %d genes in common.",
            *(self.table.n_obs, len(self.sections), self.table.obs[GROUP].nunique(), len(genes)),
        )

    def _common_genes(self) -> list[str]:
        genes = sorted(set.intersection(*(set(adata.var_names) for adata in self.sections.values())))
        if len(genes) < MIN_GENES:
            sizes = {name: adata.n_vars for name, adata in self.sections.items()}
            least = min(sizes, key=lambda name: sizes[name])
            raise ValueError(
                f"the sections have {len(genes)} genes in common, fewer than {MIN_GENES}; {least!r} has "
                f"{sizes[least]}. Do all name them by symbols? Leave sections with few genes out."
            )
        return genes

    def _slim(self, name: str) -> AnnData:
        """Counts, what is known of the spots, and the graph; spots are named after their section."""
        from anndata import AnnData

        adata = self.sections[name]
        columns = np.arange(adata.n_vars)
        counts = Counts(adata, columns, self.config.layer).log1p(columns, ROWS_AT_A_TIME).expm1()
        counts.data = np.rint(counts.data)
        key = _keys.connectivities(_keys.GRAPH)
        obs = adata.obs.set_axis([f"{name}:{spot}" for spot in adata.obs_names])
        return AnnData(counts, obs=obs, var=pd.DataFrame(index=adata.var_names), obsp={key: adata.obsp[key]})

    def _targets(self, key: str) -> pd.DataFrame:
        """Likelihoods of all sections; missing where a section has none."""
        known = {name: get_targets(adata, key) for name, adata in self.sections.items() if key in adata.obsm}
        if not known:
            raise KeyError(f"target_key={key!r} is in obsm of no section.")
        classes = list(next(iter(known.values())).columns)
        if any(list(table.columns) != classes for table in known.values()):
            raise ValueError(f"obsm[{key!r}] has other classes in some sections.")
        parts = [
            known[name] if name in known else pd.DataFrame(np.nan, index=adata.obs_names, columns=classes)
            for name, adata in self.sections.items()
        ]
        return pd.concat(parts).set_axis(self.table.obs_names)

    def _describe(self, adata: AnnData, name: str) -> AnnData:
        config = self.config
        adata.var_names_make_unique()
        adata.obs_names_make_unique()
        library = get_column(adata, "library_key", config.library_key, single=name)
        obs = adata.obs
        described = pd.DataFrame(index=obs.index)
        described[SAMPLE] = library if config.library_key is None else [f"{name}:{part}" for part in library]
        needs_groups = {"annotation", "composition"} & set(config.tasks)
        if needs_groups or config.group_key in obs:
            described[GROUP] = get_column(adata, "group_key", config.group_key)
        else:
            logger.warning("%s has no %r in obs: it counts as a group of its own.", name, config.group_key)
            described[GROUP] = described[SAMPLE]
        tissue_key = config.tissue_key if config.tissue_key in obs else None
        if tissue_key != config.tissue_key:
            logger.info("%s has no %r in obs: its tissue is unknown.", name, config.tissue_key)
        described[TISSUE] = get_column(adata, "tissue_key", tissue_key, single="unknown")
        at = adata.obsm.get(_keys.SPATIAL)
        described[["x", "y"]] = np.nan if at is None else np.asarray(at, dtype=float)[:, :2]
        described[LABEL] = None
        if config.label_key is not None and config.label_key in obs:
            labels = get_labels(adata, config.label_key, config.merge or None, strict=False)
            # No file takes a column named with a slash.
            described[LABEL] = labels.map(lambda label: label if label is None else label.replace("/", "|"))
        for sample, groups in described.groupby(SAMPLE)[GROUP]:
            if groups.nunique() > 1:
                raise ValueError(
                    f"section {sample!r} has {groups.nunique()} values in obs[{config.group_key!r}]; neighboring "
                    "spots would be split. Set library_key, or mend the column."
                )
        if _keys.connectivities(_keys.GRAPH) not in adata.obsp:
            with quiet():
                pp.neighborhood_graph(adata, library_key=config.library_key)
        adata.obs = described
        return adata

    def _refuse_twins(self) -> None:
        """The same counts under two donors would be on both sides of a split."""
        seen: dict[str, str] = {}
        for name, adata in self.sections.items():
            matrix = adata.X if self.config.layer is None else adata.layers[self.config.layer]
            counts = sparse.csr_matrix(matrix, dtype=np.float64)
            # The same in any order of spots and genes and however it is stored.
            spots = np.stack([counts.sum(axis=1).A1, counts.multiply(counts).sum(axis=1).A1, np.diff(counts.indptr)])
            spots = spots[:, np.lexsort(spots)]
            digest = hashlib.sha256(spots.tobytes()).hexdigest()
            other = seen.setdefault(digest, name)
            groups = {frozenset(self.sections[part].obs[GROUP]) for part in (name, other)}
            if other != name and len(groups) > 1:
                raise ValueError(
                    f"this split leaks: {other!r} and {name!r} hold the same counts under different values of "
                    f"obs[{self.config.group_key!r}]. Leave one out."
                )


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings only: what a tool says of each of many sections is too much."""
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)
