"""What changes to sagefm-mini's recipe are worth on unlike donors that it hasn't seen.

    python evaluation/ablation.py SECTIONS_DIR [--rows NAME ...] [--out docs/evaluation]

Each row is one training without four donors (breast, liver metastasis, synovium, melanoma), with one seed, measured on
two sections of each: genes hidden at the spot, beside the plain predictors, and a quarter of the genes hidden on the
whole section. Writes ``ablation.csv`` by donor and ``ablation_view.csv``. Rows that are there already are kept, so an
interrupted run goes on. About ten minutes a row, two rows at a time on 2 CPU cores.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from left_out import MINI, donor_sections, in_two_processes, training_corpus

import sagefm as sg
from sagefm.models._canonical import depth_scale
from sagefm.models._spots import Spots, predict_and_embed
from sagefm.train._module import MaskedCenter, masked_squared_error
from sagefm.train._pretrain import build, fit_recipe

DONORS = ("her2st_C", "CRC_16", "synovium_RA3", "thrane1")
N_SECTIONS, ABSENT = 2, 0.25
BASELINES = ["depth alone", "depth-scaled neighbor mean", "depth-scaled kNN in PCA", "depth-scaled diffusion"]


class ByVariance(MaskedCenter):
    """Errors of a gene count the less the more it varies, so that rare genes count."""

    def loss(self, prediction: torch.Tensor, spots: Spots) -> torch.Tensor:
        """Squared error over the square root of the mean, which goes with the standard deviation."""
        weight = torch.from_numpy(1 / np.sqrt(self.corpus.gene_mean() + 0.01))
        return ((prediction - spots.center).square() * (weight / weight.mean()) * spots.mask).sum()


class BeyondDepth(MaskedCenter):
    """What is left of the error beyond the depth of the spot counts again.

    A regression on the depths of the batch's spots takes the trend out of each gene's error.
    """

    def loss(self, prediction: torch.Tensor, spots: Spots) -> torch.Tensor:
        """Squared error, and that of the residuals of a regression on log depth and its square."""
        depth = spots.masked_center.expm1().sum(1).log1p()
        depth = (depth - depth.mean()) / depth.std().clamp(min=1e-3)
        basis = torch.linalg.qr(torch.stack([torch.ones_like(depth), depth, depth.square()], 1))[0]
        error = (prediction - spots.center) * spots.mask
        left = (error - basis @ (basis.T @ error)) * spots.mask
        return masked_squared_error(prediction, spots.center, spots.mask) + left.square().sum()


class Poisson(MaskedCenter):
    """Likelihood of the counts; the prediction is the log1p of their mean."""

    def loss(self, prediction: torch.Tensor, spots: Spots) -> torch.Tensor:
        """Negative log likelihood, without its constant."""
        rate = torch.expm1(prediction) + 1e-4
        return ((rate - torch.expm1(spots.center) * rate.log()) * spots.mask).sum()


class Thinned(MaskedCenter):
    """The center shows from three tenths to all of its counts, drawn at random; what is predicted stays."""

    def forward(self, spots: Spots) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions at the depth of the whole spot."""
        if not self.training:
            return super().forward(spots)
        counts = torch.expm1(spots.center).round()
        thinned = torch.binomial(counts, (0.3 + 0.7 * torch.rand(len(counts), 1)).expand_as(counts)).log1p()
        model, mean = self.network.canonical(), spots.neighbor_mean
        _, z = predict_and_embed(model, spots._replace(center=thinned))
        totals = spots.masked_center.sum(1, keepdim=True), (mean * ~spots.mask).sum(1, keepdim=True)
        scaled_mean = depth_scale(*totals) * mean  # of the whole spot
        return model.decode(z, scaled_mean=scaled_mean, similar=spots.similar), z


class Absent(MaskedCenter):
    """In every second batch without similar spots a quarter of the genes is hidden on the whole section."""

    def forward(self, spots: Spots) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions, with the stand-in for absent genes."""
        if not self.training or spots.similar is not None or torch.rand(()) < 0.5:
            return super().forward(spots)
        unseen = torch.rand(spots.center.shape[1]) < ABSENT
        spots = spots._replace(
            mask=spots.mask | unseen, neighbor_sum=spots.neighbor_sum.masked_fill(unseen, 0), unseen=unseen
        )
        typical = torch.from_numpy(self.corpus.gene_mean())
        return predict_and_embed(replace(self.network.canonical(), typical=typical), spots)


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    what: str
    recipe: sg.train.Recipe = MINI
    module: type[MaskedCenter] = MaskedCenter
    seed: int = 0


ROWS = {
    "mini": Row("the recipe of sagefm-mini"),
    "seed 1": Row("another seed", seed=1),
    "seed 2": Row("another seed", seed=2),
    "no similar": Row("no similar spots", replace(MINI, similar=0.0)),
    "all similar": Row("similar spots in every batch", replace(MINI, similar=1.0)),
    "no niche": Row("no niche loss", replace(MINI, niche_weight=0.0)),
    "no dropout": Row("no dropout", replace(MINI, dropout=0.0)),
    "4 epochs": Row("4 epochs instead of 8", replace(MINI, max_epochs=4)),
    "16 epochs": Row("16 epochs", replace(MINI, max_epochs=16)),
    "320": Row("widths 320-320", replace(MINI, hidden=(320, 320))),
    "3 layers": Row("three layers of 160", replace(MINI, hidden=(160, 160, 160))),
    "by variance": Row("errors weighted by 1/sqrt(gene mean)", module=ByVariance),
    "beyond depth": Row("errors beyond depth count twice", module=BeyondDepth),
    "poisson": Row("Poisson likelihood", replace(MINI, learning_rate=3e-4), Poisson),
    "thinned": Row("centers thinned at random", module=Thinned),
    "absent": Row("genes hidden on whole sections as well", module=Absent),
}


def main() -> None:
    """Train and measure what is missing in the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation"))
    arguments = parser.parse_args()
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    file = arguments.out / "ablation.csv"
    done = set(pd.read_csv(file)["row"]) if file.exists() else set()
    training_corpus(arguments.sections)  # before two processes want it
    todo = [name for name in arguments.rows if name not in done]
    for table in in_two_processes(partial(measured, sections=arguments.sections), todo):
        table.to_csv(file, mode="a", header=not file.exists(), index=False)
        print(table.to_string(), flush=True)
    write_view(pd.read_csv(file), arguments.out / "ablation_view.csv")


def measured(name: str, sections: Path) -> pd.DataFrame:
    """Train a row and try it on each donor."""
    row, corpus = ROWS[name], training_corpus(sections).with_split(dict.fromkeys(DONORS, "test"))
    started = time.perf_counter()
    module = build(corpus, row.recipe, seed=row.seed, module_class=row.module)
    with tempfile.TemporaryDirectory() as folder:
        fit_recipe(module, Path(folder), accelerator="cpu", enable_progress_bar=False)
    seconds = round(time.perf_counter() - started)
    model = sg.models.Model("model", module.finished_network(), corpus.vocabulary, gene_mean=corpus.gene_mean())
    size = sum(parameter.numel() for parameter in model.weights.parameters())
    rows = []
    for donor in DONORS:
        of_donor = list(donor_sections(donor, sections).values())[:N_SECTIONS]
        table = sg.benchmark.compare_imputation(of_donor, model)
        absent = sg.benchmark.missingness_curve(of_donor, model, fractions=[ABSENT])
        absent = absent[(absent["predictor"] == "model") & (absent["task"] == "everywhere")].iloc[0]
        own, plain = table.loc["model"], table.loc[BASELINES]
        found = {"rmse": own["rmse"], "r_beyond_depth": own["r_beyond_depth"], "share": own["share_attained"]}
        found |= {"absent_rmse": absent["rmse"], "absent_r_beyond_depth": absent["r_beyond_depth"]}
        found |= {"best_rmse": plain["rmse"].min(), "best_r_beyond_depth": plain["r_beyond_depth"].max()}
        head = {"row": name, "what": row.what, "parameters": size, "seconds": seconds, "donor": donor}
        rows.append(head | {metric: round(float(value), 4) for metric, value in found.items()})
    return pd.DataFrame(rows)


def write_view(table: pd.DataFrame, file: Path) -> None:
    """Means over donors, RMSE as a ratio to that of the best plain predictor; by donor r beyond depth."""
    table["ratio"] = table["rmse"] / table["best_rmse"]
    by_row = table.groupby("row", sort=False)
    mean = by_row[["ratio", "r_beyond_depth", "share", "absent_rmse", "absent_r_beyond_depth"]].mean()
    view = pd.DataFrame(
        {
            "what": by_row["what"].first(),
            "parameters": by_row["parameters"].first().map(lambda n: f"{n / 1e6:.1f} M"),
            "minutes": (by_row["seconds"].first() / 60).round(1),
            "RMSE, ratio": mean["ratio"].map("{:.4f}".format),
            "r beyond depth": mean["r_beyond_depth"].map("{:.3f}".format),
            "share": mean["share"].map("{:.3f}".format),
            "RMSE, absent": mean["absent_rmse"].map("{:.4f}".format),
            "r beyond depth, absent": mean["absent_r_beyond_depth"].map("{:.3f}".format),
        }
    )
    by_donor = table.pivot(index="row", columns="donor", values="r_beyond_depth")[list(DONORS)]
    view = view.join(by_donor.map("{:.3f}".format).add_prefix("r beyond depth, "))
    view.loc[[name for name in ROWS if name in view.index]].set_index("what").to_csv(file)


if __name__ == "__main__":
    main()
