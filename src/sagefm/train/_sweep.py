"""Several recipes on one corpus, and which validates best."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sagefm import models
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._utils import check_whole, progress
from sagefm.models import Model
from sagefm.train._corpus import Corpus
from sagefm.train._pretrain import pretrain
from sagefm.train._recipe import Recipe
from sagefm.train._split import TRAIN, VALIDATE
from sagefm.train._trainer import last_checkpoint

METRICS = ("rmse", "r_within", "r_pooled", "r2_spot")


@fill_docstring
def sweep(
    corpus: Corpus | str | Path,
    recipes: Mapping[str, Recipe],
    out: str | Path,
    *,
    n_jobs: int = 1,
    rng: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Train a model by each recipe and compare them on the validation split.

    Called again after an interruption, it keeps the models that are done, and goes on with the one that isn't from its
    last checkpoint.

    Parameters
    ----------
    corpus
        Corpus of :func:`prepare_corpus` with a validation split, or its path.
    recipes
        Recipes by name.
    out
        Folder to write: ``NAME.safetensors`` and a folder of checkpoints and logs for each.
    n_jobs
        Recipes at a time, each in a process of its own; on a machine with GPUs, each on its own one. In a script, the
        call then belongs under ``if __name__ == "__main__":``.
    {seed}
    options
        Of :func:`pretrain`, such as ``accelerator``.

    Returns
    -------
    One row a recipe, lowest error first: ``rmse``, ``r_within``, ``r_pooled`` and ``r2_spot`` on the validation split;
    ``parameters``, ``epochs``, and the ``path`` of the model. Also written to ``out/sweep.csv``.

    Raises
    ------
    ValueError
        If there are no recipes, the corpus has no validation split, or there are fewer GPUs than ``n_jobs``.
    FileExistsError
        If ``out`` holds a model of that name by another recipe, seed or split.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Methods: four and five layers of 256 to 2,048 units, 20 and 30 % masked, the lowest
    validation RMSE of each percentage.

    Examples
    --------
    >>> import tempfile
    >>> from dataclasses import replace
    >>> import sagefm as sg
    >>> sg.settings.progress_bars = False
    >>> slides = {{f"slide{{i}}": sg.datasets.simulated_visium(8, 8, n_genes=5_000, rng=i) for i in range(2)}}
    >>> for name, slide in slides.items():
    ...     slide.obs["donor"] = name
    >>> small = replace(sg.train.PRESETS["mini"], max_epochs=1)
    >>> recipes = {{str(width): replace(small, hidden=(width, width)) for width in (4, 8)}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     corpus = sg.train.prepare_corpus(slides, f"{{folder}}/corpus.zarr", split={{"slide1": "validate"}})
    ...     table = sg.train.sweep(corpus, recipes, f"{{folder}}/models", accelerator="cpu")
    >>> sorted(table.index)
    ['4', '8']
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    seed, n_jobs = check_whole("rng", rng, 0), check_whole("n_jobs", n_jobs, 1)
    if not recipes:
        raise ValueError("recipes is empty: name at least one.")
    if not corpus.names(VALIDATE):
        raise ValueError("the corpus has no section to validate on, so nothing tells which recipe is best.")
    folder = Path(out).expanduser()
    files = {name: folder / f"{name}.safetensors" for name in recipes}
    done = {name: models.load(file) for name, file in files.items() if file.exists()}
    for name, model in done.items():
        if _made_with(model) != _asked(recipes[name], seed, corpus):
            raise FileExistsError(f"{files[name]} was trained by another recipe, seed or split. Choose another folder.")
    todo = [(corpus, recipes[name], files[name], seed, options) for name in recipes if name not in done]
    trained = _train_in_processes(todo, n_jobs) if n_jobs > 1 and len(todo) > 1 else map(_train, todo)
    for file in progress(trained, "Recipes", total=len(todo), unit="recipe"):
        done[file.stem] = models.load(file)
    rows = {}
    for name in recipes:
        file, model = files[name], done[name]
        metrics = model.card["validation"]["metrics"][model.name]
        rows[name] = {metric: metrics[metric] for metric in METRICS}
        rows[name] |= {"parameters": model.n_parameters, "epochs": model.card["training"]["epochs"], "path": str(file)}
    table = pd.DataFrame.from_dict(rows, "index").sort_values("rmse", kind="stable")
    table.to_csv(folder / "sweep.csv")
    logger.info(
        "%s has the lowest validation error of %d recipes (%.4f).", table.index[0], len(table), table["rmse"].iloc[0]
    )
    return table


def _train(task: tuple[Corpus, Recipe, Path, int, dict[str, Any]]) -> Path:
    corpus, recipe, file, seed, options = task
    pretrain(corpus, recipe, out=file, rng=seed, resume=last_checkpoint(file.with_suffix("")).exists(), **options)
    return file


def _train_in_processes(tasks: list[Any], n_jobs: int) -> Iterator[Path]:
    """Train several at a time; a process keeps the GPU that it took first."""
    n_jobs, context = min(n_jobs, len(tasks)), get_context("spawn")  # a copy of a process with threads can hang
    gpus, free = torch.cuda.device_count(), context.SimpleQueue()
    if 0 < gpus < n_jobs:
        raise ValueError(f"n_jobs={n_jobs} needs as many GPUs; there are {gpus}.")
    for number in range(n_jobs):
        free.put(number if gpus else None)
    with ProcessPoolExecutor(n_jobs, context, _take_gpu, (free,)) as pool:
        yield from pool.map(_train, tasks)


def _take_gpu(free: Any) -> None:
    """Let a process see one GPU alone."""
    number = free.get()
    if number is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number)


def _asked(recipe: Recipe, seed: int, corpus: Corpus) -> dict[str, Any]:
    return {
        "recipe": {**asdict(recipe), "hidden": list(recipe.hidden)},
        "seed": seed,
        "sections": list(corpus.names(TRAIN)),
    }


def _made_with(model: Model) -> dict[str, Any]:
    training = model.card.get("training", {})
    return {name: training.get(name) for name in ("recipe", "seed", "sections")}
