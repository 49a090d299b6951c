"""How far imputed genes can be trusted on donors that a model hasn't seen.

    python evaluation/imputation.py SECTIONS_DIR [--donors her2st_G ...] [--out docs/evaluation]

The recipe of sagefm-mini is trained without the donor and some others (8 minutes on 2 CPU cores), unless the model lies
in build/left_out. On the donor's sections ``predictors.csv`` compares the model with all plain predictors, and
``reliability.csv`` counts the genes that sg.tl.impute calls reliable. ``nulls.csv`` counts them where none should be.
For the donors of ``--curves``, ``missingness.csv`` holds the curve of missing genes, and
``docs/_static/missingness.png`` shows the first one's. Donors that are there already are kept.
"""

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from left_out import DONORS, donor_sections, in_two_processes, model_without
from scipy import sparse

import sagefm as sg

CURVES = ("her2st_G", "CRC_16", "her2st_C")
NULLS = {"her2st_D1": "her2st_D", "synovium_RA3_s1": "synovium_RA3", "CRC_16": "CRC_16"}
SHOWN = {
    "model": "model",
    "depth alone": "depth",
    "depth-scaled neighbor mean": "neighbors",
    "depth-scaled kNN in PCA": "kNN",
    "depth-scaled diffusion": "diffusion",
}


def main() -> None:
    """Train without each donor and measure on it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--donors", nargs="+", default=DONORS)
    parser.add_argument("--recipe", default="mini", help="of another recipe than mini, predictors_RECIPE.csv alone")
    parser.add_argument("--curves", nargs="*", default=CURVES)
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation"))
    parser.add_argument("--figure", type=Path, default=Path("docs/_static/missingness.png"))
    arguments = parser.parse_args()
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    mini, out = arguments.recipe == "mini", arguments.out
    tasks = []
    for donor in arguments.donors:
        files = ["predictors.csv", "reliability.csv"] if mini else [f"predictors_{arguments.recipe}.csv"]
        if mini and donor in arguments.curves:
            files.append("missingness.csv")
        if todo := [file for file in files if not has(donor, out / file)]:
            model_without(donor, arguments.sections, arguments.recipe)  # before two processes want it
            tasks.append((donor, arguments.sections, arguments.recipe, todo))
    for (donor, *_), tables in zip(tasks, in_two_processes(measured_on, tasks), strict=True):
        for file, table in tables.items():
            append(table, out / file)
        print(donor, flush=True)
    if not mini:
        return
    if not (out / "nulls.csv").exists():
        for table in in_two_processes(nulls, [(name, donor, arguments.sections) for name, donor in NULLS.items()]):
            append(table, out / "nulls.csv")
    curve = pd.read_csv(out / "missingness.csv")
    first = curve[(curve["donor"] == CURVES[0]) & (curve["mask_by"] == "slide")]
    shown = ["model", "gene mean", "depth alone", "depth-scaled neighbor mean", "depth-scaled diffusion"]
    sg.pl.missingness_curve(first, predictors=shown, show=False, save=arguments.figure)
    write_view(curve, out / "missingness_view.csv")
    write_donors(pd.read_csv(out / "reliability.csv"), out / "reliability_view.csv")
    write_predictors(pd.read_csv(out / "predictors.csv"), out / "predictors_view.csv")
    draw_depth(pd.read_csv(out / "predictors.csv"), arguments.figure.with_name("depth.png"))
    for file in ("reliability_view.csv", "predictors_view.csv", "nulls.csv"):
        print(pd.read_csv(out / file).to_string())


def measured_on(task: tuple[str, Path, str, list[str]]) -> dict[str, pd.DataFrame]:
    """What a model that has not seen the donor does on its sections."""
    donor, folder, recipe, files = task
    model, sections = model_without(donor, folder, recipe), donor_sections(donor, folder)
    return {file: MEASURES[file.split("_")[0].split(".")[0]](donor, sections, model) for file in files}


def reliability(donor: str, sections: dict[str, ad.AnnData], model: sg.models.Model) -> pd.DataFrame:
    """Genes that the model predicts better than depth and neighbors, by section."""
    rows = []
    for name, adata in sections.items():
        row = {"donor": donor, "platform": str(adata.obs["platform"].iloc[0]), "section": name, "spots": adata.n_obs}
        rows.append(row | counted(adata, model))
    return pd.DataFrame(rows).round(3)


def counted(adata: ad.AnnData, model: sg.models.Model) -> dict[str, float]:
    """How many genes of a section are scored, have something to predict, and are reliable."""
    sg.tl.impute(adata, None, model)
    table = adata.uns["sage_imputed"]["reliability"]
    scored = table[table["r_beyond_depth"].notna()]
    known = scored[scored["share"].notna() & scored["testable"]]
    return {
        "scored": len(scored),
        "something to predict": len(known),
        "r above depth's": int((known["r"] > known["depth_r"]).sum()),
        "r beyond depth above the neighbors'": int((known["r_beyond_depth"] > known["neighbors_r_beyond_depth"]).sum()),
        "reliable": int(scored["reliable"].sum()),
        "r beyond depth": known["r_beyond_depth"].mean(),
        "attainable": known["attainable_r"].mean(),
    }


def nulls(task: tuple[str, str, Path]) -> pd.DataFrame:
    """Genes called reliable on counts that follow depth alone, on genes permuted alone, and on spots shuffled."""
    name, donor, folder = task
    adata, model = donor_sections(donor, folder)[name], model_without(donor, folder)
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(adata.X)
    depth, share = np.asarray(counts.sum(axis=1)).ravel(), np.asarray(counts.sum(axis=0)).ravel() / counts.sum()
    permuted = counts.toarray()
    # Among some 15 spots of like depth, each gene in an order of its own.
    for alike in np.array_split(np.argsort(depth), len(depth) // 15):
        order = rng.random((len(alike), counts.shape[1])).argsort(axis=0)
        permuted[alike] = np.take_along_axis(permuted[alike], order, axis=0)
    tried = {
        "as it is": counts,
        "Poisson counts of the section's depth alone": rng.poisson(depth[:, None] * share).astype(np.float32),
        "each gene permuted among spots of like depth": permuted,
        "spots shuffled in space": counts[rng.permutation(len(depth))],
    }
    rows = []
    for what, values in tried.items():
        adata.X = sparse.csr_matrix(values)
        rows.append({"section": name, "counts": what, **counted(adata, model)})
    table = pd.DataFrame(rows)
    return table.assign(**{"reliable, %": 100 * table["reliable"] / table["scored"]}).round(3)


def predictors(donor: str, sections: dict[str, ad.AnnData], model: sg.models.Model) -> pd.DataFrame:
    """The model beside all plain predictors."""
    table = sg.benchmark.compare_imputation(sections.values(), model).rename(index={model.name: "model"})
    metrics = ["rmse", "r_beyond_depth", "attainable_r", "share_attained", "r_within", "r2_spot"]
    return table[metrics].round(4).rename_axis("predictor").reset_index().assign(donor=donor)


def missingness(donor: str, sections: dict[str, ad.AnnData], model: sg.models.Model) -> pd.DataFrame:
    """The curve of missing genes, drawn in both ways."""
    curves = [
        sg.benchmark.missingness_curve(sections.values(), model, mask_by=mask_by).assign(donor=donor, mask_by=mask_by)
        for mask_by in ("slide", "spot")
    ]
    return pd.concat(curves).replace({"predictor": {model.name: "model"}}).round(4)


MEASURES = {"predictors": predictors, "reliability": reliability, "missingness": missingness}


def has(donor: str, file: Path) -> bool:
    """Whether a table holds a donor."""
    return file.exists() and donor in set(pd.read_csv(file)["donor"])


def write_donors(table: pd.DataFrame, file: Path) -> None:
    """Shares of the genes by donor, as the docs show them."""
    grouped = table.groupby(["donor", "platform"], sort=False)
    view = pd.DataFrame({"sections": grouped.size(), "spots a section": grouped["spots"].mean().round(0).astype(int)})
    counts = ["something to predict", "r above depth's", "r beyond depth above the neighbors'", "reliable"]
    total = grouped[counts].sum()
    view["genes with something to predict"] = (total["something to predict"] / view["sections"]).round(0).astype(int)
    for column in counts[1:]:
        view[column] = (total[column] / total["something to predict"]).map("{:.1%}".format)
    view.to_csv(file)


def write_predictors(table: pd.DataFrame, file: Path) -> None:
    """RMSE, r beyond depth and share attained, as the docs show them."""
    parts = []
    for metric, name in (("rmse", "RMSE"), ("r_beyond_depth", "r beyond depth"), ("share_attained", "share")):
        part = table.pivot(index="donor", columns="predictor", values=metric)[list(SHOWN)]
        parts.append(part.rename(columns=lambda column, name=name: f"{name}, {SHOWN[column]}").round(3))
    attainable = table.groupby("donor")["attainable_r"].first().rename("attainable").round(2)
    pd.concat([attainable, *parts], axis=1).loc[list(dict.fromkeys(table["donor"]))].to_csv(file)


def draw_depth(table: pd.DataFrame, file: Path) -> None:
    """Draw r of each predictor, and what remains of it beyond depth: a dot for each donor, bars for means."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.9), sharey=True, layout="constrained")
    for ax, metric, label in zip(
        axes, ("r_within", "r_beyond_depth"), ("r within the section", "r beyond depth"), strict=True
    ):
        for at, name in enumerate(SHOWN):
            values = table.loc[table["predictor"] == name, metric]
            color = "#b35806" if name == "model" else "0.6"
            ax.barh(at, values.mean(), color=color, height=0.6, alpha=0.5)
            ax.plot(values, np.full(len(values), at), "o", color=color, markersize=3.5)
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.set_xlabel(label)
        ax.spines[["top", "right"]].set_visible(False)
    attainable = table.groupby("donor")["attainable_r"].first()
    axes[1].axvline(attainable.mean(), color="0.3", linestyle="--", linewidth=1)
    axes[1].text(attainable.mean() + 0.008, 1, "attainable\n(mean)", fontsize="small", va="center")
    axes[1].set_xlim(right=0.45)
    labels = ["model of unseen donors" if name == "model" else name for name in SHOWN]
    axes[0].set_yticks(range(len(SHOWN)), labels)
    axes[0].invert_yaxis()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def write_view(curve: pd.DataFrame, file: Path) -> None:
    """Mean R² of a spot and mean r of a gene as the docs show them."""
    shown = curve[
        curve["predictor"].isin(["model", "gene mean", "depth-scaled neighbor mean", "depth-scaled diffusion"])
    ]
    center, everywhere = (shown[shown["task"] == task] for task in ("center", "everywhere"))
    index = ["donor", "mask_by", "predictor"]
    parts = []
    for metric, name in (("r2_spot", "R²"), ("r_within", "r")):
        part = everywhere.pivot(index=index, columns="fraction", values=metric)[[0.1, 0.5, 0.9]]
        part.columns = [f"{name} {share:.0%}" for share in part]
        part.insert(0, f"{name} centre", center.set_index(index)[metric])
        parts.append(part)
    view = pd.concat(parts, axis=1).map("{:.2f}".format).replace("-0.00", "0.00")
    view["critical"] = center.set_index(index)["critical_fraction"].map("{:.0%}".format).replace("nan%", "")
    view.rename_axis(["donor", "masks by", "predictor"]).to_csv(file)


def append(table: pd.DataFrame, file: Path) -> None:
    """Write a table, or its rows at the end of what is there."""
    table.to_csv(file, mode="a", header=not file.exists(), index=False)


if __name__ == "__main__":
    main()
