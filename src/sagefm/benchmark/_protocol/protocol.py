"""The protocol: all representations through all tasks, resumable, with a report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from sagefm._settings import logger
from sagefm.benchmark._annotation import compare_representations
from sagefm.benchmark._heterogeneity import summarize_distances
from sagefm.benchmark._protocol.collection import GROUP, LABEL, SAMPLE, TISSUE, Collection
from sagefm.benchmark._protocol.config import Config, read
from sagefm.benchmark._protocol.folder import REPORT, Folder, write
from sagefm.benchmark._protocol.leakage import check_model, imputed_groups, split
from sagefm.benchmark._protocol.report import Report
from sagefm.benchmark._protocol.tasks import Tasks
from sagefm.tl._labels.labels import METRICS


def run_protocol(
    config: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    preset: Literal["oscc", "gbm", "clustering"] | None = None,
    overwrite: bool = False,
) -> dict[str, pd.DataFrame]:
    """Compare representations on a collection of sections: clustering, distances, annotation, composition.

    Parameters
    ----------
    config
        TOML file, folder of sections (clustering and distances of the defaults), or a mapping with the same settings;
        the evaluation page of the documentation lists them.
    out
        Folder for tables and report. A run that was interrupted goes on from what lies there.
    preset
        Task of the paper, for all that ``config`` doesn't set: ``"oscc"``, ``"gbm"`` (both need ``test``, the held-out
        sections; ``"gbm"`` needs ``target_key`` too) or ``"clustering"``. Compares the model, MOFA and expression.
    overwrite
        Start again if the folder holds a run with other settings or of other files.

    Returns
    -------
    The tables by name: ``clustering``, ``distances`` and their ``heterogeneity`` summary, ``annotation``,
    ``dominant``, their ``annotation_tests`` and ``dominant_tests``, ``composition``, of the tasks that ran. In ``out``
    lie ``results/*.csv``, ``protocol.json`` (settings, versions, seeds, seconds and memory), ``figures/*.png`` and
    ``report.html``, one file.

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
    SAGE-FM (arXiv 2601.15504), Figures 2 to 4 and Methods, downstream tasks. The presets tune what the paper tuned, by
    cross-validation among the training sections (two folds for OSCC, four for glioblastoma), fit 30 bootstraps, and
    score the held-out sections as one. The paper doesn't say which values it tried.

    No representation reads labels; those that are fitted (PCA, NichePCA, MOFA) are fitted to all sections together,
    the tested ones included, which favours them over a model that never saw these.

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
    settings = read(config, preset)
    folder = Folder(settings, Path(out), overwrite)
    started = time.perf_counter()
    collection = Collection(settings)
    rows, held_out = split(collection)
    for representation in settings.representations:
        if {"annotation", "composition"} & set(settings.tasks_of(representation)):
            if not held_out or collection.table.obs[GROUP][rows].nunique() < 2:
                raise ValueError(f"holding out takes two values or more of obs[{settings.group_key!r}].")
            check_model(collection, representation, held_out)
        if "imputation" in settings.tasks_of(representation):
            check_model(collection, representation, imputed_groups(collection, representation, held_out))
    for representation in settings.representations:
        logger.info("%s: %s.", representation.name, ", ".join(settings.tasks_of(representation)) or "no task")
    folder.open()
    for representation in settings.representations:
        Tasks(collection, folder, representation, rows, held_out).run()
    tables = _gather(settings, folder)
    sections = collection.table.obs.groupby(SAMPLE, observed=True).agg(
        group=(GROUP, "first"), tissue=(TISSUE, "first"), n_spots=(GROUP, "size"), n_labelled=(LABEL, "count")
    )
    listed = sections.reset_index().to_dict(orient="records")
    folder.close(listed, collection.table.n_vars, time.perf_counter() - started)
    write(folder.path / REPORT, Report(settings, folder.record, tables, folder.figures).page())
    logger.info("Wrote %s.", folder.path / REPORT)
    return tables


def _gather(settings: Config, folder: Folder) -> dict[str, pd.DataFrame]:
    """Tables of all pieces, their summaries and tests, written as files."""
    tables = folder.gather()
    if "distances" in tables:
        by_kind = tables["distances"].groupby("kind_of", sort=False)
        summary = {kind: summarize_distances(part) for kind, part in by_kind}
        tables["heterogeneity"] = pd.concat(summary, names=["kind_of"]).reset_index()
    if "tissue-distances" in tables:
        summary_of_tissues = summarize_distances(tables["tissue-distances"]).dropna(axis=1, how="all")
        tables["tissue-heterogeneity"] = summary_of_tissues.reset_index()
    for task in ("annotation", "dominant"):
        if task in tables and settings.baseline in {None, *tables[task]["representation"]}:
            tests = compare_representations(tables[task], settings.baseline, metrics=METRICS)
            if len(tests):
                tables[f"{task}_tests"] = tests
    for name, table in tables.items():
        write(folder.path / "results" / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    return tables
