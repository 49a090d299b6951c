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
from sagefm.benchmark._annotation import evaluate_annotation, evaluate_composition
from sagefm.benchmark._clustering import evaluate_clustering
from sagefm.benchmark._collection import GROUP, LABEL, SAMPLE, TISSUE, Collection, key_of
from sagefm.benchmark._config import Config, Representation
from sagefm.benchmark._folder import Folder, slug, write
from sagefm.benchmark._heterogeneity import centroid_distances

if TYPE_CHECKING:
    from anndata import AnnData

MAX_TSNE = 4_000
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
        started = time.perf_counter()
        collection.compute(representation, held_out)
        self.folder.took(f"compute__{slug(name)}", started)
        pooled = not representation.by_group
        if "clustering" in tasks:
            if pooled:
                self.folder.part("clustering", name, lambda: self._clustering(collection, name))
                if representation.model is not None:
                    self._clusters(collection, representation)
            if config.label_key is not None:
                self.folder.part("domains", name, lambda: self._domains(collection, name))
        if "heterogeneity" in tasks and pooled:
            self.folder.part("distances", name, lambda: self._distances(collection, name))
        if "annotation" in tasks:
            part = collection.keep(rows)
            for kind in representation.classifiers or config.classifiers:
                self.folder.part(
                    "annotation",
                    f"{name} {kind}",
                    partial(self._annotation, part, representation, LABEL, kind, held_out),
                )
            if representation.model is not None or name == config.baseline:
                self._annotation_maps(part, representation, held_out)
        if "composition" in tasks:
            part = collection.keep(rows)
            targets = part.obsm[config.target_key]
            known = targets.notna().all(axis=1)
            part.obs[DOMINANT] = targets.fillna(-1).idxmax(axis=1).where(known)
            self.folder.part("composition", name, partial(self._composition, part, representation, held_out))
            dominant = partial(self._annotation, part, representation, DOMINANT, "forest", held_out)
            self.folder.part("dominant", name, dominant)
            if representation.model is not None:
                self._composition_maps(part, representation, held_out)
        self.folder.mark_done(name)

    def _clustering(self, collection: Collection, name: str) -> pd.DataFrame:
        obs = collection.table.obs
        targets = [key for key in (SAMPLE, TISSUE, LABEL) if obs[key].nunique() > 1]
        return evaluate_clustering(
            collection.table, name, targets, n_repeats=self.config.n_repeats, seed=self.config.seed
        )

    def _domains(self, collection: Collection, name: str) -> pd.DataFrame:
        labelled = collection.table.obs[LABEL].notna() & np.isfinite(collection.table.obsm[name]).all(axis=1)
        return evaluate_clustering(
            collection.keep(labelled.to_numpy()),
            name,
            LABEL,
            within=SAMPLE,
            n_repeats=self.config.n_repeats,
            seed=self.config.seed,
        )

    def _clusters(self, collection: Collection, representation: Representation) -> None:
        """Clusters of a model's embedding: their number, genes and tissues; t-SNE."""
        config, name, table = self.config, representation.name, collection.table

        def run() -> pd.DataFrame:
            tl.cluster(table, name, n_clusters=config.n_clusters, rng=config.seed)
            tl.cluster_markers(table)
            tl.cluster_composition(table, TISSUE if table.obs[TISSUE].nunique() > 1 else SAMPLE)
            for key, slot in (("markers", _keys.CLUSTER_MARKERS), ("cluster composition", _keys.CLUSTER_COMPOSITION)):
                results = table.uns[slot]["results"]
                top = results.groupby("cluster").head(N_MARKERS) if key == "markers" else results
                write(self.folder.parts / f"{slug(key)}__{slug(name)}.csv", _named(top, name).to_csv(index=False))
            self.folder.figure(f"composition {name}", lambda path: _close(pl.cluster_composition(table, save=path)))
            for cluster in table.obs[_keys.CLUSTER].cat.categories[:4]:
                self.folder.figure(f"markers {name} {cluster}", partial(_markers, table, str(cluster)))
            scores = table.uns[_keys.CLUSTER]["scores"].reset_index()
            for slot in (_keys.CLUSTER, _keys.CLUSTER_MARKERS, _keys.CLUSTER_COMPOSITION):
                del table.uns[slot]
            del table.obs[_keys.CLUSTER]
            return _named(scores, name)

        self.folder.part("clusters", name, run)
        self.folder.figure(f"tsne {name}", lambda path: self._tsne(collection, name, path))

    def _tsne(self, collection: Collection, name: str, path: Path) -> None:
        import anndata as ad
        import matplotlib.pyplot as plt
        import scanpy as sc

        table = collection.table
        generator = np.random.default_rng(self.config.seed)
        chosen = np.sort(generator.permutation(table.n_obs)[:MAX_TSNE])
        part = ad.AnnData(obs=table.obs.iloc[chosen].copy(), obsm={"X": table.obsm[name][chosen]})
        if part.n_obs < 100:
            logger.warning("Fewer than 100 spots: no t-SNE.")
            return
        sc.tl.tsne(part, use_rep="X", random_state=self.config.seed)
        color = TISSUE if table.obs[TISSUE].nunique() > 1 else SAMPLE
        part.obs[color] = part.obs[color].astype("category")
        figure = sc.pl.tsne(part, color=[color, GROUP], show=False, return_fig=True, wspace=0.5, frameon=False)
        figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(figure)

    def _distances(self, collection: Collection, name: str) -> pd.DataFrame:
        tables = []
        for kind in (TISSUE, GROUP):
            if collection.table.obs[kind].nunique() > 1:
                pairs = centroid_distances(collection.table, name, SAMPLE, kind_key=kind)
                tables.append(pairs.assign(kind_of=kind))
        if not tables:
            tables = [centroid_distances(collection.table, name, SAMPLE).assign(kind_of="none")]
        return pd.concat(tables)

    def _annotation(
        self, part: AnnData, representation: Representation, label: str, kind: str, held_out: list[str]
    ) -> pd.DataFrame:
        config = self.config
        labelled = set(part.obs[GROUP][part.obs[label].notna()])
        n_bootstraps = config.n_bootstraps if representation.n_bootstraps is None else representation.n_bootstraps
        scores = evaluate_annotation(
            part,
            label,
            key_of(representation),
            group_key=GROUP,
            library_key=SAMPLE,
            classifier=kind,  # type: ignore[arg-type]
            scale=representation.scale,  # type: ignore[arg-type]
            test_groups=[group for group in held_out if group in labelled],
            n_bootstraps=n_bootstraps,
            seed=config.seed,
        )
        return _named(scores, representation.name)

    def _composition(self, part: AnnData, representation: Representation, held_out: list[str]) -> pd.DataFrame:
        with_target = set(part.obs[GROUP][part.obs[DOMINANT].notna()])
        scores = evaluate_composition(
            part,
            str(self.config.target_key),
            key_of(representation),
            group_key=GROUP,
            library_key=SAMPLE,
            scale=representation.scale,  # type: ignore[arg-type]
            test_groups=[group for group in held_out if group in with_target],
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
            pl.annotation(query, LABEL, show=False, save=path)

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
            pl.composition(query, target, show=False, save=path)

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
            reference = part[(part.obs[GROUP] != group).to_numpy()]
            query = part[(part.obs[SAMPLE] == sample).to_numpy()].copy()
            query.obsm[_keys.SPATIAL] = query.obs[["x", "y"]].to_numpy()
            key = key_of(representation).format(group=group)
            self.folder.figure(f"{what} {representation.name} {sample}", partial(draw, reference, query, key))


def _named(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Under the representation's own name."""
    return table.assign(representation=name)


def _markers(table: AnnData, cluster: str, path: Path) -> None:
    _close(pl.cluster_markers(table, cluster, save=path))


def _close(ax: Any) -> None:
    import matplotlib.pyplot as plt

    plt.close(ax.figure)
