"""Expression from histology on real sections: what texture, random and pretrained vision transformers tell of it.

    python benchmarks/histology.py DATA [--sections NAME ...] [--encoder FILE --trained-on NAME ... --finetune RATE ...]
        [--vit-b]

DATA holds sections as ``NAME.h5ad`` and their images as ``images/NAME.jpg``, of one donor. Each section is predicted
by ridge regression of the others (``sg.tl.predict_expression``). Reported are the median and mean over the 250 most
expressed genes of Pearson's r within the section that was left out, the share of genes whose squared error is below
that of their mean, and patches a second. The mean alone, which is the neighbor-free baseline, has r = 0 by definition.
With ``--trained-on``, sections that the encoder has seen in pretraining are told apart from those that it hasn't.
``--finetune RATE ...`` adds the encoder trained along at these learning rates, on the same patches.

    python benchmarks/histology.py DATA --labelled NAME ...

Labels of tissue from histology. Sections with an image and a pathologist's labels would be best; where there are none,
labels come from the embedding of counts: a classifier of ``sagefm-mini``'s, fitted on the labelled sections, labels the
sections with images, and its sure labels are what features of the image have to find in a section that was left out.
Scores of X_sage are circular then, and are the most that could be reached.

    python benchmarks/histology.py --memory SIDE

Peak memory and time of patches and texture on a tiled TIFF of SIDE x SIDE pixels.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import adjusted_rand_score

import sagefm as sg
from sagefm.histology import vit as _vit
from sagefm.models import Encoder

MICRONS_PER_PIXEL = 0.73


def read(data: Path, sections: list[str]) -> ad.AnnData:
    """Sections side by side."""
    parts = []
    for name in sections:
        adata = ad.read_h5ad(data / f"{name}.h5ad")
        adata.obs_names = [f"{name}:{spot}" for spot in adata.obs_names]
        adata.obs["section"] = name
        parts.append(adata)
    return ad.concat(parts, merge="same")


def score(adata: ad.AnnData, name: str, model: str | Path | Encoder, data: Path, size: int) -> dict[str, object]:
    """One row of the table, and the genes' scores."""
    images = {section: data / "images" / f"{section}.jpg" for section in adata.obs["section"].unique()}
    # The same field of view whatever the encoder's size.
    sg.pp.histology_patches(
        adata,
        images,
        size=size,
        mpp=MICRONS_PER_PIXEL * 224 / size,
        microns_per_unit=MICRONS_PER_PIXEL,
        library_key="section",
    )
    started = time.perf_counter()
    sg.tl.histology_embed(adata, model)
    seconds = time.perf_counter() - started
    sg.tl.predict_expression(adata, library_key="section")
    return {**row(adata, name), "patches/s": adata.n_obs / seconds}


def finetune(adata: ad.AnnData, encoder: Encoder, rate: float) -> dict[str, object]:
    """One row of the table: the encoder trained along, on the patches that it has just described."""
    sg.tl.predict_expression(adata, library_key="section", method="finetune", model=encoder, learning_rate=rate)
    return row(adata, f"{encoder.name}, fine-tuned at {rate:g}")


def row(adata: ad.AnnData, name: str) -> dict[str, object]:
    """Scores over genes."""
    scores = adata.uns["histology_expression"]["scores"]
    print(f"{name}: {adata.n_obs} spots, median r {scores['r'].median():.3f}", flush=True)
    return {
        "features": name,
        "scale": adata.uns["histology_expression"]["params"].get("scale"),
        "median r": scores["r"].median(),
        "mean r": scores["r"].mean(),
        "better than their mean": (scores["r2"] > 0).mean(),
        **{section.removeprefix("r_"): scores[section].median() for section in scores.filter(like="r_")},
    }


def compare(arguments: argparse.Namespace) -> None:
    """All kinds of features on all sections."""
    adata = read(arguments.data, arguments.sections)
    rows = [score(adata, "texture", "texture", arguments.data, 224)]
    if arguments.encoder is not None:
        encoder = sg.models.load_encoder(arguments.encoder)
        shape = _vit.Shape(
            encoder.size, encoder.network.config.patch_size, encoder.width, encoder.network.config.num_hidden_layers
        )
        rows.append(score(adata, encoder.name, encoder, arguments.data, encoder.size))
        rows += [finetune(adata, encoder, rate) for rate in arguments.finetune]
        for seed in range(arguments.seeds):
            rows.append(score(adata, f"the same, random ({seed})", random(shape, seed), arguments.data, shape.size))
    if arguments.vit_b:
        rows.append(score(adata, "ViT-B/16, random (0)", random(_vit.Shape(), 0), arguments.data, 224))
    table = pd.DataFrame(rows).set_index("features")
    print(table.round(3).to_string())
    unseen = [name for name in arguments.sections if name not in arguments.trained_on]
    if arguments.trained_on and unseen:
        print(f"\nmedian r on {', '.join(unseen)}, which the encoder hasn't seen:")
        print(table[unseen].mean(axis=1).round(3).to_string())


def label(arguments: argparse.Namespace) -> None:
    """Labels from counts, looked for in the image."""
    labelled = read(arguments.data, arguments.labelled)
    adata = read(arguments.data, arguments.sections)
    for slides in (labelled, adata):
        sg.pp.neighborhood_graph(slides, library_key="section")
        sg.tl.sage_embed(slides, "sagefm-mini")
    tumour = ("invasive cancer", "cancer in situ")
    merge = {name: "tumour" if name in tumour else "other" for name in labelled.obs["pathologist"].dropna().unique()}
    merge |= {"undetermined": None}
    sg.tl.annotate(adata, "pathologist", reference=labelled, merge=merge, library_key="section", group_key="donor")
    print(adata.uns["sage_annotation"]["scores"].round(3).to_string())
    found = adata.obs["sage_annotation"].astype(str)
    adata.obs["from_counts"] = found.where(found != "unsure")
    images = {section: arguments.data / "images" / f"{section}.jpg" for section in arguments.sections}
    sg.pp.histology_patches(adata, images, library_key="section")
    sg.tl.histology_embed(adata)
    sg.tl.join_representations(adata, library_key="section")
    rows = {}
    for key in ("X_histology", "X_sage", "X_joined"):
        sg.tl.annotate(adata, "from_counts", use_rep=key, library_key="section", key_added=key.lower())
        scores = adata.uns[key.lower()]["scores"].loc["overall"]
        sg.tl.cluster(adata, key, n_clusters=2)
        rows[key] = {**scores[["accuracy", "f1_macro"]], "clusters": rand(adata, "from_counts", "sage_cluster")}
    share = adata.obs["from_counts"].value_counts(normalize=True)
    print(share.round(3).to_string())
    print(pd.DataFrame(rows).T.round(3).to_string())


def rand(adata: ad.AnnData, labels: str, clusters: str) -> float:
    """Adjusted Rand index of the spots that have a label."""
    known = adata.obs[labels].notna()
    return adjusted_rand_score(adata.obs[labels][known], adata.obs[clusters][known])


def random(shape: _vit.Shape, seed: int) -> Encoder:
    """Untrained encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Encoder("random", _vit.build(shape).requires_grad_(False).eval())


def memory(side: int) -> None:
    """Time and peak memory of a large image, each in a process of its own."""
    import tifffile

    with tempfile.TemporaryDirectory() as folder:
        path, tile = Path(folder) / "large.tif", 512
        noise = np.random.default_rng(0).integers(60, 200, (8, tile, tile, 3), dtype=np.uint8)
        tiles = (noise[number % 8] for number in range((-(-side // tile)) ** 2))
        tifffile.imwrite(
            path, tiles, shape=(side, side, 3), dtype=np.uint8, tile=(tile, tile), photometric="rgb", compression="zlib"
        )
        adata = sg.datasets.simulated_visium(70, 71, n_genes=300)
        xy = adata.obsm["spatial"] - adata.obsm["spatial"].min(axis=0)
        adata.obsm["spatial"] = 200 + xy / xy.max() * (side - 400)
        adata.write_h5ad(Path(folder) / "slide.h5ad")
        for step in ("import", "patches", "texture"):
            subprocess.run([sys.executable, __file__, "--step", step, folder], check=True)


def run_step(step: str, folder: Path) -> None:
    """One process of :func:`memory`."""
    adata = ad.read_h5ad(folder / "slide.h5ad")
    started = time.perf_counter()
    if step != "import":
        sg.pp.histology_patches(adata, folder / "large.tif", min_tissue=0)
    if step == "texture":
        sg.tl.histology_embed(adata)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{step}: {adata.n_obs} spots, {time.perf_counter() - started:.1f} s, peak {peak:.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--sections", nargs="+", default=[f"her2st_C{i}" for i in range(2, 7)])
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--trained-on", nargs="+", default=[])
    parser.add_argument("--finetune", type=float, nargs="+", default=[], metavar="RATE", help="train the encoder along")
    parser.add_argument("--vit-b", action="store_true", help="a random one too: 86 million weights, slow on a CPU")
    parser.add_argument("--seeds", type=int, default=1, help="of random encoders (default: %(default)s)")
    parser.add_argument("--labelled", nargs="+", metavar="NAME", help="sections with obs['pathologist']")
    parser.add_argument("--memory", type=int, metavar="SIDE")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step is not None:
        run_step(arguments.step[0], Path(arguments.step[1]))
    elif arguments.memory is not None:
        memory(arguments.memory)
    elif arguments.data is None:
        parser.error("DATA is missing")
    elif arguments.labelled is not None:
        label(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
