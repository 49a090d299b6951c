"""How far imputed genes can be trusted on donors that a model hasn't seen.

    python evaluation/imputation.py SECTIONS_DIR [--models FOLDER] [--donors her2st_G ...] [--out docs/evaluation]

For every donor the recipe of sagefm-mini is trained without it (3 minutes on 2 CPU cores), unless the model lies in
FOLDER. On the donor's sections ``reliability.csv`` counts the genes that sg.tl.impute calls reliable, and
``smoothers.csv`` compares the model with smoothers over similar spots; for the donors of ``--curves``,
``missingness.csv`` holds the curve of missing genes, and ``docs/_static/missingness.png`` shows the first one's. Donors
that are there already are kept.
"""

import argparse
from pathlib import Path

import anndata as ad
import pandas as pd
from left_out import DONORS, model_without, section_files

import sagefm as sg

CURVES = ("her2st_G", "CRC_16", "her2st_C")


def main() -> None:
    """Train without each donor and measure on it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--models", type=Path, default=Path("build/left_out"))
    parser.add_argument("--donors", nargs="+", default=DONORS)
    parser.add_argument("--curves", nargs="*", default=CURVES)
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation"))
    parser.add_argument("--figure", type=Path, default=Path("docs/_static/missingness.png"))
    arguments = parser.parse_args()
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    files = section_files(arguments.sections)
    for donor in arguments.donors:
        todo = [file for file in ("reliability.csv", "smoothers.csv") if not has(donor, arguments.out / file)]
        if donor in arguments.curves and not has(donor, arguments.out / "missingness.csv"):
            todo.append("missingness.csv")
        if not todo:
            continue
        model = model_without(donor, files, arguments.models)
        sections = {}
        for name, file in files.items():
            adata = ad.read_h5ad(file)
            if (adata.obs["donor"] == donor).all():
                sg.pp.neighborhood_graph(adata)
                sections[name] = adata
        for file in todo:
            append(MEASURES[file](donor, sections, model), arguments.out / file)
        print(donor, flush=True)
    curve = pd.read_csv(arguments.out / "missingness.csv")
    first = curve[(curve["donor"] == CURVES[0]) & (curve["mask_by"] == "slide")]
    shown = [name for name in dict.fromkeys(first["predictor"]) if name != "zeros"]
    sg.pl.missingness_curve(first, predictors=shown, show=False, save=arguments.figure)
    write_view(curve, arguments.out / "missingness_view.csv")
    write_donors(pd.read_csv(arguments.out / "reliability.csv"), arguments.out / "reliability_view.csv")
    write_smoothers(pd.read_csv(arguments.out / "smoothers.csv"), arguments.out / "smoothers_view.csv")
    for file in ("reliability_view.csv", "smoothers_view.csv", "smoothers.csv"):
        print(pd.read_csv(arguments.out / file).to_string())


def reliability(donor: str, sections: dict[str, ad.AnnData], model: sg.models.Model) -> pd.DataFrame:
    """Genes that the model predicts better than the neighbours, by section."""
    rows = []
    for name, adata in sections.items():
        sg.tl.impute(adata, None, model)
        table = adata.uns["sage_imputed"]["reliability"]
        tested = table.dropna(subset=["difference_pval"])
        row = {
            "donor": donor,
            "platform": str(adata.obs["platform"].iloc[0]),
            "section": name,
            "spots": adata.n_obs,
            "genes that vary": int(table["r"].notna().sum()),
        }
        row |= {"tested": len(tested), "r above the baseline's": int((tested["difference"] > 0).sum())}
        row["reliable"] = int(tested["reliable"].sum())
        row |= {"r, tested": tested["r"].mean(), "r of the baseline": tested["baseline_r"].mean()}
        row["r above 0.3"] = int((tested["r"] > 0.3).sum())
        rows.append(row)
    return pd.DataFrame(rows).round(3)


def smoothers(donor: str, sections: dict[str, ad.AnnData], model: sg.models.Model) -> pd.DataFrame:
    """The model beside what finds similar spots anywhere on the slide."""
    table = sg.benchmark.compare_imputation(sections.values(), model)[["rmse", "r_within", "r2_spot"]]
    return table.round(4).rename_axis("predictor").reset_index().assign(donor=donor)


def missingness(donor: str, sections: dict[str, ad.AnnData], model: sg.models.Model) -> pd.DataFrame:
    """The curve of missing genes, drawn in both ways."""
    curves = [
        sg.benchmark.missingness_curve(sections.values(), model, mask_by=mask_by).assign(donor=donor, mask_by=mask_by)
        for mask_by in ("slide", "spot")
    ]
    return pd.concat(curves).round(4)


MEASURES = {"reliability.csv": reliability, "smoothers.csv": smoothers, "missingness.csv": missingness}


def has(donor: str, file: Path) -> bool:
    """Whether a table holds a donor."""
    return file.exists() and donor in set(pd.read_csv(file)["donor"])


def write_donors(table: pd.DataFrame, file: Path) -> None:
    """Shares of the genes by donor, as the docs show them."""
    grouped = table.groupby(["donor", "platform"], sort=False)
    view = pd.DataFrame({"sections": grouped.size(), "spots a section": grouped["spots"].mean().round(0).astype(int)})
    total = grouped[["tested", "r above the baseline's", "reliable"]].sum()
    view["genes tested a section"] = (total["tested"] / view["sections"]).round(0).astype(int)
    for column in ("r above the baseline's", "reliable"):
        view[column] = (total[column] / total["tested"]).map("{:.1%}".format)
    view[["r", "r of the baseline"]] = grouped[["r, tested", "r of the baseline"]].mean().round(2)
    view.to_csv(file)


def write_smoothers(table: pd.DataFrame, file: Path) -> None:
    """RMSE and r of the model and of what comes near, as the docs show them."""
    shown = {
        "mini": "mini",
        "depth-scaled neighbor mean": "neighbours",
        "depth-scaled kNN in PCA": "kNN in PCA",
        "diffusion": "diffusion",
        "depth-scaled diffusion": "diffusion, depth-scaled",
    }
    parts = []
    for metric, name in (("rmse", "RMSE"), ("r_within", "r")):
        part = table.pivot(index="donor", columns="predictor", values=metric)[list(shown)]
        parts.append(part.rename(columns=lambda column, name=name: f"{name}, {shown[column]}").round(3))
    pd.concat(parts, axis=1).loc[list(dict.fromkeys(table["donor"]))].to_csv(file)


def write_view(curve: pd.DataFrame, file: Path) -> None:
    """Mean R² of a spot and mean r of a gene as the docs show them."""
    shown = curve[curve["predictor"].isin(["mini", "neighbor mean", "depth-scaled neighbor mean"])]
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
