"""What the report of a protocol says: one page of its tables and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from sagefm import pl
from sagefm._utils import shorten
from sagefm.benchmark._protocol.config import Config
from sagefm.benchmark._protocol.html import embed_figure, embed_image, make_page, make_ranked_table, make_table
from sagefm.tl._labels.labels import METRICS

# What the paper's abstract states (arXiv 2601.15504); the tasks are held against it only where they are the same.
PUBLISHED = {"oscc": "accuracy 0.81, SAGE-FM on pathologist-defined spots of oral squamous cell carcinoma"}
AGREEMENT = ["ari", "nmi", "silhouette", "davies bouldin"]
# They describe the clusters, and favour spaces of few dimensions.
UNRANKED = ("silhouette", "davies bouldin")
CLASSIFIERS = {"forest": "Random forest", "mlp": "Three-layer network"}


@dataclass(frozen=True)
class Report:
    """A run of the protocol to report: its settings, its record, its tables, and the folder of its figures."""

    config: Config
    record: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    figures: Path

    def page(self) -> str:
        """All of it, as HTML."""
        parts = (
            *(self.head(), self.summary(), self.clustering(), self.distances(), self.annotation()),
            *(self.composition(), self.imputation(), self.clusters(), self.provenance()),
        )
        return make_page(self.config.title, parts)

    def head(self) -> str:
        """Sections, and who has seen them before."""
        sections = pd.DataFrame(self.record["sections"])
        seen = [entry.name for entry in self.config.representations if entry.allow_seen]
        text = (
            f"<h1>{escape(self.config.title)}</h1>\n"
            f"<p>{len(sections)} sections of {sections['group'].nunique()} groups "
            f"(<code>{escape(self.config.group_key)}</code>), {sections['n_spots'].sum():,} spots, "
            f"{self.record['n_genes']:,} genes in common. Expression and baselines read the genes in common; a model "
            "reads all genes of a section that it knows. PCA, NichePCA and MOFA are fitted to all sections together, "
            "including those tested; no representation reads labels. In each column of a table the best value is bold, "
            "including ties by rounding.</p>"
        )
        if seen:
            text += (
                f"\n<p><b>{escape(', '.join(seen))} may have been trained on sections that "
                f"{'it is' if len(seen) == 1 else 'they are'} tried on</b> (<code>allow_seen</code>).</p>"
            )
        return text

    def summary(self) -> str:
        """The best representation of each task, and where the models stand."""
        models = [entry.name for entry in self.config.representations if entry.model is not None]
        rows = []
        for label, scores in self._scores().items():
            if len(scores) < 2:
                continue
            ranks = scores.rank(method="min", ascending=label.endswith("*"))
            best = scores.index[ranks == 1]
            stands = {
                name: f"{scores[name]:.3f} (rank {int(ranks[name])} of {len(scores)})" if name in scores else ""
                for name in models
            }
            rows.append({"": label, "best": ", ".join(best), "value": f"{scores[best[0]]:.3f}", **stands})
        if not rows:
            return ""
        return (
            "<h2>In short</h2>"
            + make_table(pd.DataFrame(rows))
            + "<p>* Lower is better. Values are means over held-out groups, sections, or seeds; how much these vary is "
            "shown below.</p>"
        )

    def _scores(self) -> dict[str, pd.Series]:
        """One score of each representation by task; lower is better where a task's name ends with a star."""
        found: dict[str, pd.Series] = {}
        if "domains" in self.tables and len(domains := shared_parts(self.tables["domains"])):
            found["clusters: ARI with labels, in sections"] = domains.groupby("representation")["ari"].mean()
        for target, part in self._parts("clustering", "target"):
            found[f"clusters: ARI with {target}, all spots"] = part.set_index("representation")["ari"]
        for kind, part in self._parts("heterogeneity", "kind_of"):
            if part["same_kind_rank"].notna().any():
                found[f"distances: rank of the same {kind} *"] = part.set_index("representation")["same_kind_rank"]
        for table, what, metrics in (
            ("annotation", "annotation", ("accuracy", "f1_macro")),
            ("dominant", "likeliest class", ("f1_macro",)),
        ):
            for kind, part in self._parts(table, "classifier"):
                whole = part[part["bootstrap"] == 0].groupby("representation")
                found |= {f"{what}, {kind}: {metric}": whole[metric].mean() for metric in metrics}
        for n_layers, part in self._parts("composition", "n_layers"):
            if n_layers:
                found[f"composition, {n_layers} layers: bce *"] = part.groupby("representation")["bce"].mean()
        return found

    def clustering(self) -> str:
        """Agreement of clusters with labels within sections, and of all spots."""
        lines = []
        if "domains" in self.tables:
            domains = self.tables["domains"]
            shared = spell(shared_parts(domains))
            lines += [
                "<h3>Labels within each section</h3>",
                "<p>k-means with as many clusters as the section has labels; mean over seeds and the "
                f"{shared['part'].nunique()} sections that all representations have.</p>",
                make_ranked_table(shared.groupby("representation", sort=False)[AGREEMENT].mean(), unranked=UNRANKED),
                "<p>ARI by section:</p>",
                make_ranked_table(wide(domains, "part", "ari")),
            ]
        for target, part in self._parts("clustering", "target"):
            table = spell(part.set_index("representation"))[AGREEMENT]
            lines += [
                f"<h3>All spots against {escape(str(target))} ({int(part['n_clusters'].iloc[0])} clusters)</h3>",
                make_ranked_table(table, unranked=UNRANKED),
            ]
        if "clustering" in self.tables:
            lines.append(
                "<p>Agreement with sample or group is no merit in itself: it also measures batch effects. Silhouette "
                "and Davies–Bouldin describe the clusters, not their agreement with anything, and favour spaces of few "
                "dimensions.</p>"
            )
        return chapter("Clustering", [*lines, *self._images("tsne", "t-SNE")])

    def distances(self) -> str:
        """How well distances between samples are kept."""
        lines = []
        columns = ["error_mean", "error_median", "spearman", "same_kind_rank", "chance_rank"]
        low, unranked = ("error mean", "error median", "same kind rank"), ("chance rank",)
        for kind, part in self._parts("heterogeneity", "kind_of"):
            table = spell(part.set_index("representation")[columns])
            lines += [f"<h3>Kind: {escape(str(kind))}</h3>", make_ranked_table(table, low, unranked)]
        if not lines:
            return ""
        if "tissue-heterogeneity" in self.tables:
            table = spell(self.tables["tissue-heterogeneity"].set_index("representation"))
            n_tissues = self.tables["tissue-distances"]["sample"].nunique()
            lines += [f"<h3>Centroids of the {n_tissues} tissues</h3>", make_ranked_table(table, low)]
        pairs = self.tables["distances"]
        pairs = pairs[pairs["kind_of"] == pairs["kind_of"].iloc[0]]
        lines.append(embed_figure(pl.distance_error(pairs, return_fig=True)))
        names = set(pairs["representation"])
        first = next((entry.name for entry in self.config.representations if entry.name in names), None)
        lines.append(embed_figure(pl.centroid_distances(pairs, first, return_fig=True)))
        intro = (
            "<p>Cosine distances between the samples' centroids, scaled to [0, 1], are compared with those of log1p "
            "counts: error and rank correlation. The mean rank of other samples of the same kind among all others "
            "(lower is closer) stands beside that by chance. log1p counts have no error by construction, and a "
            "representation that is close to them is not better for it.</p>"
        )
        return chapter("Distances between samples", [intro, *lines])

    def annotation(self) -> str:
        """Labels of held-out groups."""
        if "annotation" not in self.tables:
            return ""
        scores = self.tables["annotation"]
        whole = scores[scores["bootstrap"] == 0]
        lines = [
            f"<p>Labels of {self._held_out(whole)}. Cross-validation among the other groups chooses the classifier's "
            "settings, and whether the representation is standardised within slides. Mean over groups, fits on all "
            "training spots.</p>"
        ]
        metrics = list(METRICS)
        for kind, part in whole.groupby("classifier", sort=False):
            table = spell(part.groupby("representation", sort=False)[metrics].mean())
            lines += [f"<h3>{CLASSIFIERS[str(kind)]}</h3>", make_ranked_table(table)]
        lines += [embed_figure(pl.benchmark_violin(scores, metric, return_fig=True)) for metric in metrics]
        kind = whole["classifier"].iloc[0]
        lines += [
            "<p>Violins show all fits, with training spots drawn anew; dots show groups; bars show their mean.</p>",
            f"<p>Macro-F1 by group, {escape(str(kind))}:</p>",
            make_ranked_table(wide(whole[whole["classifier"] == kind], "group", "f1_macro")),
        ]
        lines += self._tests("annotation")
        if self.config.published is not None:
            lines.append(f"<p>The paper reports for this task: {escape(PUBLISHED[self.config.published])}.</p>")
        else:
            published = escape("; ".join(PUBLISHED.values()))
            lines.append(f"<p>The paper reports for another task, so not comparable: {published}.</p>")
        return chapter("Annotation", [*lines, *self._images("annotation", "Labels")])

    def _held_out(self, scores: pd.DataFrame) -> str:
        """Which groups are held out, in words."""
        if not self.config.test:
            return f"{scores['group'].nunique()} held-out groups, each in turn"
        how = "scored as one" if self.config.pooled else "scored one by one"
        return f"{escape(', '.join(self.config.test))}, held out together and {how}"

    def _tests(self, task: str) -> list[str]:
        """Signed-rank tests of a task, folded."""
        if f"{task}_tests" not in self.tables:
            return []
        against = "each other" if self.config.baseline is None else escape(self.config.baseline)
        return [
            f"<details><summary>Tests of representations against {against}</summary>",
            "<p>Wilcoxon signed-rank tests over groups, and over bootstraps as in the paper. Bootstraps draw the "
            "same spots again, so they are not independent and their p-value is too small.</p>",
            make_table(self.tables[f"{task}_tests"]),
            "</details>",
        ]

    def composition(self) -> str:
        """Likelihoods of classes in held-out groups."""
        if "composition" not in self.tables:
            return ""
        columns = ["bce", "pearson_mean", "pearson_median", "spearman_mean", "spearman_median", "accuracy", "f1_macro"]
        by_depth = self.tables["composition"].groupby(["representation", "n_layers"], sort=False)
        mean = by_depth[columns].mean().reset_index()
        plain = mean[mean["n_layers"] == 0].drop_duplicates("n_layers").assign(representation="mean of training")
        fitted = mean[mean["n_layers"] > 0]
        fitted = fitted.assign(representation=fitted["representation"] + fitted["n_layers"].map(", {} layers".format))
        mean = pd.concat([plain, fitted]).drop(columns="n_layers").set_index("representation")
        lines = [
            "<p>Likelihoods of the classes in held-out groups: binary cross-entropy, correlations of a class over "
            "spots (mean and median over classes), and the likeliest class. “Mean of training” ignores the spot.</p>",
            make_ranked_table(spell(mean), ("bce",)),
        ]
        if "dominant" in self.tables:
            whole = self.tables["dominant"][self.tables["dominant"]["bootstrap"] == 0]
            table = whole.groupby("representation", sort=False)[["accuracy", "f1_macro", "recall_macro"]].mean()
            lines += ["<h3>Likeliest class by random forest</h3>", make_ranked_table(spell(table))]
            lines += self._tests("dominant")
        return chapter("Composition", [*lines, *self._images("likeliest", "Likeliest class")])

    def imputation(self) -> str:
        """Masked genes, by the models and by what needs none."""
        lines = [
            "<p>30 % of the genes of every spot are masked and predicted. “r beyond depth” is the correlation of a "
            "gene within a section once the depth of the spot is accounted for, mean over the genes seen in more than "
            "30 % of the spots; “share attained” is the part of it that counting noise leaves possible. “r within” is "
            "the paper's, and mostly depth. Mean over groups.</p>"
        ]
        metrics = ["rmse", "r_beyond_depth", "share_attained", "r_within", "r2_spot"]
        for name, part in self._parts("imputation", "representation"):
            table = spell(part.groupby("predictor", sort=False)[metrics].mean())
            lines += [f"<h3>{escape(str(name))}</h3>", make_ranked_table(table, ("rmse",))]
        return chapter("Imputation", lines) if len(lines) > 1 else ""

    def clusters(self) -> str:
        """Clusters of the models' embeddings, their genes and tissues."""
        lines = []
        for name, part in self._parts("clusters", "representation"):
            table = spell(part.set_index("n_clusters").drop(columns="representation"))
            lines += [f"<h3>{escape(str(name))}</h3>", make_ranked_table(table, ("davies bouldin",))]
        if lines:
            titles = {"cluster-proportions": "Clusters by tissue", "markers": "Markers"}
            lines += [image for kind, title in titles.items() for image in self._images(kind, title)]
        return chapter("Clusters of the model's embedding", lines)

    def provenance(self) -> str:
        """Versions, machine and settings."""
        record = self.record
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        machine = record["machine"]
        memory = "" if machine["peak_memory_gib"] is None else f", peak memory {machine['peak_memory_gib']} GiB"
        names = [entry["sample"] for entry in record["sections"]]
        lines = [
            f"<p>{escape(versions)}; {machine['system']}, {machine['cpus']} CPUs{memory}, "
            f"{record['seconds_parts'] / 60:.0f} minutes of work. Sections: {escape(shorten(names, 60))}.</p>",
            f"<pre>{escape(json.dumps(record['config'], indent=2, default=str))}</pre>",
        ]
        return chapter("How this was made", lines)

    def _parts(self, table: str, by: str) -> list[tuple[Any, pd.DataFrame]]:
        """Parts of a table, in the order they come; none where it is missing."""
        return list(self.tables[table].groupby(by, sort=False)) if table in self.tables else []

    def _images(self, kind: str, title: str) -> list[str]:
        """Figures of one kind, in the order that they were drawn in."""
        return [
            f"<h3>{escape(title)}: {escape(name)}</h3>{embed_image((self.figures / file).read_bytes(), name)}"
            for file, name in self.record["figures"].items()
            if file.startswith(f"{kind}__") and (self.figures / file).exists()
        ]


def chapter(title: str, lines: list[str]) -> str:
    """Lines under a title; nothing where there are none."""
    return "\n".join([f"<h2>{title}</h2>", *lines]) if lines else ""


def spell(table: pd.DataFrame) -> pd.DataFrame:
    """Names of metrics as words."""
    return table.rename(columns=lambda name: str(name).replace("_", " "))


def wide(table: pd.DataFrame, columns: str, values: str) -> pd.DataFrame:
    """One row for each representation."""
    return table.pivot_table(index="representation", columns=columns, values=values, sort=False)


def shared_parts(domains: pd.DataFrame) -> pd.DataFrame:
    """Sections that all representations have: others would favour some."""
    n_with = domains.groupby("part")["representation"].nunique()
    return domains[domains["part"].map(n_with) == domains["representation"].nunique()]
