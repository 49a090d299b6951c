"""What each part of sagefm-mini is worth, on donors that it hasn't seen.

    python evaluation/ablation.py SECTIONS_DIR [--out docs/evaluation] [--only NAME ...]

Trains every row of the table on all donors but one (donor G) and evaluates it there; then the finalists with every
other donor left out. Writes ``ablation.csv``, ``donors.csv`` and ``distance.csv``. Rows that are there already are
kept, so an interrupted run goes on. About two hours on 2 CPU cores.
"""

import argparse
import logging
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from left_out import section_files
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, balanced_accuracy_score
from sklearn.preprocessing import scale
from torch.nn import functional as F

import sagefm as sg
from sagefm.models._baselines import depth_scaled
from sagefm.models._canonical import depth_scale
from sagefm.models._scores import RunningScores, Summary
from sagefm.models._spots import Spots
from sagefm.train._module import MaskedCenter
from sagefm.train._pretrain import build, fit_recipe
from sagefm.train._stream import Stream

# Panels, scattered spots, and a section whose source states the GPL are left out.
LEFT_OUT = "her2st_G"
UNSURE = ("undetermined", "nan")
METRICS = ["rmse", "r_beyond_depth", "r_within", "r_pooled", "r2_spot"]
logger = logging.getLogger("sagefm.ablation")


class NoGain(MaskedCenter):
    """All that the decoder knows comes through the embedding."""

    def __init__(self, network, corpus, recipe, **options):
        super().__init__(network, corpus, recipe, **options)
        network.gain.requires_grad_(False).fill_(0)
        with torch.no_grad():
            network.fc_gene.bias.copy_(torch.from_numpy(corpus.gene_mean()))


class TwoDecoders(MaskedCenter):
    """A second decoder predicts from the embedding alone; at the end it has a share in the first.

    Its loss, the same one, has a weight. The share may be changed after training.
    """

    weight, share = 0.3, 0.1

    def __init__(self, network, corpus, recipe, **options):
        super().__init__(network, corpus, recipe, **options)
        self.alone = torch.nn.Linear(*reversed(network.fc_gene.weight.shape))
        with torch.no_grad():
            self.alone.weight.copy_(network.fc_gene.weight)
            self.alone.bias.copy_(torch.from_numpy(corpus.gene_mean()))

    def forward(self, spots):
        if not self.training:
            return self.joined().forward_both(spots.masked_center, spots.neighbor_sum, spots.degree, spots.mask)
        prediction, self.embedding = super().forward(spots)
        return prediction, self.embedding

    def loss(self, prediction, spots):
        alone = F.relu(self.alone(self.embedding))
        return super().loss(prediction, spots) + self.weight * super().loss(alone, spots)

    def joined(self):
        model = self.network.canonical()
        decoder = tuple(
            mine.lerp(alone, self.share)
            for mine, alone in zip(model.decoder, (self.alone.weight.T, self.alone.bias), strict=True)
        )
        return replace(model, decoder=decoder, gain=(1 - self.share) * model.gain)

    @torch.no_grad()
    def finished_network(self):
        joined = self.eval().joined()
        for mine, both in (
            (self.network.fc_gene.weight, joined.decoder[0].T),
            (self.network.fc_gene.bias, joined.decoder[1]),
            (self.network.gain, joined.gain),
        ):
            mine.copy_(both)
        return super().finished_network()


class MoreOfTheSecond(TwoDecoders):
    """As that, its loss weighing as much as the other."""

    weight = 1.0


class NoDepth(MaskedCenter):
    """The neighbours' mean enters the decoder as it is."""

    def forward(self, spots):
        model = self.network.canonical()
        center, mean = spots.masked_center, spots.neighbor_mean
        z = model.embed(center @ model.center + mean @ model.neighbors + model.bias)
        z = F.dropout(z, model.dropout, training=model.dropout > 0)
        return model.decode(z, scaled_mean=self.scaled_mean(spots)), z

    def scaled_mean(self, spots):
        return spots.neighbor_mean


class WholeDepth(NoDepth):
    """The neighbours' mean is scaled by the depth itself, not by its root."""

    def scaled_mean(self, spots):
        return depth_scaled(spots.masked_center, spots.neighbor_mean, spots.mask)


class FilledMask(MaskedCenter):
    """Masked genes of the centre enter as the neighbours' mean instead of 0."""

    def filled(self, spots):
        return torch.where(spots.mask, spots.neighbor_mean, spots.center)

    def forward(self, spots):
        model = self.network.canonical()
        z = model.embed(self.filled(spots) @ model.center + spots.neighbor_mean @ model.neighbors + model.bias)
        z = F.dropout(z, model.dropout, training=model.dropout > 0)
        totals = (spots.masked_center.sum(1, True), spots.neighbor_mean.masked_fill(spots.mask, 0).sum(1, True))
        return model.decode(z, scaled_mean=depth_scale(*totals) * spots.neighbor_mean), z


class MaskToken(FilledMask):
    """Masked genes of the centre enter as a learnt value of each gene."""

    def __init__(self, network, corpus, recipe, **options):
        super().__init__(network, corpus, recipe, **options)
        self.token = torch.nn.Parameter(torch.from_numpy(corpus.gene_mean()))

    def filled(self, spots):
        return torch.where(spots.mask, self.token, spots.center)


class RareGenes(MaskedCenter):
    """Errors of a gene count the less the more it varies."""

    def __init__(self, network, corpus, recipe, **options):
        super().__init__(network, corpus, recipe, **options)
        weight = 1 / np.sqrt(corpus.gene_mean() + 0.01)
        self.register_buffer("weight", torch.from_numpy(weight / weight.mean()))

    def loss(self, prediction, spots):
        return (((prediction - spots.center) ** 2) * self.weight * spots.mask).sum()


class Poisson(MaskedCenter):
    """Likelihood of the counts; the prediction is the log1p of their mean."""

    def loss(self, prediction, spots):
        rate = torch.expm1(prediction) + 1e-4
        return ((rate - torch.expm1(spots.center) * rate.log()) * spots.mask).sum()


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    what: str
    recipe: sg.train.Recipe
    module: type[MaskedCenter] = MaskedCenter
    validate: str = LEFT_OUT
    only: str | None = None
    name: str = field(default="", compare=False)


# The parts of the network, without similar spots, whose worth similar.py shows.
MINI = replace(sg.train.PRESETS["mini"], similar=0.0, max_epochs=12)
GCN = replace(MINI, architecture="gcn", dropout=0.0, niche_weight=0.0)
PUBLISHED = replace(GCN, hidden=(1024, 512, 512, 512, 1024), learning_rate=3e-4)
ROWS = {
    "mini": Row("the recipe of sagefm-mini", MINI),
    "no niche": Row("without the niche loss", replace(MINI, niche_weight=0.0)),
    "niche 0.1": Row("niche loss of weight 0.1", replace(MINI, niche_weight=0.1)),
    "two decoders": Row("a second decoder of the embedding alone, share 0.1 at the end", MINI, TwoDecoders),
    "second 1": Row("as that, its loss with weight 1 instead of 0.3", MINI, MoreOfTheSecond),
    "no gain": Row("no neighbours' mean in the decoder", MINI, NoGain),
    "no depth": Row("neighbours' mean not scaled by depth", MINI, NoDepth),
    "whole depth": Row("neighbours' mean scaled by depth, not its root", MINI, WholeDepth),
    "filled mask": Row("masked genes enter as the neighbours' mean", MINI, FilledMask),
    "mask token": Row("masked genes enter as a learnt value", MINI, MaskToken),
    "rare genes": Row("errors weighted by 1/sqrt(gene mean)", MINI, RareGenes),
    "poisson": Row("Poisson likelihood instead of squared error", replace(MINI, learning_rate=3e-4), Poisson),
    "dropout 0": Row("no dropout", replace(MINI, dropout=0.0)),
    "no averaging": Row("best epoch instead of averaged weights", replace(MINI, average_from=None)),
    "usual start": Row("decoder starts as usual, not at the gene means", replace(MINI, start_at_mean=False)),
    "mask 0.5": Row("half of the genes masked in training", replace(MINI, mask_fraction=0.5)),
    "width 64": Row("widths 64-64", replace(MINI, hidden=(64, 64))),
    "width 256": Row("widths 256-256", replace(MINI, hidden=(256, 256))),
    "her2st only": Row("trained on her2st alone", MINI, only="her2st"),
    "gcn": Row("published architecture, narrow", replace(GCN, hidden=(256, 128, 128, 128, 256))),
    "published 0.3": Row("published architecture, mask 0.3", PUBLISHED),
    "published 0.2": Row("published architecture, mask 0.2", replace(PUBLISHED, mask_fraction=0.2)),
}
# The network of a row with another share of its second decoder, which counts only after training.
SHARES = {"two decoders": {"share 0": 0.0, "share 0.2": 0.2, "share 0.5": 0.5}}
FINALISTS = ("mini", "two decoders")
DONORS = ("her2st_A", "her2st_C", "her2st_D", "her2st_E", "her2st_F", "CRC_16", "janesick")


def main() -> None:
    """Train and evaluate what is missing in the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows, or 'donors' or 'distance'")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = args.only or [*ROWS, "donors", "distance"]
    files = section_files(args.sections)
    labelled = {name: ad.read_h5ad(file) for name, file in files.items() if name.startswith("her2st")}
    labelled = {name: adata for name, adata in labelled.items() if "pathologist" in adata.obs}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        sg.settings.verbosity = "warning"
        corpus = sg.train.prepare_corpus(files, scratch / "corpus.zarr", split={LEFT_OUT: "validate"})
        if "distance" in wanted:
            distance(corpus, args.sections).to_csv(args.out / "distance.csv")
        table = Table(args.out / "ablation.csv", "name")
        for predictor, metrics in baselines(corpus, LEFT_OUT).iterrows():
            table.add(predictor, metrics[METRICS].to_dict())
        for name in [name for name in ROWS if name in wanted and name not in table]:
            for row, result in train(name, ROWS[name], corpus, scratch, labelled).items():
                table.add(row, result)
        donors = Table(args.out / "donors.csv", "donor, predictor")
        if "donors" in wanted:
            for finalist in FINALISTS:
                for donor in DONORS:
                    if f"{donor}, {finalist}" not in donors:
                        trained = train(finalist, replace(ROWS[finalist], validate=donor), corpus, scratch)
                        for row, result in trained.items():
                            donors.add(f"{donor}, {row}", {metric: result[metric] for metric in METRICS})
                        if f"{donor}, zeros" not in donors:
                            for predictor, metrics in baselines(corpus, donor).iterrows():
                                donors.add(f"{donor}, {predictor}", metrics[METRICS].to_dict())
    if (args.out / "donors.csv").exists():
        write_views(args.out)


class Table:
    """A CSV file that grows by rows."""

    def __init__(self, file: Path, index: str) -> None:
        self.file, self.index = file, index
        self.rows = pd.read_csv(file, index_col=0).to_dict("index") if file.exists() else {}

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def add(self, name: str, row: dict) -> None:
        self.rows[name] = row
        pd.DataFrame.from_dict(self.rows, "index").rename_axis(self.index).round(4).to_csv(self.file)
        logger.warning("%s: %s", name, {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})


def write_views(folder: Path) -> None:
    """Tables as the docs show them."""
    table = pd.read_csv(folder / "ablation.csv", index_col=0)
    order = [row for name in ROWS for row in (name, *SHARES.get(name, ()))]
    order = dict.fromkeys(name for name in [*order, *table.index] if name in table.index)
    table = table.loc[list(order)]

    def three(value: float) -> str:
        return f"{round(value, 3) + 0:.3f}"  # no -0.000

    view = pd.DataFrame(
        {
            "what": table["what"].fillna(table.index.to_series()),
            "size": table["parameters"].map(lambda n: "" if np.isnan(n) else f"{n / 1e6:.1f} M"),
            "epochs": table["epochs"].map(lambda n: "" if np.isnan(n) else f"{n:.0f}"),
            "RMSE": table["rmse"].map("{:.4f}".format),
            "r within": table["r_within"].map(three),
            "r pooled": table["r_pooled"].map(three),
            "ARI": [
                "" if np.isnan(both) else f"{both:.2f} ({left_out:.2f})"
                for both, left_out in zip(table["ari"], table["ari_left_out"], strict=True)
            ],
            "probe": table["probe"].map(lambda n: "" if np.isnan(n) else f"{n:.2f}"),
            "r depth": table["depth_r"].map(lambda n: "" if np.isnan(n) else f"{n:.2f}"),
        }
    )
    view.to_csv(folder / "ablation_view.csv", index=False)
    donors = pd.read_csv(folder / "donors.csv", index_col=0)
    donors[["donor", "predictor"]] = [name.split(", ") for name in donors.index]
    left_out = table.loc[[name for name in table.index if name in set(donors["predictor"])], METRICS]
    donors = pd.concat([left_out.assign(donor=LEFT_OUT, predictor=left_out.index), donors])
    wide = donors.pivot(index="donor", columns="predictor", values=["rmse", "r_within"])
    shown = {
        "neighbor mean": "mean",
        "depth-scaled neighbor mean": "scaled",
        **{f: f for f in FINALISTS},
    }
    view = pd.DataFrame(
        {
            f"{label} {name}": wide[metric][predictor].map(("{:.4f}" if metric == "rmse" else "{:.3f}").format)
            for metric, label in (("rmse", "RMSE"), ("r_within", "r"))
            for predictor, name in shown.items()
            if predictor in wide[metric]
        }
    )
    view.replace("nan", "").to_csv(folder / "donors_view.csv")


def split(corpus: sg.train.Corpus, donor: str, only: str | None = None) -> sg.train.Corpus:
    """Leave one donor out, and train on those that begin with ``only``."""
    groups = corpus.sections["group"].unique()
    aside = {group: "test" for group in groups if only and not group.startswith(only)}
    return corpus.with_split(aside | {donor: "validate"})


def train(
    name: str, row: Row, corpus: sg.train.Corpus, scratch: Path, labelled: dict[str, ad.AnnData] | None = None
) -> dict[str, dict]:
    """Train a row, evaluate the masked genes and, where there are labels, the embedding; and its ``SHARES``."""
    corpus = split(corpus, row.validate, row.only)
    module = build(corpus, row.recipe, module_class=row.module)
    start = time.perf_counter()
    shutil.rmtree(scratch / "run", ignore_errors=True)
    trainer = fit_recipe(module, scratch / "run", accelerator="cpu")
    minutes = (time.perf_counter() - start) / 60
    metrics = {}
    shares = SHARES.get(name, {})
    for variant, share in {**shares, name: getattr(module, "share", None)}.items():
        module.share = share
        summary = masked_metrics(module.eval(), corpus)
        metrics[variant] = {metric: summary[metric] for metric in METRICS}
    network = module.finished_network()
    result = {
        "what": row.what,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "epochs": trainer.current_epoch,
        "minutes": round(minutes, 1),
    }
    if labelled is not None:
        result |= embedding_scores(sg.models.Model("row", network, corpus.vocabulary), labelled)
    what = {variant: f"as that, share {share:g}" for variant, share in shares.items()}
    return {v: {**result, "what": what.get(v, row.what), **found} for v, found in reversed(metrics.items())}


@torch.inference_mode()
def masked_metrics(module: MaskedCenter, corpus: sg.train.Corpus) -> dict[str, float]:
    """Metrics on the validation split; the same masks for every row."""
    module.on_validation_epoch_start()
    for batch in Stream(corpus, "validate", batch_size=256, mask_fraction=0.3, shuffle=False):
        module.validation_step(batch, 0)
    return metrics_of(module._scores)


def metrics_of(scores: dict[str, RunningScores]) -> dict[str, float]:
    """Metrics over sections."""
    summary = Summary(len(next(iter(scores.values())).n))
    for part in scores.values():
        summary.add(part)
    return summary.metrics()


def baselines(corpus: sg.train.Corpus, donor: str) -> pd.DataFrame:
    """The plain predictors on a donor."""
    corpus = split(corpus, donor)
    vocabulary = corpus.vocabulary
    network = sg.models.SAGE(len(vocabulary), hidden=(8, 8))
    untrained = sg.models.Model("untrained", network, vocabulary, gene_mean=corpus.gene_mean())
    return sg.benchmark.evaluate_imputation(corpus.iter_sections("validate"), untrained).drop(index="untrained")


def embedding_scores(model: sg.models.Model, labelled: dict[str, ad.AnnData]) -> dict[str, float]:
    """How the embedding's clusters and a linear classifier agree with the pathologist.

    ``ari``: k-means, k as there are labels, mean over sections. ``ari_left_out``: on the donor left out alone.
    ``probe``: balanced accuracy of a logistic regression that was fitted on the other donors' sections.
    ``depth_r``: correlation of the first principal component with the log of the spot's counts.
    """
    embeddings, labels, depth = {}, {}, {}
    for name, adata in labelled.items():
        slide = ad.AnnData(adata.X, obs=adata.obs[[]], var=adata.var, obsm={"spatial": adata.obsm["spatial"]})
        sg.pp.neighborhood_graph(slide)
        sg.tl.sage_embed(slide, model)
        sure = ~adata.obs["pathologist"].astype(str).isin(UNSURE).to_numpy()
        embeddings[name] = slide.obsm["X_sage"][sure]
        labels[name] = adata.obs["pathologist"].astype(str).to_numpy()[sure]
        depth[name] = np.log1p(np.asarray(adata.X.sum(1)).ravel())[sure]
    ari = {}
    for name, z in embeddings.items():
        k = len(np.unique(labels[name]))
        found = [KMeans(k, n_init=5, random_state=seed).fit_predict(z) for seed in range(5)]
        ari[name] = float(np.mean([adjusted_rand_score(labels[name], clusters) for clusters in found]))
    probe, depth_r = [], []
    for name, z in embeddings.items():
        others = [other for other in embeddings if other != name]
        x = np.concatenate([scale(embeddings[other]) for other in others])
        y = np.concatenate([labels[other] for other in others])
        fitted = LogisticRegression(C=0.01, max_iter=500, class_weight="balanced").fit(x, y)
        probe.append(balanced_accuracy_score(labels[name], fitted.predict(scale(z))))
        first = np.linalg.svd(z - z.mean(0), full_matrices=False)[0][:, 0]
        depth_r.append(abs(np.corrcoef(first, depth[name])[0, 1]))
    left_out = [value for name, value in ari.items() if name.startswith(LEFT_OUT)]
    return {
        "ari": float(np.mean(list(ari.values()))),
        "ari_left_out": float(np.mean(left_out)),
        "probe": float(np.mean(probe)),
        "depth_r": float(np.mean(depth_r)),
    }


def distance(corpus: sg.train.Corpus, sections: Path) -> pd.DataFrame:
    """Evaluate the depth-scaled mean of the neighbours, weighted by distance to the power of -p, for some p."""
    rows = {}
    for power in (0.0, 0.5, 1.0, 2.0):
        scores: dict[str, RunningScores] = {}
        for section, spots in Stream(corpus, "validate", batch_size=10_000, mask_fraction=0.3, shuffle=False):
            stored = corpus.read(section)
            slide = ad.read_h5ad(sections / f"{section}.h5ad")[stored.obs_names].copy()
            sg.pp.neighborhood_graph(slide)
            weights = slide.obsp["sage_distances"].copy()
            weights.data = weights.data**-power
            weights = weights.multiply(1 / weights.sum(1)).tocsr()
            mean = torch.from_numpy((weights @ spots.center.numpy()).astype(np.float32))
            weighted = Spots(spots.center, mean, torch.ones(len(mean), 1), spots.mask)
            prediction = depth_scaled(weighted.masked_center, weighted.neighbor_mean, weighted.mask)
            scores.setdefault(section, RunningScores(mean.shape[1])).add(prediction, spots.center, spots.mask)
        rows[power] = metrics_of(scores)
    return pd.DataFrame.from_dict(rows, "index")[METRICS].rename_axis("power").round(4)


if __name__ == "__main__":
    main()
