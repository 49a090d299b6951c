"""Pretraining of histology encoders, from slides with images to a saved vision transformer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._io.scratch import Scratch
from sagefm._settings import logger
from sagefm._types import Array, Floats
from sagefm._utils import check_choice, check_whole, progress
from sagefm.histology.encoder import Encoder, load_encoder
from sagefm.histology.ibot import IBOT
from sagefm.histology.patches import Patches, glass_density, tissue_fraction
from sagefm.histology.recipe import HISTOLOGY_PRESETS, HistologyRecipe
from sagefm.histology.spot_patches import open_patches
from sagefm.histology.vit import Shape
from sagefm.train._trainer import CHECKPOINT_STEPS, find_folder, fit

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

PER_SPOT = 4  # patches, by default
MIN_TISSUE = 0.25  # of a patch
ROUNDS = 10  # of drawing places, of which some lie on glass
FLAT = 1e-3  # standard deviation of features that don't differ between patches; the last norm makes it about 1


@fill_docstring
def pretrain_histology(
    slides: AnnData | SpatialData | str | Path | Sequence[AnnData | SpatialData | str | Path],
    preset: str | HistologyRecipe = "small",
    *,
    out: str | Path,
    n_patches: int | None = None,
    init: str | Path | Encoder | None = None,
    resume: bool = False,
    epochs: int | None = None,
    rng: int = 0,
    run_dir: str | Path | None = None,
    name: str | None = None,
    histology_key: str = _keys.HISTOLOGY,
    table_key: str = "table",
    checkpoint_steps: int = CHECKPOINT_STEPS,
    accelerator: str = "auto",
    devices: int | str = 1,
    precision: Any = "32-true",
    **trainer_options: Any,
) -> Encoder:
    """Pretrain a vision transformer on histology patches, without labels or counts, and save it.

    A student sees two views of each patch, some with masked tokens. It has to say what its teacher, the moving average
    of its own past weights, says of the other view as a whole and of the masked tokens (Zhou et al. 2022, iBOT).

    Parameters
    ----------
    slides
        One or several slides, or paths of ``.h5ad``, on which :func:`sagefm.pp.histology_patches` was run.
    preset
        ``"small"``: a transformer of 6 layers for patches of 112 pixels that learns within minutes on a CPU.
        ``"vit-b"``: the published size and hyper-parameters, for GPUs. Or a :class:`HistologyRecipe` of your own.
    out
        File to write, ``.safetensors``; :func:`sagefm.models.load_encoder` reads it.
    n_patches
        Patches of each slide: those of the spots, or some of them, and others from the tissue within a patch's width
        of spots. By default four a spot.
    init
        Start from this encoder's weights. Its shape has to be the recipe's.
    {resume}
    epochs
        Passes over the patches, instead of the recipe's.
    rng
        Seed of places, weights, order, views and masks. On a CPU the same seed gives the same weights bit for bit.
    {run_dir}
    name
        Name of the encoder; by default that of the file.
    {histology_key}
    {table_key}
    {checkpoint_steps}
    accelerator, devices, precision
        As Lightning's ``Trainer`` takes them.
    {trainer_options}

    Returns
    -------
    The teacher's transformer, with a card that says what it was trained on.

    Raises
    ------
    ImportError
        Without the packages lightning or transformers.
    KeyError
        If a slide has no patches.
    ValueError
        If the preset is unknown, ``init`` has another shape, ``out`` another ending, or ``resume`` finds the
        checkpoint of a training with other settings or patches.
    FileNotFoundError
        If a slide doesn't exist, or ``resume`` finds no checkpoint.
    RuntimeError
        If the loss is not finite.
    KeyboardInterrupt
        On Ctrl-C; ``resume=True`` goes on from the last checkpoint.

    Notes
    -----
    Patches are resampled to the recipe's pixels, so that they keep the field of view they were recorded with. They are
    read once and held in memory up to ``sg.settings.memory_limit``, beyond that in a temporary file.

    The published training has ten small crops of each image besides the two views, drops layers at random and clips
    each weight's gradient by itself; here are no small crops and no dropped layers, and all gradients are clipped
    together.

    References
    ----------
    Zhou et al. (2022). iBOT: Image BERT pre-training with online tokenizer. ICLR. arXiv:2111.07832.

    Examples
    --------
    >>> import tempfile
    >>> from dataclasses import replace
    >>> import sagefm as sg
    >>> sg.settings.progress_bars = False
    >>> slide = sg.datasets.simulated_visium(5, 5, n_genes=300, image=True)
    >>> sg.pp.histology_patches(slide, size=64)
    >>> small = sg.train.HISTOLOGY_PRESETS["small"]
    >>> recipe = replace(small, shape=replace(small.shape, size=32, width=64, depth=1), prototypes=16)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sg.train.pretrain_histology(slide, recipe, out=f"{{folder}}/tiny.safetensors", epochs=1, accelerator="cpu")
    Encoder('tiny', 32 pixels, 64 features, 99,712 parameters)
    """
    if isinstance(preset, str):
        check_choice("preset", preset, HISTOLOGY_PRESETS)
    recipe = HISTOLOGY_PRESETS[preset] if isinstance(preset, str) else preset
    if epochs is not None:
        recipe = replace(recipe, epochs=check_whole("epochs", epochs, 1))
    seed = check_whole("rng", rng, 0)
    out, folder = find_folder(out, run_dir, resume)
    listed = list(slides) if isinstance(slides, list | tuple) else [slides]
    if not listed:
        raise ValueError("slides is empty.")
    number = None if n_patches is None else check_whole("n_patches", n_patches, 1)
    first = None if init is None else load_encoder(init)
    if first is not None:
        _check_shape(first, recipe)

    patches = gather(listed, recipe.shape.size, number, seed, histology_key, table_key)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = IBOT(recipe, patches, seed=seed, init=first)
    trainer = fit(
        module,
        folder,
        max_epochs=recipe.epochs,
        resume=resume,
        checkpoint_steps=checkpoint_steps,
        gradient_clip_val=recipe.clip,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        **trainer_options,
    )
    training = {
        "preset": preset if isinstance(preset, str) else "own",
        "recipe": asdict(recipe),
        "init": None if first is None else first.name,
        "slides": len(listed),
        "patches": sum(map(len, patches)),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "losses": module.losses,
        "seed": seed,
    }
    encoder = Encoder(name or out.stem, module.finished_network(), {"training": training})
    if trainer.is_global_zero:
        _check_spread(encoder, patches[0])
        out.parent.mkdir(parents=True, exist_ok=True)
        encoder.save(out)
        logger.info("Wrote %s (%.1f MB).", out, out.stat().st_size / 1e6)
    return encoder


def gather(
    slides: Sequence[Any], size: int, n_patches: int | None, seed: int, histology_key: str, table_key: str
) -> list[Array]:
    """Pixels of patches of each section, shape (n, size, size, 3)."""
    scratch, found = Scratch(), []
    for number, slide in enumerate(progress(slides, "Reading", unit="slide")):
        adata, sdata = _open(slide, table_key)
        wanted = PER_SPOT * adata.n_obs if n_patches is None else n_patches
        for section, (rows, patches) in enumerate(open_patches(adata, sdata, histology_key)):
            share = max(1, round(wanted * len(rows) / adata.n_obs))
            places = draw_places(patches, share, np.random.default_rng((seed, number, section)))
            pixels = scratch.empty((len(places), size, size, 3), np.uint8)
            for numbers, part in replace(patches, centers=places, size=size).blocks():
                pixels[numbers] = part
            found.append(pixels)
    logger.info("Read %d patches of %d sections.", sum(map(len, found)), len(found))
    return found


def draw_places(patches: Patches, number: int, rng: np.random.Generator) -> Floats:
    """Centres of patches with tissue: those of the spots, then others up to a patch's width from one."""
    glass = glass_density(patches.image)
    candidates = rng.permutation(patches.centers)[:number]
    places = np.empty((0, 2))
    for _ in range(ROUNDS):
        tissue = tissue_fraction(replace(patches, centers=candidates), glass)
        places = np.concatenate([places, candidates[tissue >= MIN_TISSUE]])
        missing = number - len(places)
        if not missing:
            return places
        candidates = rng.choice(patches.centers, missing) + rng.uniform(-1, 1, (missing, 2)) * patches.width
    if not len(places):
        raise ValueError(f"no patch of {patches.image.name} has {MIN_TISSUE:.0%} tissue.")
    logger.warning("%s has little tissue: %d patches instead of %d.", patches.image.name, len(places), number)
    return places


def _open(slide: Any, table_key: str) -> tuple[AnnData, SpatialData | None]:
    import anndata as ad

    if isinstance(slide, str | os.PathLike):
        if not Path(slide).is_file():
            raise FileNotFoundError(f"no slide at {slide}.")
        slide = ad.read_h5ad(slide, backed="r")  # of the counts nothing is needed
    return get_anndata(slide, table_key), None if isinstance(slide, ad.AnnData) else slide


def _check_shape(encoder: Encoder, recipe: HistologyRecipe) -> None:
    """Refuse to start from an encoder of another shape than the recipe's."""
    config: Any = encoder.network.config
    found = Shape(encoder.size, int(config.patch_size), encoder.width, int(config.num_hidden_layers))
    if found != recipe.shape:
        raise ValueError(f"{encoder.name} has {found}, the recipe asks for {recipe.shape}. Change the recipe.")


def _check_spread(encoder: Encoder, patches: Array) -> None:
    """Warn where all patches look the same to the encoder."""
    spread = float(encoder.embed(np.ascontiguousarray(patches[:64]), "cpu").std(axis=0).mean())
    if len(patches) > 1 and spread < FLAT:
        logger.warning("The encoder sees no difference between patches: the training has collapsed. Train longer.")
