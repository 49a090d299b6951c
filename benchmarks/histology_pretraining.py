"""What pretraining on histology patches brings: expression on held-out sections, from features of three kinds.

    python benchmarks/histology_pretraining.py DATA [--seeds 0] [--random-seeds 0 1 2] [--epochs N] [--folder FOLDER]

DATA holds sections as ``NAME.h5ad`` and their images as ``images/NAME.jpg``. An encoder is pretrained on the patches
of the training sections alone, without their counts. On the spots of these, ridge and k-nearest-neighbor regression
predict log1p of the 250 most expressed genes, normalised to the median library, from the trained encoder's features,
from those of the same architecture with random weights (the usual ones, and those that pretraining starts from), and
from texture. Reported is Pearson's r of each gene within each held-out section, the mean over sections, the median
over genes.
"""

import argparse
import time
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timing import report

import sagefm as sg
from sagefm.histology import vit
from sagefm.histology.ibot import IBOT
from sagefm.histology.spot_patches import open_patches
from sagefm.models import Encoder

TRAIN, HELD_OUT = ("her2st_C2", "her2st_C3", "her2st_C4"), ("her2st_C5", "her2st_C6")
N_GENES = 250
REGRESSIONS = {
    "ridge": lambda: RidgeCV(np.logspace(0, 6, 25)),
    "knn": lambda: KNeighborsRegressor(20, metric="cosine"),
}


def read(data: Path, name: str, size: int) -> tuple[ad.AnnData, np.ndarray]:
    """Section with its patches recorded, and their pixels at the encoder's size."""
    adata = ad.read_h5ad(data / f"{name}.h5ad")
    sg.pp.histology_patches(adata, data / "images" / f"{name}.jpg")
    sg.tl.histology_embed(adata, key_added="texture")
    pixels = np.empty((adata.n_obs, size, size, 3), dtype=np.uint8)
    for rows, patches in open_patches(adata, None, "histology"):
        patches = type(patches)(patches.image, patches.centers, patches.width, size)
        for numbers, part in patches.blocks():
            pixels[rows[numbers]] = part
    return adata, pixels


def targets(sections: list[ad.AnnData]) -> list[np.ndarray]:
    """log1p of counts at the training sections' median library, of their most expressed genes."""
    both = ad.concat(sections, label="section", keys=[*TRAIN, *HELD_OUT], index_unique="-")  # genes that all have
    counts = both.X.toarray() if hasattr(both.X, "toarray") else np.asarray(both.X)
    section = both.obs["section"].to_numpy()
    trained = np.isin(section, TRAIN)
    genes = np.argsort(counts[trained].sum(axis=0))[::-1][:N_GENES]
    library = counts.sum(axis=1, keepdims=True)
    values = np.log1p(counts[:, genes] / library * np.median(library[trained]))
    return [values[section == name] for name in (*TRAIN, *HELD_OUT)]


def score(features: list[np.ndarray], truth: list[np.ndarray]) -> dict[str, float]:
    """Median over genes of r, for each regression."""
    n_train = len(TRAIN)
    found = {}
    for name, regression in REGRESSIONS.items():
        model = make_pipeline(StandardScaler(), regression())
        model.fit(np.concatenate(features[:n_train]), np.concatenate(truth[:n_train]))
        pairs = zip(features[n_train:], truth[n_train:], strict=True)
        r = np.mean([correlations(model.predict(part), values) for part, values in pairs], axis=0)
        found[name] = round(float(np.median(r)), 4)
    return found


def correlations(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pearson's r of each column; 0 where one is constant."""
    found, truth = found - found.mean(axis=0), truth - truth.mean(axis=0)
    norm = np.linalg.norm(found, axis=0) * np.linalg.norm(truth, axis=0)
    return (found * truth).sum(axis=0) / np.where(norm > 0, norm, np.inf)


def embed(encoder: Encoder, pixels: list[np.ndarray]) -> list[np.ndarray]:
    return [
        np.concatenate([encoder.embed(part[start : start + 64]) for start in range(0, len(part), 64)])
        for part in pixels
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the sections")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of pretraining")
    parser.add_argument("--random-seeds", type=int, nargs="*", default=[0, 1, 2], help="of random weights")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--n-patches", type=int, help="of each section")
    parser.add_argument("--folder", type=Path, default=Path("histology-pretraining"), help="for weights and logs")
    args = parser.parse_args()

    sg.settings.verbosity, sg.settings.progress_bars = "warning", False
    recipe = sg.train.HISTOLOGY_PRESETS[args.preset]
    sections, pixels = zip(*(read(args.data, name, recipe.shape.size) for name in (*TRAIN, *HELD_OUT)), strict=True)
    truth = targets(list(sections))
    report("texture", **score([np.asarray(adata.obsm["texture"]) for adata in sections], truth))
    for seed in args.random_seeds:
        torch.manual_seed(seed)
        usual = vit.build(recipe.shape).requires_grad_(False).eval()
        torch.manual_seed(seed)
        before = IBOT(recipe, pixels[: len(TRAIN)]).finished_network()
        for what, network in (("random weights", usual), ("before pretraining", before)):
            report(f"{what}, seed {seed}", **score(embed(Encoder(what, network), pixels), truth))
    for seed in args.seeds:
        start = time.perf_counter()
        encoder = sg.train.pretrain_histology(
            sections[: len(TRAIN)],
            args.preset,
            out=args.folder / f"{args.preset}-{seed}.safetensors",
            n_patches=args.n_patches,
            epochs=args.epochs,
            rng=seed,
        )
        minutes = round((time.perf_counter() - start) / 60, 1)
        features = embed(encoder, pixels)
        spread = float(np.concatenate(features).std(axis=0).mean())
        report(f"pretrained, seed {seed}", **score(features, truth), minutes=minutes, spread=round(spread, 3))
        print(encoder.card["training"]["losses"])


if __name__ == "__main__":
    main()
