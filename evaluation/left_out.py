"""Models of a recipe, each trained without some donors, for the scripts that measure on unseen donors.

    python evaluation/left_out.py SECTIONS_DIR [--recipe mini]

trains those that are missing in build/left_out, two at a time (half an hour for mini on 2 CPU cores).
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import anndata as ad

import sagefm as sg

T, R = TypeVar("T"), TypeVar("R")

# Panels, scattered spots, and what its licence keeps out of a model.
EXCLUDED = ("HCC1_2000g", "DLPFC_Br8325_ant_5000g", "stMCCC_ccRCC_500spots", "PDAC_A_ST1_legacy")
# RA4 has 7,202 shallow spots, which would outweigh every other donor: two of its five sections are enough.
OUTWEIGHING = ("synovium_RA4_s3", "synovium_RA4_s4", "synovium_RA4_s5")
# Donors that are left out together. In each part are several tissues and platforms.
PARTS = (
    ("her2st_G", "CRC_16", "synovium_RA1"),
    ("her2st_A", "janesick", "synovium_RA3"),
    ("her2st_C", "thrane1", "synovium_RA4"),
    ("her2st_D", "MSTI1", "synovium_RA6"),
    ("her2st_E", "her2st_F", "stahl_BC", "lung_V10T31-015"),
)
VALIDATED = "her2st_G"  # not in the package's models either
DONORS = tuple(donor for part in PARTS for donor in part)
MINI = sg.train.PRESETS["mini"]
RECIPES = sg.train.PRESETS | {"no_similar": replace(MINI, similar=0.0), "base": replace(MINI, hidden=(512, 512))}
BUILD = Path(__file__).parents[1] / "build"
LEFT_OUT = BUILD / "left_out"


def section_files(folder: Path) -> dict[str, Path]:
    """The sections that models are trained on."""
    files = {file.stem: file for file in sorted(folder.glob("*.h5ad"))}
    return {name: file for name, file in files.items() if name not in EXCLUDED + OUTWEIGHING}


def donor_sections(donor: str, folder: Path) -> dict[str, ad.AnnData]:
    """Sections of a donor, with their graphs."""
    sections = {}
    for name, file in section_files(folder).items():
        adata = ad.read_h5ad(file, backed="r")
        if (adata.obs["donor"] == donor).all():
            sections[name] = adata.to_memory()
            sg.pp.neighborhood_graph(sections[name])
    return sections


@cache
def training_corpus(folder: Path) -> sg.train.Corpus:
    """All sections; prepared once, in two minutes."""
    path = BUILD / "corpus.zarr"
    if not path.exists():
        sg.train.prepare_corpus(section_files(folder), path, split={VALIDATED: "validate"})
    return sg.train.Corpus.open(path)


def folder_of(recipe: str) -> Path:
    """Where its models lie, one for each donor."""
    return LEFT_OUT if recipe == "mini" else BUILD / f"left_out_{recipe}"


def model_without(donor: str, sections: Path, recipe: str = "mini") -> sg.models.Model:
    """Train a recipe without the part that a donor is in (8 minutes for mini on 2 CPU cores), or load it."""
    folder = folder_of(recipe)
    if not (folder / f"{donor}.safetensors").exists():
        part = next(part for part in PARTS if donor in part)
        files = [folder / f"{name}.safetensors" for name in part]
        train(training_corpus(sections).with_split(dict.fromkeys(part, "test")), recipe, files[0])
        for file in files[1:]:  # each donor's under its own name
            shutil.copy(files[0], file)
    return sg.models.load(folder / f"{donor}.safetensors")


def train(corpus: sg.train.Corpus, recipe: str, out: Path, **options: object) -> sg.models.Model:
    """Train on a CPU, where the same seed gives the same model."""
    run = Path(tempfile.mkdtemp())
    try:
        return sg.train.pretrain(corpus, RECIPES[recipe], out=out, run_dir=run, accelerator="cpu", **options)
    finally:
        shutil.rmtree(run, ignore_errors=True)


def in_two_processes(fn: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
    """Results in the order of the tasks; most of what is measured here uses one core.

    The processes are started anew: a copy of one that has run numba's threads can hang.
    """
    with ProcessPoolExecutor(2, get_context("spawn"), initializer=_one_thread) as pool:
        yield from pool.map(fn, tasks)


def _one_thread() -> None:
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sg.settings.verbosity, sg.settings.progress_bars = "error", False


def _train_part(task: tuple[str, Path, str]) -> str:
    donor, sections, recipe = task
    model_without(donor, sections, recipe)
    return donor


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--recipe", choices=RECIPES, default="mini")
    parser.add_argument("--donors", nargs="+", default=[part[0] for part in PARTS], help="one of each part")
    arguments = parser.parse_args()
    training_corpus(arguments.sections)  # before two processes want it
    for donor in in_two_processes(_train_part, [(d, arguments.sections, arguments.recipe) for d in arguments.donors]):
        print(donor, flush=True)


if __name__ == "__main__":
    main()
