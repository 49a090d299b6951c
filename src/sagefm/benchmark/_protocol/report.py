"""One HTML page of a protocol's tables and figures, with everything inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from sagefm import pl
from sagefm._utils import shorten
from sagefm.benchmark._protocol.config import Config

# What the paper's abstract states (arXiv 2601.15504); the tasks are held against it only where they are the same.
PUBLISHED = {"oscc": "accuracy 0.81, SAGE-FM on pathologist-defined spots of oral squamous cell carcinoma"}
METRICS = {
    *("davies_bouldin", "calinski_harabasz", "error_mean", "error_median", "same_kind_rank", "chance_rank"),
    *("f1_macro", "f1_micro", "recall_macro", "precision_macro"),
    *("pearson_mean", "pearson_median", "spearman_mean", "spearman_median"),
}
MAX_WIDTH, N_COLORS = 1_000, 256
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd }
h3 { font-size: 1rem; margin-top: 1.5rem }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; margin: 0.8rem 0 }
th, td { text-align: right; padding: 0.2rem 0.7rem; border-bottom: 1px solid #eee }
th:first-child, td:first-child { text-align: left }
td.best { font-weight: 700 }
img { max-width: 100%; margin: 0.5rem 0 }
pre { font-size: 0.8rem; overflow-x: auto; background: #f6f6f6; padding: 1rem }
.scroll { overflow-x: auto }
"""


def write(config: Config, record: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], figures: Path) -> str:
    """Return the page."""
    parts = [
        _head(config, record),
        _in_short(config, tables),
        _clustering(tables),
        _heterogeneity(config, tables),
        _annotation(config, record, tables, figures),
        _composition(record, tables, figures),
        _clusters(record, tables, figures),
        _made(record),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(config.title)}</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"
    )


def _head(config: Config, record: Mapping[str, Any]) -> str:
    sections = pd.DataFrame(record["sections"])
    seen = [entry.name for entry in config.representations if entry.allow_seen]
    lines = [
        f"<h1>{escape(config.title)}</h1>",
        f"<p>{len(sections)} sections of {sections['group'].nunique()} groups "
        f"(<code>{escape(config.group_key)}</code>), "
        f"{sections['n_spots'].sum():,} spots, {record['n_genes']:,} genes in common. Expression and baselines read "
        "these; a model reads all genes of a section that it knows. PCA, NichePCA and MOFA are fitted to all sections "
        "together, tested ones included; no representation reads labels. In each column of a table the best is bold, "
        "ties by rounding included.</p>",
    ]
    if seen:
        lines.append(
            f"<p><b>{escape(', '.join(seen))} may have been trained on sections that {_be(seen)} tried on</b> "
            "(<code>allow_seen</code>).</p>"
        )
    return "\n".join(lines)


def _in_short(config: Config, tables: Mapping[str, pd.DataFrame]) -> str:
    """Who is best at what, and where the models stand."""
    found: dict[str, pd.Series] = {}
    if "domains" in tables:
        domains = _shared(tables["domains"])
        if len(domains):
            found["clusters: ARI with labels, in sections"] = domains.groupby("representation")["ari"].mean()
    for target, part in tables["clustering"].groupby("target", sort=False) if "clustering" in tables else ():
        found[f"clusters: ARI with {target}, all spots"] = part.set_index("representation")["ari"]
    for kind, part in tables["heterogeneity"].groupby("kind_of", sort=False) if "heterogeneity" in tables else ():
        if part["same_kind_rank"].notna().any():
            found[f"distances: rank of the same {kind} *"] = part.set_index("representation")["same_kind_rank"]
    for name, metrics in (("annotation", ("accuracy", "f1_macro")), ("dominant", ("f1_macro",))):
        if name in tables:
            whole = tables[name][tables[name]["bootstrap"] == 0]
            for kind, part in whole.groupby("classifier", sort=False):
                for metric in metrics:
                    label = f"{'annotation' if name == 'annotation' else 'likeliest class'}, {kind}: {metric}"
                    found[label] = part.groupby("representation")[metric].mean()
    if "composition" in tables:
        for n_layers, part in tables["composition"].groupby("n_layers"):
            if n_layers:
                found[f"composition, {n_layers} layers: bce *"] = part.groupby("representation")["bce"].mean()
    names = [entry.name for entry in config.representations if entry.model is not None]
    rows = []
    for label, values in found.items():
        if len(values) < 2:
            continue
        ranks = values.rank(method="min", ascending=label.endswith("*"))
        best = values.index[ranks == 1]
        stands = {
            name: f"{values[name]:.3f} ({int(ranks[name])}. of {len(values)})" if name in values else ""
            for name in names
        }
        rows.append({"": label, "best": ", ".join(best), "value": f"{values[best[0]]:.3f}", **stands})
    if not rows:
        return ""
    return (
        "<h2>In short</h2>"
        + _plain(pd.DataFrame(rows))
        + "<p>* lower is better. Means over held-out groups, sections, or seeds; how much they vary is below.</p>"
    )


def _be(names: list[str]) -> str:
    return "it is" if len(names) == 1 else "they are"


def _clustering(tables: Mapping[str, pd.DataFrame]) -> str:
    lines = []
    if "domains" in tables:
        domains = tables["domains"]
        shared = _shared(domains)
        mean = shared.groupby("representation", sort=False)[["ari", "nmi", "silhouette", "davies_bouldin"]].mean()
        wide = domains.pivot_table(index="representation", columns="part", values="ari", sort=False)
        lines += [
            "<h3>Labels within each section</h3>",
            "<p>k-means with as many clusters as the section has labels; mean over seeds and the "
            f"{shared['part'].nunique()} sections that all representations have.</p>",
            _table(mean, low={"davies_bouldin"}, unranked={"silhouette", "davies_bouldin"}),
            "<p>ARI by section:</p>",
            _table(wide),
        ]
    if "clustering" in tables:
        for target, part in tables["clustering"].groupby("target", sort=False):
            table = part.set_index("representation")[["ari", "nmi", "silhouette", "davies_bouldin"]]
            lines += [
                f"<h3>All spots against {escape(str(target))} ({int(part['n_clusters'].iloc[0])} clusters)</h3>",
                _table(table, low={"davies_bouldin"}, unranked={"silhouette", "davies_bouldin"}),
            ]
        lines.append(
            "<p>Agreement with sample or group is no merit in itself: it also measures batch effects. Silhouette and "
            "Davies–Bouldin describe the clusters, not their agreement with anything, and favour spaces of few "
            "dimensions.</p>"
        )
    return "\n".join(["<h2>Clustering</h2>", *lines]) if lines else ""


def _shared(domains: pd.DataFrame) -> pd.DataFrame:
    """Sections that all representations have: others would favour some."""
    n_with = domains.groupby("part")["representation"].nunique()
    return domains[domains["part"].map(n_with) == domains["representation"].nunique()]


def _heterogeneity(config: Config, tables: Mapping[str, pd.DataFrame]) -> str:
    if "heterogeneity" not in tables:
        return ""
    lines = [
        "<h2>Distances between samples</h2>",
        "<p>Cosine distances of the samples' centroids, scaled to [0, 1], against those of log1p counts: error and "
        "rank correlation. Mean rank of other samples of the same kind among all others (lower is closer), and by "
        "chance. The reference is expression itself: log1p has no error by construction, and what lies close to it is "
        "not therefore better.</p>",
    ]
    for kind, part in tables["heterogeneity"].groupby("kind_of", sort=False):
        columns = ["error_mean", "error_median", "spearman", "same_kind_rank", "chance_rank"]
        lines += [
            f"<h3>Kind: {escape(str(kind))}</h3>",
            _table(
                part.set_index("representation")[columns],
                low={"error_mean", "error_median", "same_kind_rank"},
                unranked={"chance_rank"},
            ),
        ]
    if "tissue-heterogeneity" in tables:
        table = tables["tissue-heterogeneity"].set_index("representation")
        n_tissues = tables["tissue-distances"]["sample"].nunique()
        lines += [
            f"<h3>Centroids of the {n_tissues} tissues</h3>",
            _table(table, low={"error_mean", "error_median"}),
        ]
    pairs = tables["distances"]
    pairs = pairs[pairs["kind_of"] == pairs["kind_of"].iloc[0]]
    lines.append(_drawn(pl.distance_error(pairs, return_fig=True)))
    model = next((entry.name for entry in config.representations if entry.name in set(pairs["representation"])), None)
    lines.append(_drawn(pl.centroid_distances(pairs, model, return_fig=True)))
    return "\n".join(lines)


def _annotation(config: Config, record: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], figures: Path) -> str:
    lines = []
    if "annotation" in tables:
        scores = tables["annotation"]
        whole = scores[scores["bootstrap"] == 0]
        lines += [
            "<h2>Annotation</h2>",
            f"<p>Labels of {whole['group'].nunique()} held-out groups, each in turn; settings, and whether the "
            "representation is standardised within slides, are chosen by cross-validation among the other groups. Mean "
            "over groups, fits on all training spots.</p>",
        ]
        metrics = ["accuracy", "f1_macro", "f1_micro", "recall_macro", "precision_macro"]
        for kind, part in whole.groupby("classifier", sort=False):
            lines += [
                f"<h3>{'Random forest' if kind == 'forest' else 'Network of three layers'}</h3>",
                _table(part.groupby("representation", sort=False)[metrics].mean()),
            ]
        for metric in ("f1_macro", "accuracy"):
            lines.append(_drawn(pl.benchmark_violin(scores, metric, return_fig=True)))
        lines.append("<p>Violins: all fits, training spots drawn anew; dots: groups; bars: their mean.</p>")
        wide = whole[whole["classifier"] == whole["classifier"].iloc[0]].pivot_table(
            index="representation", columns="group", values="f1_macro", sort=False
        )
        lines += [f"<p>Macro-F1 by group, {escape(str(whole['classifier'].iloc[0]))}:</p>", _table(wide)]
        if "annotation_tests" in tables:
            lines += [
                f"<h3>Against {escape(str(config.baseline))}</h3>",
                "<p>Wilcoxon's signed-rank tests: over groups, and over bootstraps as in the paper. Those of the "
                "same spots are no independent pairs; their p-value is too small.</p>",
                _plain(tables["annotation_tests"].drop(columns="baseline")),
            ]
        if config.published is not None:
            lines.append(f"<p>The paper, same task: {escape(PUBLISHED[config.published])}.</p>")
        else:
            lines.append(
                "<p>The paper states for another task, so not comparable: "
                + escape("; ".join(PUBLISHED.values()))
                + ".</p>"
            )
        lines += _images(record, figures, "annotation", "Labels")
    return "\n".join(lines)


def _composition(record: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], figures: Path) -> str:
    if "composition" not in tables:
        return ""
    columns = ["bce", "pearson_mean", "pearson_median", "spearman_mean", "spearman_median", "accuracy", "f1_macro"]
    mean = tables["composition"].groupby(["representation", "n_layers"], sort=False)[columns].mean().reset_index()
    plain = mean[mean["n_layers"] == 0].drop_duplicates("n_layers").assign(representation="mean of training")
    fitted = mean[mean["n_layers"] > 0]
    fitted = fitted.assign(representation=fitted["representation"] + fitted["n_layers"].map(", {} layers".format))
    mean = pd.concat([plain, fitted]).drop(columns="n_layers")
    lines = [
        "<h2>Composition</h2>",
        "<p>Likelihoods of the classes in held-out groups: binary cross-entropy, correlations of a class over spots "
        "(mean and median over classes), and the likeliest class. “Mean of training” reads nothing of the spot.</p>",
        _table(mean.set_index("representation"), low={"bce"}),
    ]
    if "dominant" in tables:
        whole = tables["dominant"][tables["dominant"]["bootstrap"] == 0]
        lines += [
            "<h3>Likeliest class by random forest</h3>",
            _table(whole.groupby("representation", sort=False)[["accuracy", "f1_macro", "recall_macro"]].mean()),
        ]
    lines += _images(record, figures, "likeliest", "Likeliest class")
    return "\n".join(lines)


def _clusters(record: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], figures: Path) -> str:
    if "clusters" not in tables:
        return ""
    lines = ["<h2>Clusters of the model's embedding</h2>"]
    for name, part in tables["clusters"].groupby("representation", sort=False):
        lines += [
            f"<h3>{escape(str(name))}</h3>",
            _table(part.set_index("n_clusters").drop(columns="representation"), {"davies_bouldin"}),
        ]
    lines += _images(record, figures, "tsne", "t-SNE")
    lines += _images(record, figures, "proportions", "Clusters by tissue")
    lines += _images(record, figures, "markers", "Markers")
    return "\n".join(lines)


def _made(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    machine = record["machine"]
    memory = "" if machine["peak_memory_gib"] is None else f", peak memory {machine['peak_memory_gib']} GiB"
    names = [entry["sample"] for entry in record["sections"]]
    import json

    return "\n".join(
        [
            "<h2>How this was made</h2>",
            f"<p>{escape(versions)}; {machine['system']}, {machine['cpus']} CPUs{memory}, "
            f"{record['seconds_parts'] / 60:.0f} minutes of work. Sections: {escape(shorten(names, 60))}.</p>",
            f"<pre>{escape(json.dumps(record['config'], indent=2, default=str))}</pre>",
        ]
    )


def _table(table: pd.DataFrame, low: set[str] = frozenset(), unranked: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """Numbers to three digits, the best of a column bold."""
    rounded = table.astype(float).round(3)
    best = {
        name: (column.min() if name in low else column.max())
        for name, column in rounded.items()
        if name not in unranked and len(rounded) > 1
    }
    titles = [str(name).replace("_", " ") if name in METRICS else str(name) for name in table.columns]
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    rows = []
    for name, row in rounded.iterrows():
        cells = "".join(
            f"<td{' class=best' if key in best and value == best[key] else ''}>"
            f"{'' if pd.isna(value) else f'{value:.3f}'}</td>"
            for key, value in row.items()
        )
        rows.append(f"<tr><td>{escape(str(name))}</td>{cells}</tr>")
    first = escape(str(table.index.name or "").replace("_", " "))
    return f'<div class="scroll"><table><tr><th>{first}</th>{head}</tr>\n' + "\n".join(rows) + "</table></div>"


def _plain(table: pd.DataFrame) -> str:
    html = table.to_html(index=False, border=0, na_rep="", float_format=lambda value: f"{value:.3g}")
    return f'<div class="scroll">{html}</div>'


def _drawn(figure: Any) -> str:
    """A figure inside the page."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return _embedded(buffer.getvalue(), "")


def _images(record: Mapping[str, Any], figures: Path, kind: str, title: str) -> list[str]:
    """Figures of one kind, in the order that they were drawn in."""
    return [
        f"<h3>{escape(title)}: {escape(name)}</h3>{_embedded((figures / file).read_bytes(), name)}"
        for file, name in record["figures"].items()
        if file.startswith(f"{kind}__") and (figures / file).exists()
    ]


def _embedded(png: bytes, text: str) -> str:
    """As wide as the page shows it, in as many colours as figures have: a tenth of the size."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((MAX_WIDTH, 10 * MAX_WIDTH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(N_COLORS, Image.Quantize.MAXCOVERAGE).save(buffer, format="png", optimize=True)
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
