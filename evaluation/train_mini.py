"""Train sagefm-mini on a folder of sections.

    python evaluation/train_mini.py SECTIONS_DIR [--out src/sagefm/models/weights/sagefm-mini.safetensors]

All donors take part in this last fit. What the model is worth on a donor that it hasn't seen is in its card from
``docs/evaluation``, where ``evaluation/ablation.py`` trained the same recipe with each donor left out in turn. The same
without the card's figures::

    sagefm prepare SECTIONS_DIR -o corpus.zarr --split everything.csv
    sagefm pretrain corpus.zarr --preset mini -o model.safetensors
"""

import argparse
import hashlib
import re
import tempfile
from pathlib import Path

import pandas as pd
from left_out import DONORS, section_files

import sagefm as sg

ROOT = Path(__file__).parents[1]
SUMMARY = (
    "Small model of the GraphSAGE family on little, mostly breast, data: for trying things out, and where the "
    "published weights can't be had. No substitute for them."
)
LIMITS = [
    "62 % of the training spots are of six donors of HER2-positive breast cancer on the legacy Spatial Transcriptomics "
    "platform. Of the other four sections two are breast, one is colorectum, one melanoma.",
    "Other organs, normal tissue and high-resolution platforms are unseen.",
    "Neighbourhoods of 200 µm pitch (legacy) and 100 µm pitch (Visium) are mixed.",
]


def main() -> None:
    """Prepare the corpus, train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "src/sagefm/models/weights/sagefm-mini.safetensors")
    args = parser.parse_args()
    files = section_files(args.sections)
    with tempfile.TemporaryDirectory() as folder:
        corpus = sg.train.prepare_corpus(files, Path(folder) / "corpus.zarr", split={})
        card = {
            "summary": SUMMARY,
            "data": data(corpus, args.sections / "manifest.csv"),
            "left_out": left_out(ROOT / "docs/evaluation/predictors.csv"),
            "limits": LIMITS,
            "licence": "BSD-3-Clause",
        }
        sg.train.pretrain(
            corpus, "mini", out=args.out, run_dir=Path(folder) / "run", name="sagefm-mini", card=card, accelerator="cpu"
        )
    record_digest(args.out)


def record_digest(weights: Path) -> None:
    """Write the digest of the package's weights into the registry, which loads no others under their name."""
    registry = ROOT / "src/sagefm/models/registry.yaml"
    name = re.escape(weights.name)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    text = re.sub(rf"(package_file: {name}\n  sha256: )\w+", rf"\g<1>{digest}", registry.read_text())
    registry.write_text(text)


def data(corpus: sg.train.Corpus, manifest: Path) -> list[dict[str, object]]:
    """Sections and spots by platform and tissue, with source and licence where a manifest tells them."""
    sections = corpus.sections
    columns = ["platform", "tissue"]
    if manifest.exists():
        sections = sections.join(pd.read_csv(manifest, index_col="sample")[["source", "licence"]])
        columns += ["source", "licence"]
    groups = sections.groupby(columns)["n_spots"].agg(["size", "sum"])
    return [
        {**dict(zip(columns, key, strict=True)), "sections": int(row["size"]), "spots": int(row["sum"])}
        for key, row in groups.iterrows()
    ]


def left_out(file: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of this recipe on each donor, trained without it, beside plain predictors."""
    table = pd.read_csv(file)
    shown = ("model", "depth alone", "depth-scaled neighbor mean", "depth-scaled diffusion")
    rows = table[table["donor"].isin(DONORS) & table["predictor"].isin(shown)].set_index("predictor")
    metrics = ["rmse", "r_beyond_depth", "share_attained"]
    return {donor: part[metrics].to_dict("index") for donor, part in rows.groupby("donor")}


if __name__ == "__main__":
    main()
