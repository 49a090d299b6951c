"""Calibrate sagefm-mini, and try its trust card, priors and intervals on donors that a model hasn't seen.

    python evaluation/trust.py SECTIONS_DIR [--out docs/evaluation] [--write]

The models are those of ``left_out.py``: every donor is unknown to one of them. With ``--write`` the shipped model is
calibrated on all donors and written; nothing else happens. Without it every donor in turn is taken for the new slide:
its model is calibrated on the other donors alone. Tables: ``intervals.csv`` (coverage and width), ``prior.csv``
(expected against actual correlation of absent genes), ``assessment.csv`` (verdicts beside what the model is worth
there), ``cards.csv`` (verdicts on six sections, those of training by the model that doesn't know them).

Parts are kept in build/measured by the digest of their model: delete them when the code that measures has changed.
"""

import argparse
import hashlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import anndata as ad
import numpy as np
import pandas as pd
from left_out import BUILD, DONORS, LEFT_OUT, PARTS, donor_sections, in_two_processes, model_without, training_corpus
from train_models import record_digest

import sagefm as sg
from sagefm.train._calibrate import combine
from sagefm.train._left_out import LeftOut, measure

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "src/sagefm/models/weights/sagefm-mini.safetensors"
FIGURE, SHOWN = ROOT / "docs/_static/assessment.png", "CRC_16"
CARDS = (
    "her2st_G2",
    "CRC_16",
    "PDAC_A_ST1_legacy",
    "stMCCC_ccRCC_500spots",
    "DLPFC_Br8325_ant_5000g",
    "HCC1_2000g",
)
N_GENES, FREQUENT, RARE = 400, 0.3, 0.1
LEVELS = (0.8, 0.9, 0.95)
BASELINES = ["depth alone", "depth-scaled neighbor mean", "depth-scaled diffusion"]
N_SECTIONS = 3  # of a donor
FIGURES = {"depth": ".0f", "distance": ".2f", "RMSE ratio": ".3f", "r beyond depth": ".2f", "best baseline": ".2f"}
FIGURES |= {"attainable": ".2f"}


def main() -> None:
    """Measure, combine, and try."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation"))
    parser.add_argument("--write", action="store_true", help="write the calibration into the shipped model")
    arguments = parser.parse_args()
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    corpus = training_corpus(arguments.sections)
    for part in PARTS:
        model_without(part[0], arguments.sections)  # before two processes want it
    parts = in_two_processes(measured_on, [(donor, arguments.sections) for donor in DONORS])
    measured = dict(zip(DONORS, parts, strict=True))
    shipped = sg.models.load(WEIGHTS)
    trained = shipped.card["training"]["groups"]
    shipped = replace(shipped, calibration=combine(corpus, list(measured.values()), groups=trained))
    if arguments.write:
        shipped.save(WEIGHTS, half=True)
        record_digest(WEIGHTS)
        return
    unseen = in_two_processes(calibrated_without, [(donor, arguments.sections) for donor in DONORS])
    tasks = [
        (donor, file, arguments.sections / f"{name}.h5ad")
        for donor, file in zip(DONORS, unseen, strict=True)
        for name in list(donor_sections(donor, arguments.sections))[:N_SECTIONS]
    ]
    verdicts, intervals, priors = [], [], []
    for (donor, _, file), (verdict, found, prior) in zip(tasks, in_two_processes(tried_on, tasks), strict=True):
        row = {"donor": donor, "section": file.stem}
        verdicts.append(row | verdict)
        intervals += [row | part for part in found]
        priors.append(row | prior)
        print(donor, file.stem, flush=True)
    prior_agreement(measured).to_csv(arguments.out / "prior_given_depth.csv", index=False)
    table = pd.DataFrame(intervals)
    by_donor = table.groupby(["donor", "source", "level"], sort=False).mean(numeric_only=True).round(3).reset_index()
    by_donor.to_csv(arguments.out / "intervals.csv", index=False)
    pd.DataFrame(priors).groupby("donor", sort=False).mean(numeric_only=True).round(3).to_csv(
        arguments.out / "prior.csv"
    )
    pd.DataFrame(verdicts).to_csv(arguments.out / "assessment.csv", index=False)
    write_views(arguments.out)
    cards = [card(arguments.sections / f"{name}.h5ad", shipped) for name in CARDS]
    pd.DataFrame(cards).to_csv(arguments.out / "cards.csv", index=False)
    for file in ("intervals_view.csv", "prior.csv", "assessment_view.csv", "cards.csv"):
        print(pd.read_csv(arguments.out / file).to_string())


def kept(name: str, model: Path, make: Callable[[], T]) -> T:
    """What a model came to before, or now: the whole takes more than an hour, so an interrupted run goes on."""
    file = BUILD / "measured" / f"{name}_{hashlib.sha256(model.read_bytes()).hexdigest()[:12]}.pickle"
    if not file.exists():
        found = make()
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(pickle.dumps(found))
    return pickle.loads(file.read_bytes())  # noqa: S301 - our own


def measured_on(task: tuple[str, Path]) -> LeftOut:
    """What a donor shows of the model that doesn't know it."""
    donor, sections = task
    model = model_without(donor, sections)
    return kept(donor, LEFT_OUT / f"{donor}.safetensors", lambda: measure(model, training_corpus(sections), donor))


def calibrated_without(task: tuple[str, Path]) -> Path:
    """The model that doesn't know a donor, with a calibration that doesn't either."""
    donor, sections = task
    corpus = training_corpus(sections)
    others = [measured_on((name, sections)) for name in DONORS if name != donor]
    groups = [str(group) for group in corpus.sections["group"].unique() if group != donor]
    calibration = kept(
        f"without_{donor}", LEFT_OUT / f"{donor}.safetensors", lambda: combine(corpus, others, groups=groups)
    )
    file = BUILD / "measured" / f"{donor}.safetensors"
    return replace(model_without(donor, sections), calibration=calibration).save(file)


def tried_on(task: tuple[str, Path, Path]) -> tuple[dict[str, object], list[dict[str, object]], dict[str, float]]:
    """Verdict, intervals and priors on a section."""
    _, model, file = task

    def trying() -> tuple[dict[str, object], list[dict[str, object]], dict[str, float]]:
        adata, loaded = ad.read_h5ad(file), sg.models.load(model)
        sg.pp.neighborhood_graph(adata)
        return assessed(adata, loaded), *tried(adata, loaded)

    return kept(f"tried_{file.stem}", model, trying)


def assessed(adata: ad.AnnData, model: sg.models.Model) -> dict[str, object]:
    """Verdict of the card, which tries a third of the genes, beside what all of them come to."""
    sg.pp.assess(adata, model)
    found = adata.uns["sage_assessment"]
    worst = found["checks"][found["checks"]["verdict"] == found["verdict"]].index
    table = sg.benchmark.compare_imputation(adata, model)
    own, others = table.loc[model.name], table.loc[BASELINES]
    return {
        "verdict": found["verdict"],
        "because of": "" if found["verdict"] == "fine" else ", ".join(worst),
        "depth": round(found["checks"].loc["depth", "value"]),
        "distance": round(found["checks"].loc["expression", "value"], 2),
        "ahead": bool(own["rmse"] < others["rmse"].min() and own["r_beyond_depth"] > others["r_beyond_depth"].max()),
        "RMSE ratio": round(own["rmse"] / others["rmse"].min(), 3),
        "r beyond depth": round(own["r_beyond_depth"], 3),
        "best baseline": round(others["r_beyond_depth"].max(), 3),
        "depth alone": round(others.loc["depth alone", "r_beyond_depth"], 3),
        "attainable": round(own["attainable_r"], 3),
    }


def tried(adata: ad.AnnData, model: sg.models.Model) -> tuple[list[dict[str, object]], dict[str, float]]:
    """Coverage and width of the intervals of some genes, measured and taken away; their prior beside the outcome."""
    sg.pp.align_genes(adata, model)
    known = np.flatnonzero((adata.var["sage_gene"] >= 0) & (np.asarray((adata.X > 0).sum(axis=0)).ravel() > 0))
    # Genes of one column each.
    known = known[~adata.var["sage_gene"].iloc[known].duplicated(keep=False).to_numpy()]
    picked = np.random.default_rng(0).permutation(known)[:N_GENES]
    genes = adata.var_names[picked].tolist()
    symbols = [model.vocabulary.symbols[gene] for gene in adata.var["sage_gene"].iloc[picked]]
    truth = pd.DataFrame(np.log1p(adata.X[:, picked].toarray()), columns=symbols)
    without = adata[:, np.setdiff1d(np.arange(adata.n_vars), picked)].copy()
    rows: list[dict[str, object]] = []
    for level in LEVELS:
        for source, slide, reliability in (("slide", adata, False), ("left-out donors", without, True)):
            sg.tl.impute(slide, genes, model, intervals=level, reliability=reliability)
            lower, upper = slide.obsm["sage_imputed_lower"], slide.obsm["sage_imputed_upper"]
            shown = truth[lower.columns].to_numpy()
            has = np.isfinite(lower.to_numpy()).all(axis=0)
            above, below = shown >= lower.to_numpy() - 1e-4, shown <= upper.to_numpy() + 1e-4
            inside = (above & below)[:, has].mean(axis=0)
            seen = (shown[:, has] > 0).mean(axis=0)
            often, seldom = seen > FREQUENT, (seen > RARE) & (seen <= FREQUENT)
            rows.append(
                {
                    "source": source,
                    "level": level,
                    "coverage": inside.mean(),
                    "coverage, frequent genes": inside[often].mean() if often.any() else np.nan,
                    "coverage, genes in 10 to 30 %": inside[seldom].mean() if seldom.any() else np.nan,
                    "width": (upper - lower).to_numpy()[:, has].mean(),
                    "width, frequent genes": (upper - lower).to_numpy()[:, has][:, often].mean(),
                    "widened": slide.uns["sage_imputed"]["intervals"]["widened"].iloc[0],
                    "trusted": slide.uns["sage_imputed"]["intervals"]["trusted"].mean(),
                    "genes": has.sum(),
                }
            )
    prior, predicted = without.uns["sage_imputed"]["prior"], without.obsm["sage_imputed"]
    actual = pd.Series({gene: np.corrcoef(truth[gene], predicted[gene])[0, 1] for gene in prior.index})
    both = pd.DataFrame({"prior": prior["r"], "actual": actual}).dropna()
    error = (both["prior"] - both["actual"]).abs().mean()
    flat = (both["prior"].mean() - both["actual"]).abs().mean()
    return rows, {
        "genes": len(both),
        "prior r": both["prior"].mean(),
        "actual r": both["actual"].mean(),
        "correlation over genes": both["prior"].corr(both["actual"]),
        "mean error": error,
        "mean error, one prior for all": flat,
    }


def prior_agreement(measured: dict[str, LeftOut]) -> pd.DataFrame:
    """Mean r of each donor's hidden genes, with depth and beyond it, and how the other donors' mean agrees with it."""
    rows: dict[str, dict[str, float]] = {donor: {} for donor in measured}
    for name in ("r", "r_beyond_depth"):
        found = pd.DataFrame({donor: getattr(part, name)[0] for donor, part in measured.items()})
        for donor, row in rows.items():
            prior = found.drop(columns=donor).mean(axis=1)
            known = found[donor].notna() & prior.notna()
            row[name] = found.loc[known, donor].mean()
            row[f"{name}, correlation with the prior"] = found.loc[known, donor].corr(prior[known])
    return pd.DataFrame.from_dict(rows, "index").rename_axis("donor").reset_index().round(3)


def write_views(out: Path) -> None:
    """Intervals and verdicts by donor, as the docs show them."""
    table = pd.read_csv(out / "intervals.csv")
    index = ["donor", "source"]
    parts = [
        table.pivot(index=index, columns="level", values=values)
        .rename(columns=lambda level, name=name: f"{name} {level:.0%}")
        .map(form.format)
        for values, name, form in (
            ("coverage", "covered at", "{:.1%}"),
            ("coverage, frequent genes", "frequent genes at", "{:.1%}"),
            ("coverage, genes in 10 to 30 %", "10 to 30 % at", "{:.1%}"),
            ("width", "width at", "{:.2f}"),
        )
    ]
    order = pd.MultiIndex.from_frame(table[index].drop_duplicates())
    pd.concat(parts, axis=1).drop(columns=["width at 80%", "width at 95%"]).loc[order].to_csv(
        out / "intervals_view.csv"
    )
    table = pd.read_csv(out / "assessment.csv", keep_default_na=False)
    rows = {}
    for donor, part in table.groupby("donor", sort=False):
        counts = part["verdict"].value_counts()
        rows[donor] = {
            "sections": len(part),
            "ahead on": int(part["ahead"].sum()),
            "verdict": ", ".join(f"{n} {verdict}" if len(part) > 1 else verdict for verdict, n in counts.items()),
            "because of": ", ".join(sorted(set(", ".join(part["because of"]).split(", ")) - {""})),
            **{name: f"{part[name].mean():{form}}" for name, form in FIGURES.items()},
        }
    pd.DataFrame.from_dict(rows, orient="index").rename_axis("donor").to_csv(out / "assessment_view.csv")


def card(file: Path, shipped: sg.models.Model) -> dict[str, object]:
    """Verdict on a section by the shipped model, or by the one that doesn't know it."""
    adata = ad.read_h5ad(file)
    donor = str(adata.obs["donor"].iloc[0])
    if donor in DONORS:
        shipped = sg.models.load(BUILD / "measured" / f"{donor}.safetensors")
    sg.pp.neighborhood_graph(adata)
    sg.pp.assess(adata, shipped)
    if file.stem == SHOWN:
        sg.pl.assessment(adata, show=False, save=FIGURE)
    found = adata.uns["sage_assessment"]
    print(f"\n{file.stem}\n{found['text']}")
    checks = found["checks"]
    return {"section": file.stem, "verdict": found["verdict"], **checks["verdict"].to_dict()}


if __name__ == "__main__":
    main()
