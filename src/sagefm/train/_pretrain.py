"""Pretraining from a corpus to a saved model."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import nn

from sagefm import models
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._utils import check_choice, check_whole
from sagefm.benchmark import evaluate_imputation
from sagefm.models import Model
from sagefm.models._seen import hash_spots, hashed_genes
from sagefm.train._corpus import Corpus
from sagefm.train._module import MaskedCenter
from sagefm.train._niche import Niche
from sagefm.train._recipe import PRESETS, Recipe
from sagefm.train._split import TRAIN, VALIDATE
from sagefm.train._stream import SHUFFLE_SPOTS
from sagefm.train._trainer import CHECKPOINT_STEPS, find_folder, fit

# What the decoder's gains of neighbors and similar spots start with; the rest of each gene's mean is in its bias.
START_GAINS, START_WITHOUT_SIMILAR = (0.3, 0.6), (0.7, 0.0)


@fill_docstring
def pretrain(
    corpus: Corpus | str | Path,
    preset: str | Recipe = "mini",
    *,
    out: str | Path,
    init: str | Path | Model | None = None,
    resume: bool = False,
    run_dir: str | Path | None = None,
    name: str | None = None,
    card: dict[str, Any] | None = None,
    half: bool = True,
    rng: int = 0,
    shuffle_spots: int = SHUFFLE_SPOTS,
    checkpoint_steps: int = CHECKPOINT_STEPS,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: str = "32-true",
    accumulate: int = 1,
    **trainer_options: Any,
) -> Model:
    """Train a model on a corpus with the masked-central-spot objective, and save it.

    At every spot a share of the genes is set to 0 in the center and predicted from what is left and from the 14
    neighbors; the loss is the mean squared error of log1p counts on what was masked (paper, section on
    pretraining). Metrics of the validation split are computed after every epoch.

    Parameters
    ----------
    corpus
        Corpus of :func:`prepare_corpus`, or its path.
    preset
        ``"paper"``: the published architecture and hyper-parameters. ``"mini"`` and ``"nano"``: those of the models of
        that name. Or a :class:`Recipe` of your own.
    out
        File to write, ``.safetensors``; every function of ``sg.tl`` takes its path as ``model``.
    init
        Start from the weights of this model, to fine-tune it. Its architecture has to be the recipe's, its vocabulary
        the corpus's.
    {resume}
    {run_dir}
    name
        Name of the model; by default that of the file.
    card
        What else its card should say.
    half
        Store float16.
    rng
        Seed of weights, order, masks and dropout.
    shuffle_spots
        Spots in memory at a time, at 58 kB each. If the whole corpus fits it is read once, onto the GPU if there is
        one.
    {checkpoint_steps}
    accelerator, devices, num_nodes, strategy, precision
        As Lightning's ``Trainer`` takes them. Results don't depend on the number of devices, up to rounding.
    accumulate
        Batches whose gradients are added up for a step.
    {trainer_options}

    Returns
    -------
    The model, with a card that says what it was trained on and how it does on the validation split beside
    the baselines.

    Raises
    ------
    ValueError
        If the preset is unknown, ``init`` doesn't fit, the recipe needs a validation split and there is none, or
        ``resume`` finds the checkpoint of a training with other settings.
    FileNotFoundError
        If ``resume`` finds no checkpoint.
    RuntimeError
        If the loss is not finite.
    KeyboardInterrupt
        On Ctrl-C; ``resume=True`` goes on from the last checkpoint.

    Examples
    --------
    >>> import tempfile
    >>> from dataclasses import replace
    >>> import sagefm as sg
    >>> sg.settings.progress_bars = False
    >>> slide = sg.datasets.simulated_visium(8, 8, n_genes=5_000)
    >>> slide.obs["donor"] = "donor 0"
    >>> recipe = replace(sg.train.PRESETS["mini"], hidden=(8, 8), max_epochs=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     split = {{"donor 0": "train"}}
    ...     corpus = sg.train.prepare_corpus({{"slide": slide}}, f"{{folder}}/corpus.zarr", split=split)
    ...     model = sg.train.pretrain(corpus, recipe, out=f"{{folder}}/tiny.safetensors", accelerator="cpu")
    >>> model
    Model('tiny', sage 8-8, 393,146 parameters, 14,558 genes)
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    if isinstance(preset, str):
        check_choice("preset", preset, PRESETS)
    recipe = PRESETS[preset] if isinstance(preset, str) else preset
    seed = check_whole("rng", rng, 0)
    out, folder = find_folder(out, run_dir, resume)
    validates = bool(corpus.names(VALIDATE))
    if not validates and (recipe.patience is not None or recipe.schedule == "plateau"):
        raise ValueError("the recipe watches the validation loss, but the corpus has no section to validate on.")
    module = build(corpus, recipe, init=init, seed=seed, shuffle_spots=shuffle_spots)
    trainer = fit_recipe(
        module,
        folder,
        resume=resume,
        checkpoint_steps=checkpoint_steps,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        accumulate_grad_batches=accumulate,
        **trainer_options,
    )
    return _finish(trainer, module, out, name or out.stem, card, half)


def build(
    corpus: Corpus,
    recipe: Recipe,
    *,
    init: str | Path | Model | None = None,
    seed: int = 0,
    shuffle_spots: int = SHUFFLE_SPOTS,
    module_class: type[MaskedCenter] = MaskedCenter,
) -> MaskedCenter:
    """Network and objective before the first step."""
    if recipe.similar and not corpus.sections["similar"].any():
        raise ValueError(
            "the corpus holds no similar spots. Prepare it with similar=True, or set similar=0 in the recipe."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(recipe, corpus, init)
        niche = Niche.fit(corpus, recipe.hidden[-1], seed=seed) if recipe.niche_weight else None
        if niche is not None and init is not None:
            recipe_before = models.load(init).card.get("training", {}).get("recipe", {})
            niche.start_from(network, corpus, turned=bool(recipe_before.get("niche_weight")))
        return module_class(network, corpus, recipe, niche=niche, seed=seed, shuffle_spots=shuffle_spots)


def fit_recipe(module: MaskedCenter, folder: Path, **options: Any) -> lightning.Trainer:
    """Train by the module's recipe; afterwards the module holds the weights to keep."""
    recipe, validates = module.recipe, bool(module.corpus.names(VALIDATE))
    best = ModelCheckpoint(folder / "checkpoints", "best", monitor="val_loss", enable_version_counter=False)
    callbacks: list[Callback] = []
    if recipe.average_from is not None:
        callbacks.append(_TailAverage(int(recipe.average_from * recipe.max_epochs)))
    elif validates:
        callbacks.append(best)
    if recipe.patience is not None:
        callbacks.append(EarlyStopping("val_loss", patience=recipe.patience))
    options |= {"max_epochs": recipe.max_epochs, "limit_val_batches": None if validates else 0}
    trainer = fit(module, folder, callbacks=callbacks, **options)
    if best.best_model_path:
        module.load_state_dict(torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"])
    return trainer


def _network(recipe: Recipe, corpus: Corpus, init: str | Path | Model | None) -> nn.Module:
    """Network to train, with its first weights."""
    if recipe.architecture == "sage":
        network: nn.Module = models.SAGE(len(corpus.vocabulary), recipe.hidden, recipe.dropout)
    else:
        network = models.GCN(len(corpus.vocabulary), recipe.hidden)
    if init is not None:
        start = models.load(init)
        if start.vocabulary.sha256 != corpus.vocabulary.sha256:
            raise ValueError(f"{start.name} has another vocabulary than the corpus. Prepare it with model=....")
        if (start.architecture, start.hidden) != (recipe.architecture, recipe.hidden):
            raise ValueError(
                f"{start.name} is a {start.architecture} of widths {start.hidden}, the recipe asks for a "
                f"{recipe.architecture} of widths {recipe.hidden}. Change the recipe."
            )
        network.load_state_dict(start.weights.state_dict())
    elif recipe.start_at_mean:
        gene_mean = corpus.gene_mean(TRAIN)
        gains = (0.0, 0.0)
        if recipe.architecture == "sage":
            gains = START_GAINS if recipe.similar else START_WITHOUT_SIMILAR
        with torch.no_grad():
            network.fc_gene.weight.mul_(0.1)  # type: ignore[union-attr, operator]
            share = 1 - sum(gains)
            network.fc_gene.bias.copy_(share * torch.from_numpy(gene_mean))  # type: ignore[union-attr, operator]
            if recipe.architecture == "sage":
                network.gain.fill_(gains[0])  # type: ignore[operator]
                network.similar_gain.fill_(gains[1])  # type: ignore[operator]
    return network


def _finish(
    trainer: lightning.Trainer,
    module: MaskedCenter,
    out: Path,
    name: str,
    card: dict[str, Any] | None,
    half: bool,
) -> Model:
    """Turn the embedding, evaluate and save."""
    network, corpus, recipe = module.finished_network(), module.corpus, module.recipe
    trained = corpus.sections.loc[corpus.names(TRAIN)]
    full_card = {
        "training": {
            "sections": list(trained.index),
            "groups": sorted(trained["group"].unique()),
            "spots": int(trained["n_spots"].sum()),
            "recipe": {**asdict(recipe), "hidden": list(recipe.hidden)},
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "seed": module.seed,
        },
        **(card or {}),
    }
    model = Model(name, network, corpus.vocabulary, card=full_card, gene_mean=corpus.gene_mean(TRAIN))
    if not trainer.is_global_zero:
        return model
    genes = hashed_genes(corpus.gene_mean(TRAIN))
    hashes = [hash_spots(section.X, genes) for section in corpus.iter_sections(TRAIN)]
    model = replace(model, trained_spots=np.unique(np.concatenate([found[enough] for found, enough in hashes])))
    if half:  # what is evaluated is what is saved
        for parameter in network.parameters():
            parameter.copy_(parameter.half().float())
    if corpus.names(VALIDATE):
        table = evaluate_imputation(
            corpus.iter_sections(VALIDATE), model, mask_fraction=recipe.mask_fraction, device="cpu"
        )
        full_card["validation"] = {
            "groups": sorted(corpus.sections.loc[corpus.names(VALIDATE), "group"].unique()),
            "spots": int(table["n_spots"].iloc[0]),
            "metrics": {
                predictor: {metric: round(float(value), 4) for metric, value in row.items()}
                for predictor, row in table[["rmse", "r_within", "r_pooled", "r2_spot"]].iterrows()
            },
        }
        logger.info("Validation:\n%s", table[["rmse", "r_within", "r_pooled", "r2_spot"]].round(4).to_string())
    out.parent.mkdir(parents=True, exist_ok=True)
    model.save(out, half=half)
    logger.info("Wrote %s (%.1f MB).", out, out.stat().st_size / 1e6)
    return model


class _TailAverage(WeightAveraging):
    """Average of the weights at the end of the last epochs."""

    def __init__(self, first_epoch: int) -> None:
        super().__init__()
        self._first_epoch = first_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None and epoch_idx >= self._first_epoch

    # Validation takes the average, which is that of the first weights until one epoch is in it.
    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.current_epoch > self._first_epoch:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.current_epoch > self._first_epoch:
            super().on_validation_epoch_end(trainer, pl_module)
