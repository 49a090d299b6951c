"""The protocol: all representations through all tasks, resumable, with a report."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import sagefm
from sagefm import _keys, pl, tl
from sagefm._settings import logger
from sagefm.benchmark import _report
from sagefm.benchmark._annotation import compare_representations, evaluate_annotation, evaluate_composition
from sagefm.benchmark._clustering import evaluate_clustering
from sagefm.benchmark._collection import GROUP, LABEL, SAMPLE, TISSUE, Collection, key_of
from sagefm.benchmark._config import Config, Representation, read
from sagefm.benchmark._heterogeneity import centroid_distances, summarize_distances

if TYPE_CHECKING:
    from anndata import AnnData

RECORD = "protocol.json"
MAX_TSNE = 4_000
N_MARKERS = 50
DOMINANT = "dominant"


def run_protocol(
    config: str | Path | Mapping[str, Any], out: str | Path, *, overwrite: bool = False
) -> dict[str, pd.DataFrame]:
    """Compare representations on a collection of sections: clustering, distances, annotation, composition.

    Parameters
    ----------
    config
        TOML file, folder of sections (clustering and distances of the defaults), or a mapping with the same settings;
        the evaluation page of the documentation lists them.
    out
        Folder for tables and report. A run that was interrupted goes on from what lies there.
    overwrite
        Start again where the folder holds a run with other settings, or of other files.

    Returns
    -------
    The tables by name: ``clustering``, ``distances`` and their ``heterogeneity`` summary, ``annotation``,
    ``annotation_tests``, ``dominant``, ``composition``, of the tasks that ran. In ``out`` lie ``results/*.csv``,
    ``protocol.json`` (settings, versions, seeds, seconds and memory), ``figures/*.png`` and ``report.html``, one file.

    Raises
    ------
    ValueError
        If the split leaks: a donor on both sides, a model that was trained on a donor it is tried on, or the same
        counts under two donors; or a setting is wrong.
    KeyError
        If a setting is unknown, or a column is missing.
    FileNotFoundError
        If a section or the configuration isn't there.
    FileExistsError
        If ``out`` holds something else.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figures 2 to 4. No representation reads labels; those that are fitted (PCA, NichePCA,
    MOFA) are fitted to all sections together, the tested ones included, which favours them over a model that never saw
    these.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import sagefm as sg
    >>> with TemporaryDirectory() as folder:
    ...     for seed in range(3):
    ...         adata = sg.datasets.simulated_visium(10, 10, n_genes=8000, rng=seed)
    ...         adata.obs["donor"] = adata.obs["tissue"] = f"donor {seed}"
    ...         adata.write_h5ad(Path(folder) / f"slide{seed}.h5ad")
    ...     settings = {
    ...         "sections": folder,
    ...         "representations": [{"name": "PCA", "expression": "log1p", "pca": 10}],
    ...         "tasks": ["heterogeneity"],
    ...     }
    ...     tables = sg.benchmark.run_protocol(settings, Path(folder) / "report")
    >>> len(tables["distances"])
    12
    """
    settings = read(config)
    folder = Path(out)
    run = _Run(settings, folder, overwrite)
    started = time.perf_counter()
    collection = Collection(settings)
    rows, held_out = collection.split()
    for representation in settings.representations:
        if {"annotation", "composition"} & set(run.tasks(representation)):
            if len(held_out) < 1 or collection.table.obs[GROUP][rows].nunique() < 2:
                raise ValueError(f"holding out takes two values or more of obs[{settings.group_key!r}].")
            collection.check_model(representation, held_out)
    for representation in settings.representations:
        run.representation(collection, representation, rows, held_out)
    return run.finish(collection, time.perf_counter() - started)


class _Run:
    """What a run has done so far, in its folder."""

    def __init__(self, config: Config, folder: Path, overwrite: bool) -> None:
        self.config, self.folder = config, folder
        self.parts, self.figures = folder / "parts", folder / "figures"
        fingerprint = self._fingerprint()
        record = folder / RECORD
        if record.exists():
            self.record: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            if self.record.get("fingerprint") != fingerprint:
                if not overwrite:
                    raise FileExistsError(
                        f"{folder} holds a run with other settings, files or another version. Choose another folder, "
                        "or pass overwrite=True (--overwrite) to start again."
                    )
                self._clear()
                self.record = {}
        elif folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} exists and holds no run of this protocol. Choose another folder.")
        else:
            self.record = {}
        for path in (self.parts, self.figures, folder / "results"):
            path.mkdir(parents=True, exist_ok=True)
        self.record = {**self.record, "fingerprint": fingerprint, "config": _portable(self.config)}
        self.record.setdefault("seconds", {})
        self._save()

    def _fingerprint(self) -> str:
        import hashlib

        paths = [Path(path) for path in self.config.sections]
        for entry in self.config.representations:
            if entry.model is not None and not entry.by_group and Path(entry.model).is_file():
                paths.append(Path(entry.model))
        files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
        config = {**_portable(self.config), "device": None, "title": None}
        text = json.dumps([config, files, sagefm.__version__], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _clear(self) -> None:
        for name in ("parts", "figures", "results"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in (RECORD, "report.html"):
            (self.folder / name).unlink(missing_ok=True)

    def _save(self) -> None:
        _write(self.folder / RECORD, json.dumps(self.record, indent=2, default=str) + "\n")

    def tasks(self, representation: Representation) -> list[str]:
        """What is to be done with a representation."""
        return [task for task in self.config.tasks if task in representation.tasks]

    def part(self, table: str, name: str, compute: Callable[[], pd.DataFrame]) -> None:
        """Compute one piece of a table, unless an earlier run has."""
        path = self.parts / f"{table}__{_slug(name)}.csv"
        if path.exists():
            logger.info("%s of %s is there already.", table, name)
            return
        logger.info("%s of %s.", table, name)
        started = time.perf_counter()
        _write(path, compute().to_csv(index=False))
        self.record["seconds"][path.stem] = round(time.perf_counter() - started, 1)
        self._save()

    def figure(self, name: str, draw: Callable[[Path], object]) -> None:
        """Draw one figure, unless an earlier run has."""
        path = self.figures / f"{_slug(name)}.png"
        if not path.exists():
            unfinished = path.with_name(f".{path.stem}.part.png")
            draw(unfinished)
            unfinished.replace(path)

    def representation(
        self, collection: Collection, representation: Representation, rows: np.ndarray, held_out: list[str]
    ) -> None:
        """All tasks of one representation."""
        config, name = self.config, representation.name
        tasks = self.tasks(representation)
        marker = self.parts / f"done__{_slug(name)}.csv"
        if marker.exists() or not tasks:
            return
        started = time.perf_counter()
        collection.compute(representation, held_out)
        self.record["seconds"][f"compute__{_slug(name)}"] = round(time.perf_counter() - started, 1)
        pooled = not representation.by_group
        if "clustering" in tasks:
            if pooled:
                self.part("clustering", name, lambda: self._clustering(collection, name))
                if representation.model is not None:
                    self._clusters(collection, representation)
            if config.label_key is not None:
                self.part("domains", name, lambda: self._domains(collection, name))
        if "heterogeneity" in tasks and pooled:
            self.part("distances", name, lambda: self._distances(collection, name))
        if "annotation" in tasks:
            part = collection.keep(rows)
            for kind in representation.classifiers or config.classifiers:
                self.part(
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
            self.part(
                "composition",
                name,
                lambda: _named(
                    evaluate_composition(
                        part,
                        str(config.target_key),
                        key_of(representation),
                        group_key=GROUP,
                        library_key=SAMPLE,
                        test_groups=[group for group in held_out if group in set(part.obs[GROUP][known])],
                        device=config.device,
                        seed=config.seed,
                    ),
                    name,
                ),
            )
            self.part("dominant", name, lambda: self._annotation(part, representation, DOMINANT, "forest", held_out))
        _write(marker, "")

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
                _write(self.parts / f"{_slug(key)}__{_slug(name)}.csv", _named(top, name).to_csv(index=False))
            self.figure(f"composition {name}", lambda path: _close(pl.cluster_composition(table, save=path)))
            for cluster in table.obs[_keys.CLUSTER].cat.categories[:4]:
                self.figure(f"markers {name} {cluster}", partial(_markers, table, str(cluster)))
            scores = table.uns[_keys.CLUSTER]["scores"].reset_index()
            for slot in (_keys.CLUSTER, _keys.CLUSTER_MARKERS, _keys.CLUSTER_COMPOSITION):
                del table.uns[slot]
            del table.obs[_keys.CLUSTER]
            return _named(scores, name)

        self.part("clusters", name, run)
        self.figure(f"tsne {name}", lambda path: self._tsne(collection, name, path))

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
            test_groups=[group for group in held_out if group in labelled],
            n_bootstraps=n_bootstraps,
            seed=config.seed,
        )
        return _named(scores, representation.name)

    def _annotation_maps(self, part: AnnData, representation: Representation, held_out: list[str]) -> None:
        """Predicted beside known labels of each held-out group's first labelled section."""
        for group in held_out:
            labelled = part.obs[LABEL].notna() & part.obs["x"].notna() & (part.obs[GROUP] == group)
            if not labelled.any():
                continue
            sample = part.obs[SAMPLE][labelled].iloc[0]
            key = key_of(representation).format(group=group)

            def draw(path: Path, group: str = group, sample: str = sample, key: str = key) -> None:
                reference = part[(part.obs[GROUP] != group).to_numpy()]
                query = part[(part.obs[SAMPLE] == sample).to_numpy()].copy()
                query.obsm[_keys.SPATIAL] = query.obs[["x", "y"]].to_numpy()
                tl.annotate(
                    query,
                    LABEL,
                    use_rep=key,
                    reference=reference,
                    library_key=SAMPLE,
                    group_key=GROUP,
                    rng=self.config.seed,
                )
                pl.annotation(query, LABEL, show=False, save=path)

            self.figure(f"annotation {representation.name} {sample}", draw)

    def finish(self, collection: Collection, seconds: float) -> dict[str, pd.DataFrame]:
        """Gather the tables, and write the report."""
        tables: dict[str, pd.DataFrame] = {}
        for path in sorted(self.parts.glob("*.csv")):
            table = path.stem.partition("__")[0]
            if table != "done":
                found = pd.read_csv(path, dtype={"sample": str, "group": str, "part": str})
                tables[table] = pd.concat([tables[table], found], ignore_index=True) if table in tables else found
        order = {entry.name: i for i, entry in enumerate(self.config.representations)}
        for name, table in tables.items():
            place = table["representation"].map(order)
            tables[name] = table.iloc[np.argsort(place.to_numpy(), kind="stable")].reset_index(drop=True)
        if "distances" in tables:
            summary = {
                kind: summarize_distances(part) for kind, part in tables["distances"].groupby("kind_of", sort=False)
            }
            tables["heterogeneity"] = pd.concat(summary, names=["kind_of"]).reset_index()
        if "annotation" in tables and self.config.baseline in set(tables["annotation"]["representation"]):
            tables["annotation_tests"] = compare_representations(tables["annotation"], str(self.config.baseline))
        for name, table in tables.items():
            _write(self.folder / "results" / f"{name}.csv", table.round(6).to_csv(index=False))
        memory = [_peak_memory(), self.record.get("machine", {}).get("peak_memory_gib")]
        peak = max((value for value in memory if value is not None), default=None)
        self.record |= {
            "sections": collection.table.obs.groupby(SAMPLE, observed=True)
            .agg(group=(GROUP, "first"), tissue=(TISSUE, "first"), n_spots=(GROUP, "size"), n_labelled=(LABEL, "count"))
            .reset_index()
            .to_dict(orient="records"),
            "n_genes": collection.table.n_vars,
            "versions": _versions(),
            "machine": {
                "system": platform.system(),
                "cpus": os.cpu_count(),
                "peak_memory_gib": max((value for value in memory if value is not None), default=None),
            },
            "seconds_last_run": round(seconds, 1),
            "seconds_parts": round(sum(self.record["seconds"].values()), 1),
        }
        self._save()
        _write(self.folder / "report.html", _report.write(self.config, self.record, tables, self.figures))
        logger.info("Wrote %s.", self.folder / "report.html")
        return tables


def _named(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Under the representation's own name."""
    return table.assign(representation=name)


def _portable(config: Config) -> dict[str, Any]:
    """Settings with files by name, as they are the same on any machine."""
    found = config.as_dict()
    found["sections"] = [Path(path).name for path in config.sections]
    for entry in found["representations"]:
        if entry["model"] is not None:
            entry["model"] = Path(entry["model"]).name
    return found


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def _write(path: Path, text: str) -> None:
    """Complete or not at all."""
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _markers(table: AnnData, cluster: str, path: Path) -> None:
    _close(pl.cluster_markers(table, cluster, save=path))


def _close(ax: Any) -> None:
    import matplotlib.pyplot as plt

    plt.close(ax.figure)


def _peak_memory() -> float | None:
    """Largest resident memory of this process so far, in GiB, where the system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**30 if platform.system() == "Darwin" else 2**20  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("sagefm", "anndata", "scanpy", "scikit-learn", "torch", "mofapy2", "numpy", "scipy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
