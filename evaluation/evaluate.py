"""The paper's evaluation on what can be had here: simulated slides, real sections with donors held out, the read-out.

Writes docs/evaluation/protocol/*.csv and docs/_static/evaluation_*.html. A run that was interrupted goes on.
"""

import argparse
import os
import shutil
import tomllib
from pathlib import Path

import pandas as pd
from left_out import DONORS, model_without

import sagefm as sg

ROOT = Path(__file__).parents[1]
TABLES = (
    "annotation",
    "annotation_tests",
    "clustering",
    "cluster-proportions",
    "clusters",
    "composition",
    "domains",
    "dominant",
    "heterogeneity",
    "tissue-heterogeneity",
)
DEPTHS = (2_000, 4_000, 6_000, 9_000)  # so that slides differ by more than their tissue


def simulate(folder: Path) -> None:
    """Slides of several depths; the share of each domain among the 15 spots is what composition is to find."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, depth in enumerate(DEPTHS):
        file = folder / f"simulated_{seed}.h5ad"
        if not file.exists():
            adata = sg.datasets.simulated_visium(30, 30, depth=depth, rng=seed)
            sg.pp.neighborhood_graph(adata)
            domains = pd.get_dummies(adata.obs["domain"], dtype=float)
            around = adata.obsp["sage_connectivities"] @ domains.to_numpy()
            adata.obsm["share"] = (around + domains) / 15
            adata.obs["donor"] = f"simulated {seed}"
            adata.write_h5ad(file)


def her2st_views(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The pages' tables: a row for each representation."""
    whole = tables["annotation"][tables["annotation"]["bootstrap"] == 0]
    scores = whole.groupby(["representation", "classifier"], sort=False)[["accuracy", "f1_macro"]].mean().unstack()
    annotation = pd.DataFrame(
        {
            f"{kind}: {title}": scores[metric, name]
            for name, kind in (("forest", "forest"), ("mlp", "network"))
            for metric, title in (("accuracy", "accuracy"), ("f1_macro", "macro-F1"))
        }
    )
    settings = whole[whole["classifier"] == "forest"].groupby("representation", sort=False)["scale"]
    annotation["by slide, of 6"] = settings.agg(lambda scale: int((scale == "slide").sum()))
    domains = tables["domains"].groupby("representation", sort=False)[["ari", "nmi"]].mean()
    pooled = tables["clustering"].pivot(index="representation", columns="target", values="ari")
    clustering = domains.join(pooled[["sample", "tissue", "label"]])
    clustering.columns = ["ARI in sections", "NMI in sections", "ARI sample", "ARI tissue", "ARI labels, pooled"]
    kinds = {kind: part.set_index("representation") for kind, part in tables["heterogeneity"].groupby("kind_of")}
    distances = kinds["tissue"][["error_mean", "error_median", "spearman", "same_kind_rank"]].copy()
    distances["same donor"] = kinds["group"]["same_kind_rank"]
    tissues = tables["tissue-heterogeneity"].set_index("representation")
    distances["error, tissues"] = tissues["error_mean"]
    distances.columns = [
        *("error, mean", "error, median", "rank correlation", "rank, same tissue", "rank, same donor"),
        "error, tissues",
    ]
    return {"annotation": annotation, "clustering": clustering, "heterogeneity": distances}


def simulated_view(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """One table of all tasks."""
    whole = tables["annotation"][tables["annotation"]["bootstrap"] == 0]
    forest = whole[whole["classifier"] == "forest"].groupby("representation", sort=False)[["accuracy", "f1_macro"]]
    view = forest.mean().set_axis(["accuracy", "macro-F1"], axis=1)
    view.insert(0, "ARI in slides", tables["domains"].groupby("representation")["ari"].mean())
    parts = tables["composition"][tables["composition"]["n_layers"] == 2].groupby("representation")
    view["cross-entropy"], view["Pearson r"] = parts["bce"].mean(), parts["pearson_mean"].mean()
    dominant = tables["dominant"][tables["dominant"]["bootstrap"] == 0].groupby("representation")
    view["likeliest class: macro-F1"] = dominant["f1_macro"].mean()
    return {"": view}


def readout_view(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Representations by what their classifier reads."""
    scores = tables["annotation"].copy()
    scores[["representation", "scaling"]] = scores["representation"].str.split(": ", expand=True).to_numpy()
    view = scores.groupby(["representation", "scaling"], sort=False)[["accuracy", "f1_macro"]].mean().unstack()
    return {
        "": pd.DataFrame(
            {
                f"{title}, {text}": view[metric, name]
                for name, text in (("none", "as it is"), ("slide", "by slide"))
                for metric, title in (("accuracy", "accuracy"), ("f1_macro", "macro-F1"))
            }
        )
    }


VIEWS = {"simulated": simulated_view, "her2st": her2st_views, "readout": readout_view}


def main() -> None:
    """Run both, and put the tables where the documentation reads them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sections", nargs="?", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "evaluation")
    parser.add_argument("--only", choices=list(VIEWS))
    arguments = parser.parse_args()
    sg.settings.progress_bars = False
    sections, folder_out = arguments.sections.resolve(), arguments.out.resolve()
    os.chdir(ROOT / "evaluation")  # where paths in the settings count from
    for name, make_views in VIEWS.items():
        if arguments.only not in (None, name):
            continue
        if name == "simulated":
            simulate(ROOT / "build" / "simulated")
        else:
            for donor in (donor for donor in DONORS if donor.startswith("her2st")):
                model_without(donor, sections)
        out = folder_out / name
        settings = tomllib.loads((ROOT / "evaluation" / f"{name}.toml").read_text())
        if name != "simulated":
            settings["sections"] = str(sections)
        tables = sg.benchmark.run_protocol(settings, out)
        if name != "readout":
            shutil.copy(out / "report.html", ROOT / "docs" / "_static" / f"evaluation_{name}.html")
        folder = ROOT / "docs" / "evaluation" / "protocol"
        folder.mkdir(exist_ok=True)
        for table in TABLES:
            if table in tables:
                tables[table].round(4).to_csv(folder / f"{name}_{table}.csv", index=False)
        for view, table in make_views(tables).items():
            file = "_".join(part for part in (name, view, "view") if part)
            table.rename_axis("representation").to_csv(folder / f"{file}.csv", float_format="%.3f")


if __name__ == "__main__":
    main()
