"""How far imputed genes can be trusted on donors that a model hasn't seen.

    python scripts/imputation.py SECTIONS_DIR [--donors her2st_G ...] [--out docs/evaluation]

For every donor the recipe of sagefm-mini is trained without it (3 minutes on 2 CPU cores). On the donor's sections
``reliability.csv`` counts the genes that sg.tl.impute calls reliable, and ``missingness.csv`` holds the curve of
missing genes; ``docs/_static/missingness.png`` shows the first donor's. Donors that are there already are kept.
"""

import argparse
import tempfile
from pathlib import Path

import anndata as ad
import pandas as pd
from ablation import DONORS, EXCLUDED, LEFT_OUT

import sagefm as sg


def main() -> None:
    """Train without each donor and measure on it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--donors", nargs="+", default=[LEFT_OUT, *DONORS])
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation"))
    parser.add_argument("--figure", type=Path, default=Path("docs/_static/missingness.png"))
    arguments = parser.parse_args()
    sg.settings.verbosity, sg.settings.progress_bars = "warning", False
    files = {p.stem: p for p in sorted(arguments.sections.glob("*.h5ad")) if p.stem not in EXCLUDED}
    for donor in arguments.donors:
        if (arguments.out / "reliability.csv").exists():
            if donor in set(pd.read_csv(arguments.out / "reliability.csv")["donor"]):
                continue
        with tempfile.TemporaryDirectory() as folder:
            corpus = sg.train.prepare_corpus(files, Path(folder) / "corpus.zarr", split={donor: "validate"})
            model = sg.train.pretrain(
                corpus,
                sg.train.PRESETS["mini"],
                out=Path(folder) / "mini.safetensors",
                run_dir=Path(folder) / "run",
                accelerator="cpu",
            )
            sections = {}
            for name in corpus.names("validate"):
                sections[name] = ad.read_h5ad(files[name])
                sg.pp.neighborhood_graph(sections[name])
        rows = []
        for name, adata in sections.items():
            sg.tl.impute(adata, None, model)
            table = adata.uns["sage_imputed"]["reliability"]
            tested = table.dropna(subset=["difference_pval"])
            row = {
                "donor": donor,
                "section": name,
                "spots": adata.n_obs,
                "genes that vary": int(table["r"].notna().sum()),
            }
            row |= {"tested": len(tested), "reliable": int(tested["reliable"].sum())}
            row |= {"r, tested": tested["r"].mean(), "r of the baseline": tested["baseline_r"].mean()}
            row["r above 0.3"] = int((tested["r"] > 0.3).sum())
            rows.append(row)
        append(pd.DataFrame(rows).round(3), arguments.out / "reliability.csv")
        curves = [
            sg.benchmark.missingness_curve(sections.values(), model, mask_by=mask_by).assign(
                donor=donor, mask_by=mask_by
            )
            for mask_by in ("slide", "spot")
        ]
        append(pd.concat(curves).round(4), arguments.out / "missingness.csv")
    curve = pd.read_csv(arguments.out / "missingness.csv")
    first = curve[(curve["donor"] == arguments.donors[0]) & (curve["mask_by"] == "slide")]
    shown = [name for name in dict.fromkeys(first["predictor"]) if name != "zeros"]
    sg.pl.missingness_curve(first, predictors=shown, save=arguments.figure)
    write_view(curve, arguments.out / "missingness_view.csv")
    print(pd.read_csv(arguments.out / "reliability.csv").to_string())
    print(curve[curve["task"] == "center"].drop_duplicates(["donor", "mask_by", "predictor"]).to_string())


def write_view(curve: pd.DataFrame, file: Path) -> None:
    """Mean R² of a spot and mean r of a gene as the docs show them."""
    shown = curve[curve["predictor"].isin(["mini", "neighbour mean", "depth-scaled neighbour mean"])]
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
