"""Train the models of the package on a folder of sections: sagefm-mini and sagefm-nano.

    python evaluation/train_models.py SECTIONS_DIR [--only mini] [--cards]

All donors but the one for validation take part in this last fit. What a model is worth on a donor that it hasn't seen
is in its card, from ``docs/evaluation/predictors*.csv``: the same recipe, trained without the donor
(``evaluation/imputation.py``).
"""

import argparse
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
from left_out import DONORS, train, training_corpus

import sagefm as sg

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "src/sagefm/models/weights"
SUMMARIES = {
    "mini": "Small model of the GraphSAGE family, trained on the few sections that could be had: for trying things "
    "out, and where the published weights can't be had.",
    "nano": "The recipe of sagefm-mini with layers a third as wide: for tests, examples and a quick look.",
}
LIMITS = [
    "Most training spots are of HER2-positive breast cancer and of rheumatic synovium, on legacy Spatial "
    "Transcriptomics arrays. Visium is one section each of colorectum, lung and breast.",
    "Other organs, normal tissue but lung, and high-resolution platforms are unseen.",
    "Neighborhoods of 200 µm pitch (legacy) and 100 µm pitch (Visium) are mixed.",
]


def main() -> None:
    """Prepare the corpus, train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--only", choices=SUMMARIES, nargs="+", default=list(SUMMARIES))
    parser.add_argument("--cards", action="store_true", help="write the cards of the models anew, and train nothing")
    args = parser.parse_args()
    corpus = training_corpus(args.sections)
    for recipe in args.only:
        card = {
            "summary": SUMMARIES[recipe],
            "data": data(corpus, args.sections / "manifest.csv"),
            "left_out": left_out(recipe),
            "limits": LIMITS,
            "licence": "BSD-3-Clause",
        }
        out = WEIGHTS / f"sagefm-{recipe}.safetensors"
        if args.cards:
            model = sg.models.load(out)
            replace(model, card=model.card | card).save(out, half=True)
        else:
            train(corpus, recipe, out, name=out.stem, card=card)
        record_digest(out)


def record_digest(weights: Path) -> None:
    """Write the digest of the package's weights into the registry, which loads no others under their name."""
    registry = ROOT / "src/sagefm/models/registry.yaml"
    name = re.escape(weights.name)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    text = re.sub(rf"(package_file: {name}\n  sha256: )\w+", rf"\g<1>{digest}", registry.read_text())
    registry.write_text(text)


def data(corpus: sg.train.Corpus, manifest: Path) -> list[dict[str, object]]:
    """Sections and spots by platform and tissue, with source and licence where a manifest tells them."""
    sections = corpus.sections[corpus.sections["split"] == "train"]
    columns = ["platform", "tissue"]
    if manifest.exists():
        sections = sections.join(pd.read_csv(manifest, index_col="sample")[["source", "licence"]])
        columns += ["source", "licence"]
    groups = sections.groupby(columns)["n_spots"].agg(["size", "sum"])
    return [
        {**dict(zip(columns, key, strict=True)), "sections": int(row["size"]), "spots": int(row["sum"])}
        for key, row in groups.iterrows()
    ]


def left_out(recipe: str) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of a recipe on each donor, trained without it, beside plain predictors; none before they are measured."""
    file = ROOT / "docs/evaluation" / ("predictors.csv" if recipe == "mini" else f"predictors_{recipe}.csv")
    if not file.exists():
        return {}
    table = pd.read_csv(file)
    shown = ("model", "depth alone", "depth-scaled neighbor mean", "depth-scaled diffusion")
    rows = table[table["donor"].isin(DONORS) & table["predictor"].isin(shown)].set_index("predictor")
    metrics = ["rmse", "r_beyond_depth", "share_attained"]
    return {donor: part[metrics].to_dict("index") for donor, part in rows.groupby("donor", sort=False)}


if __name__ == "__main__":
    main()
