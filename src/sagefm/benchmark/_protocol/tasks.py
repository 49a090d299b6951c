"""What the protocol does with one representation."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys, pl, tl
from sagefm._settings import logger
from sagefm.benchmark._annotation import evaluate_annotation
from sagefm.benchmark._clustering import evaluate_clustering
from sagefm.benchmark._composition import evaluate_composition
from sagefm.benchmark._heterogeneity import centroid_distances
from sagefm.benchmark._protocol.collection import GROUP, KEY, LABEL, SAMPLE, TISSUE, Collection, key_of
from sagefm.benchmark._protocol.config import Config, Representation
from sagefm.benchmark._protocol.folder import Folder, slug, write
from sagefm.pl._axes import save_figure

if TYPE_CHECKING:
    from anndata import AnnData

MIN_TSNE, MAX_TSNE = 100, 4_000
N_MARKERS = 50
DOMINANT = "dominant"


class Tasks:
    """The tasks of the settings, into a folder."""

    def __init__(self, config: Config, folder: Folder) -> None:
        self.config, self.folder = config, folder

    def of(self, representation: Representation) -> list[str]:
        """What is to be done with a representation."""
        return [task for task in self.config.tasks if task in representation.tasks]

    def run(
        self, collection: Collection, representation: Representation, rows: np.ndarray, held_out: list[str]
    ) -> None:
        """All tasks of one representation."""
        config, name = self.config, representation.name
        tasks = self.of(representation)
        if self.folder.is_done(name) or not tasks:
            return
        if representation.by_group and not held_out:
            logger.warning("%s is one model for each held-out group, and no group has labels: left out.", name)
            return
        started = time.perf_counter()
        collection.compute(representation, held_out)
        self.folder.took(f"compute__{slug(name)}", started)
        pooled = not representation.by_group
        if "clustering" in tasks:
            if pooled and self._targets(collection):
                self.folder.part("clustering", name, lambda: self._clustering(collection, name))
            if pooled and representation.model is not None:
                self._clusters(collection, representation)
            if config.label_key is not None:
                self.folder.part("domains", name, lambda: self._domains(collection, name))
        if "heterogeneity" in tasks and pooled:
            if collection.table.obs[SAMPLE].nunique() > 2:
                self.folder.part("distances", name, lambda: self._distances(collection, name))
            else:
                logger.warning("Distances between samples need three or more; left out.")
            if collection.table.obs[TISSUE].nunique() > 2:
                of_tissues = partial(centroid_distances, collection.table, KEY, TISSUE)
                self.folder.part("tissue-distances", name, lambda: _named(of_tissues(), name))
        if "annotation" in tasks:
            part = collection.keep(rows)
            if self._can_hold_out(part, LABEL, held_out):
                for kind in representation.classifiers or config.classifiers:
                    compute = partial(self._annotation, part, representation, LABEL, kind, held_out)
                    self.folder.part("annotation", f"{name} {kind}", compute)
                if representation.model is not None or name == config.baseline:
                    self._annotation_maps(part, representation, held_out)
        if "composition" in tasks:
            part = collection.keep(rows)
            targets = part.obsm[config.target_key]
            known = targets.notna().all(axis=1)
            part.obs[DOMINANT] = targets.fillna(-1).idxmax(axis=1).where(known)
            if self._can_hold_out(part, DOMINANT, held_out):
                self.folder.part("composition", name, partial(self._composition, part, representation, held_out))
                dominant = partial(self._annotation, part, representation, DOMINANT, "forest", held_out)
                self.folder.part("dominant", name, dominant)
                if representation.model is not None:
                    self._composition_maps(part, representation, held_out)
        self.folder.mark_done(name)

    def _can_hold_out(self, part: AnnData, label: str, held_out: list[str]) -> bool:
        """Whether a task has something to learn from and something to be scored on."""
        groups = set(part.obs[GROUP][part.obs[label].notna()])
        tested = groups & set(held_out)
        if tested and len(groups) > 1 and not (self.config.test and tested == groups):
            return True
        logger.warning("Too few groups have %ss to hold some out: the task is left out.", label)
        return False

    def _test_groups(self, part: AnnData, label: str, held_out: list[str]) -> list[str] | None:
        """Groups held out together, as the settings name them; None holds out each in turn."""
        if not self.config.test:
            return None
        groups = set(part.obs[GROUP][part.obs[label].notna()])
        return [group for group in held_out if group in groups]

    def _targets(self, collection: Collection) -> list[str]:
        return [key for key in (SAMPLE, TISSUE, LABEL) if collection.table.obs[key].nunique() > 1]

    def _clustering(self, collection: Collection, name: str) -> pd.DataFrame:
        table = evaluate_clustering(
            collection.table, KEY, self._targets(collection), n_repeats=self.config.n_repeats, seed=self.config.seed
        )
        return _named(table, name)

    def _domains(self, collection: Collection, name: str) -> pd.DataFrame:
        labelled = collection.table.obs[LABEL].notna() & np.isfinite(collection.table.obsm[KEY]).all(axis=1)
        table = evaluate_clustering(
            collection.keep(labelled.to_numpy()),
            KEY,
            LABEL,
            within=SAMPLE,
            n_repeats=self.config.n_repeats,
            seed=self.config.seed,
        )
        return _named(table, name)

    def _clusters(self, collection: Collection, representation: Representation) -> None:
        """Clusters of a model's embedding: their number, genes and tissues; t-SNE."""
        config, name, table = self.config, representation.name, collection.table

        def run() -> pd.DataFrame:
            tl.cluster(table, KEY, n_clusters=config.n_clusters, rng=config.seed)
            tl.cluster_markers(table)
            tl.cluster_proportions(table, TISSUE if table.obs[TISSUE].nunique() > 1 else SAMPLE)
            for key, slot in (("markers", _keys.CLUSTER_MARKERS), ("cluster proportions", _keys.CLUSTER_PROPORTIONS)):
                results = table.uns[slot]["results"]
                top = results.groupby("cluster").head(N_MARKERS) if key == "markers" else results
                write(self.folder.parts / f"{slug(key)}__{slug(name)}.csv", _named(top, name).to_csv(index=False))
            self.folder.figure(
                "proportions", name, lambda path: _close(pl.cluster_proportions(table, return_fig=True, save=path))
            )
            for cluster in table.obs[_keys.CLUSTER].cat.categories[:4]:
                self.folder.figure("markers", f"{name}, cluster {cluster}", partial(_markers, table, str(cluster)))
            scores = table.uns[_keys.CLUSTER]["scores"].reset_index()
            for slot in (_keys.CLUSTER, _keys.CLUSTER_MARKERS, _keys.CLUSTER_PROPORTIONS):
                del table.uns[slot]
            del table.obs[_keys.CLUSTER]
            return _named(scores, name)

        self.folder.part("clusters", name, run)
        if collection.table.n_obs < MIN_TSNE:
            logger.warning("Fewer than %d spots: no t-SNE.", MIN_TSNE)
            return
        self.folder.figure("tsne", name, lambda path: self._tsne(collection, name, path))

    def _tsne(self, collection: Collection, name: str, path: Path) -> None:
        import anndata as ad
        import matplotlib.pyplot as plt
        import scanpy as sc

        table = collection.table
        generator = np.random.default_rng(self.config.seed)
        chosen = np.sort(generator.permutation(table.n_obs)[:MAX_TSNE])
        part = ad.AnnData(obs=table.obs.iloc[chosen].copy(), obsm={"X": table.obsm[KEY][chosen]})
        sc.tl.tsne(part, use_rep="X", random_state=self.config.seed)
        color = TISSUE if table.obs[TISSUE].nunique() > 1 else SAMPLE
        part.obs[color] = part.obs[color].astype("category")
        figure = sc.pl.tsne(part, color=[color, GROUP], show=False, return_fig=True, wspace=0.5, frameon=False)
        save_figure(figure, path, dpi=110, bbox_inches="tight")
        plt.close(figure)

    def _distances(self, collection: Collection, name: str) -> pd.DataFrame:
        tables = []
        for kind in (TISSUE, GROUP):
            if collection.table.obs[kind].nunique() > 1:
                pairs = centroid_distances(collection.table, KEY, SAMPLE, kind_key=kind)
                tables.append(pairs.assign(kind_of=kind))
        if not tables:
            tables = [centroid_distances(collection.table, KEY, SAMPLE).assign(kind_of="none")]
        return _named(pd.concat(tables), name)

    def _annotation(
        self, part: AnnData, representation: Representation, label: str, kind: str, held_out: list[str]
    ) -> pd.DataFrame:
        config = self.config
        n_bootstraps = config.n_bootstraps if representation.n_bootstraps is None else representation.n_bootstraps
        scores = evaluate_annotation(
            part,
            label,
            key_of(representation),
            group_key=GROUP,
            library_key=SAMPLE,
            classifier=kind,  # type: ignore[arg-type]
            scale=representation.scale,  # type: ignore[arg-type]
            test_groups=self._test_groups(part, label, held_out),
            n_bootstraps=n_bootstraps,
            seed=config.seed,
        )
        return _named(scores, representation.name)

    def _composition(self, part: AnnData, representation: Representation, held_out: list[str]) -> pd.DataFrame:
        scores = evaluate_composition(
            part,
            str(self.config.target_key),
            key_of(representation),
            group_key=GROUP,
            library_key=SAMPLE,
            scale=representation.scale,  # type: ignore[arg-type]
            test_groups=self._test_groups(part, DOMINANT, held_out),
            device=self.config.device,
            seed=self.config.seed,
        )
        return _named(scores, representation.name)

    def _annotation_maps(self, part: AnnData, representation: Representation, held_out: list[str]) -> None:
        """Predicted beside known labels of each held-out group's first labelled section."""

        def draw(reference: AnnData, query: AnnData, key: str, path: Path) -> None:
            tl.annotate(
                query,
                LABEL,
                use_rep=key,
                reference=reference,
                scale=representation.scale,  # type: ignore[arg-type]
                library_key=SAMPLE,
                group_key=GROUP,
                rng=self.config.seed,
            )
            _close(pl.annotation(query, LABEL, return_fig=True, save=path))

        self._maps("annotation", part, representation, held_out, part.obs[LABEL].notna(), draw)

    def _composition_maps(self, part: AnnData, representation: Representation, held_out: list[str]) -> None:
        """Likeliest class, predicted beside known, of each held-out group's first section."""
        target = str(self.config.target_key)

        def draw(reference: AnnData, query: AnnData, key: str, path: Path) -> None:
            tl.composition(
                query,
                target,
                use_rep=key,
                reference=reference,
                scale=representation.scale,  # type: ignore[arg-type]
                library_key=SAMPLE,
                group_key=GROUP,
                device=self.config.device,
                rng=self.config.seed,
            )
            _close(pl.composition(query, target, return_fig=True, save=path))

        self._maps("likeliest", part, representation, held_out, part.obsm[target].notna().all(axis=1), draw)

    def _maps(
        self,
        what: str,
        part: AnnData,
        representation: Representation,
        held_out: list[str],
        known: pd.Series,
        draw: Callable[[AnnData, AnnData, str, Path], None],
    ) -> None:
        for group in held_out:
            rows = known & part.obs["x"].notna() & (part.obs[GROUP] == group)
            if not rows.any():
                continue
            sample = part.obs[SAMPLE][rows].iloc[0]
            away = held_out if self.config.test else [group]
            reference = part[(~part.obs[GROUP].isin(away)).to_numpy()]
            query = part[(part.obs[SAMPLE] == sample).to_numpy()].copy()
            query.obsm[_keys.SPATIAL] = query.obs[["x", "y"]].to_numpy()
            key = key_of(representation, group)
            self.folder.figure(what, f"{representation.name}, {sample}", partial(draw, reference, query, key))


def _named(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Under the representation's own name."""
    return table.assign(representation=name)


def _markers(table: AnnData, cluster: str, path: Path) -> None:
    _close(pl.cluster_markers(table, cluster, return_fig=True, save=path))


def _close(figure: Any) -> None:
    import matplotlib.pyplot as plt

    plt.close(figure)
