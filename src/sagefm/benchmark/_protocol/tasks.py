"""What the protocol does with one representation."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys, models, pl, tl
from sagefm._settings import logger
from sagefm._types import Bools
from sagefm.benchmark._annotation import evaluate_annotation
from sagefm.benchmark._clustering import evaluate_clustering
from sagefm.benchmark._composition import evaluate_composition
from sagefm.benchmark._heterogeneity import centroid_distances
from sagefm.benchmark._imputation import evaluate_imputation
from sagefm.benchmark._protocol.collection import GROUP, LABEL, SAMPLE, TISSUE, Collection
from sagefm.benchmark._protocol.config import Representation
from sagefm.benchmark._protocol.folder import Folder, slug
from sagefm.benchmark._protocol.leakage import imputed_groups
from sagefm.benchmark._protocol.representations import KEY, compute, key_of

if TYPE_CHECKING:
    from anndata import AnnData

MIN_TSNE = 100
N_MARKERS, N_MARKER_MAPS = 50, 4
DOMINANT = "dominant"


class Tasks:
    """The tasks of one representation, into a folder.

    Parameters
    ----------
    collection, folder
        What to read and where to write.
    representation
        What to try.
    rows, held_out
        Spots that take part in held-out tasks, and the groups to hold out.
    """

    def __init__(
        self, collection: Collection, folder: Folder, representation: Representation, rows: Bools, held_out: list[str]
    ) -> None:
        self.collection, self.folder, self.representation = collection, folder, representation
        self.rows, self.held_out = rows, held_out
        self.config, self.table, self.name = collection.config, collection.table, representation.name
        self._is_model = representation.model is not None
        self._by_slide: dict[str, Any] = {"group_key": GROUP, "library_key": SAMPLE, "scale": representation.scale}
        self._held_out: dict[str, Any] = {"pooled": self.config.pooled, "n_folds": self.config.n_folds}
        self._repeats: dict[str, Any] = {"n_repeats": self.config.n_repeats, "rng": self.config.seed}

    def run(self) -> None:
        """All tasks, but for what an earlier run has done."""
        tasks = self.config.tasks_of(self.representation)
        if self.folder.is_done(self.name) or not tasks:
            return
        by_group = self.representation.by_group
        if by_group and not self.held_out:
            logger.warning("%s is one model for each held-out group, and no group has labels: left out.", self.name)
            return
        started = time.perf_counter()
        compute(self.collection, self.representation, self.held_out)
        self.folder.took(f"compute__{slug(self.name)}", started)
        if "clustering" in tasks:
            if not by_group:
                self._cluster()
            if self.config.label_key is not None:
                self._part("domains", self._cluster_within_slides)
        if "heterogeneity" in tasks and not by_group:
            self._measure_distances()
        if "annotation" in tasks:
            self._annotate()
        if "composition" in tasks:
            self._compose()
        if "imputation" in tasks and self._is_model:
            for group in imputed_groups(self.collection, self.representation, self.held_out):
                self._part("imputation", partial(self._evaluate_imputation, group), f" {group}")
        self.folder.mark_done(self.name)

    def _part(self, table: str, run: Callable[[], pd.DataFrame], more: str = "") -> None:
        """Compute a piece of a table, with the representation's own name."""
        self.folder.part(table, self.name + more, lambda: run().assign(representation=self.name))

    def _cluster(self) -> None:
        targets = [key for key in (SAMPLE, TISSUE, LABEL) if self.table.obs[key].nunique() > 1]
        if targets:
            self._part("clustering", partial(evaluate_clustering, self.table, KEY, targets, **self._repeats))
        if self._is_model:
            self._part("clusters", self._describe_clusters)
        if self.table.n_obs < MIN_TSNE:
            logger.warning("Fewer than %d spots: no t-SNE.", MIN_TSNE)
        else:
            self.folder.figure("tsne", self.name, self._draw_tsne)

    def _cluster_within_slides(self) -> pd.DataFrame:
        labelled = self.table.obs[LABEL].notna() & np.isfinite(self.table.obsm[KEY]).all(axis=1)
        part = self.table[labelled.to_numpy()].copy()
        return evaluate_clustering(part, KEY, LABEL, within=SAMPLE, **self._repeats)

    @property
    def _tissue_or_sample(self) -> str:
        return TISSUE if self.table.obs[TISSUE].nunique() > 1 else SAMPLE

    def _describe_clusters(self) -> pd.DataFrame:
        """Clusters of a model's embedding: their number, genes and tissues."""
        table, name = self.table, self.name
        tl.cluster(table, KEY, n_clusters=self.config.n_clusters, rng=self.config.seed)
        tl.cluster_markers(table)
        tl.cluster_proportions(table, self._tissue_or_sample)
        markers = table.uns[_keys.CLUSTER_MARKERS]["results"].groupby("cluster").head(N_MARKERS)
        tissues = table.uns[_keys.CLUSTER_PROPORTIONS]["results"]
        for kind, results in (("markers", markers), ("cluster-proportions", tissues)):
            self.folder.write_part(kind, name, results.assign(representation=name))

        def draw_markers(cluster: str, path: Path) -> None:
            _close(pl.cluster_markers(table, cluster, return_fig=True, save=path))

        self.folder.figure(
            "cluster-proportions",
            name,
            lambda path: _close(pl.cluster_proportions(table, return_fig=True, save=path)),
        )
        for cluster in table.obs[_keys.CLUSTER].cat.categories[:N_MARKER_MAPS]:
            self.folder.figure("markers", f"{name}, cluster {cluster}", partial(draw_markers, str(cluster)))
        scores = table.uns[_keys.CLUSTER]["scores"].reset_index()
        for slot in (_keys.CLUSTER, _keys.CLUSTER_MARKERS, _keys.CLUSTER_PROPORTIONS):
            del table.uns[slot]
        del table.obs[_keys.CLUSTER]
        return scores

    def _draw_tsne(self, path: Path) -> None:
        self.table.obsm[self.name] = self.table.obsm[KEY]  # the name of a panel
        color = [self._tissue_or_sample, GROUP]
        _close(pl.tsne(self.table, self.name, color, rng=self.config.seed, return_fig=True, save=path))
        del self.table.obsm[self.name]

    def _measure_distances(self) -> None:
        if self.table.obs[SAMPLE].nunique() > 2:
            self._part("distances", self._distances)
        else:
            logger.warning("Distances between samples need three or more; left out.")
        if self.table.obs[TISSUE].nunique() > 2:
            self._part("tissue-distances", partial(self._centroid_distances, TISSUE))

    def _distances(self) -> pd.DataFrame:
        kinds: list[str | None] = [kind for kind in (TISSUE, GROUP) if self.table.obs[kind].nunique() > 1]
        return pd.concat(
            self._centroid_distances(SAMPLE, kind_key=kind).assign(kind_of=kind or "none") for kind in kinds or [None]
        )

    def _centroid_distances(self, groupby: str, *, kind_key: str | None = None) -> pd.DataFrame:
        """Of the representation alone: expression is one of its own where it was asked for."""
        found = centroid_distances(self.table, KEY, groupby, kind_key=kind_key)
        return found[found["representation"] == KEY]

    def _annotate(self) -> None:
        part = self.table[self.rows].copy()
        if not self._can_hold_out(part, LABEL):
            return
        for kind in self.representation.classifiers or self.config.classifiers:
            self._part("annotation", partial(self._evaluate_annotation, part, LABEL, kind), f" {kind}")
        if self._is_model or self.name == self.config.baseline:
            self._maps("annotation", part, part.obs[LABEL].notna(), LABEL, tl.annotate, pl.annotation)

    def _compose(self) -> None:
        part, target = self.table[self.rows].copy(), str(self.config.target_key)
        known = part.obsm[target].notna().all(axis=1)
        part.obs[DOMINANT] = part.obsm[target].fillna(-1).idxmax(axis=1).where(known)
        if not self._can_hold_out(part, DOMINANT):
            return
        self._part("composition", partial(self._evaluate_composition, part, target))
        self._part("dominant", partial(self._evaluate_annotation, part, DOMINANT, "forest"))
        if self._is_model:
            predict = partial(tl.composition, device=self.config.device)
            self._maps("likeliest", part, known, target, predict, pl.composition)

    def _can_hold_out(self, part: AnnData, label: str) -> bool:
        """Whether a task has something to learn from and something to be scored on."""
        groups = set(part.obs[GROUP][part.obs[label].notna()])
        tested = groups & set(self.held_out)
        if tested and len(groups) > 1 and not (self.config.test and tested == groups):
            return True
        logger.warning("Too few groups have %ss to hold some out: the task is left out.", label)
        return False

    def _test_groups(self, part: AnnData, label: str) -> list[str] | None:
        """Groups held out together, as the settings name them; None holds out each in turn."""
        if not self.config.test:
            return None
        groups = set(part.obs[GROUP][part.obs[label].notna()])
        return [group for group in self.held_out if group in groups]

    def _evaluate_annotation(self, part: AnnData, label: str, kind: Any) -> pd.DataFrame:
        own = self.representation.n_bootstraps
        return evaluate_annotation(
            part,
            label,
            key_of(self.representation),
            classifier=kind,
            test_groups=self._test_groups(part, label),
            param_grid=self.config.param_grid,
            n_bootstraps=self.config.n_bootstraps if own is None else own,
            rng=self.config.seed,
            **self._by_slide,
            **self._held_out,
        )

    def _evaluate_composition(self, part: AnnData, target: str) -> pd.DataFrame:
        return evaluate_composition(
            part,
            target,
            key_of(self.representation),
            test_groups=self._test_groups(part, DOMINANT),
            n_units=self.config.n_units,
            device=self.config.device,
            rng=self.config.seed,
            **self._by_slide,
            **self._held_out,
        )

    def _evaluate_imputation(self, group: str) -> pd.DataFrame:
        """Masked genes of a group's sections, by the model and by what needs none."""
        config, model = self.config, models.load(str(self.representation.model).replace("{group}", group))
        sections = [adata for adata in self.collection.sections.values() if (adata.obs[GROUP] == group).any()]
        options: dict[str, Any] = {"layer": config.layer, "rng": config.seed, "device": config.device}
        found = evaluate_imputation(sections, model, library_key=SAMPLE, **options)
        return found.rename(index={model.name: self.name}).reset_index().assign(group=group)

    def _maps(
        self,
        what: str,
        part: AnnData,
        known: pd.Series,
        target: str,
        predict: Callable[..., object],
        plot: Callable[..., object],
    ) -> None:
        """Draw what is predicted beside what is known, of each held-out group's first section that has both."""

        def draw(reference: AnnData, query: AnnData, key: str, path: Path) -> None:
            predict(query, target, use_rep=key, reference=reference, rng=self.config.seed, **self._by_slide)
            _close(plot(query, target, return_fig=True, save=path))

        for group in self.held_out:
            rows = known & part.obs["x"].notna() & (part.obs[GROUP] == group)
            if not rows.any():
                continue
            sample = part.obs[SAMPLE][rows].iloc[0]
            away = self.held_out if self.config.test else [group]
            reference = part[(~part.obs[GROUP].isin(away)).to_numpy()]
            query = part[(part.obs[SAMPLE] == sample).to_numpy()].copy()
            query.obsm[_keys.SPATIAL] = query.obs[["x", "y"]].to_numpy()
            key = key_of(self.representation, group)
            self.folder.figure(what, f"{self.name}, {sample}", partial(draw, reference, query, key))


def _close(figure: Any) -> None:
    import matplotlib.pyplot as plt

    plt.close(figure)
