"""How far the verdicts of perturb_lr can be trusted, and the paper's pairs on real sections.

    python evaluation/perturbation.py null [--section FILE.h5ad] [--runs 100] [--pairs PAIRS.csv]
    python evaluation/perturbation.py planted [--out docs/evaluation]
    python evaluation/perturbation.py paper SECTION.h5ad ... [--out docs/evaluation]

``null`` runs perturb_lr with sagefm-mini on pairs that mean nothing: random genes, or, with ``--pairs``, those of a
database with every receptor replaced by a random gene, so that some ligands and receptors are in many pairs. It
prints how many p-values lie below 0.05, and in how many runs anything is left after adjustment. ``planted`` trains a
model on simulated slides with planted effects and looks for them on another one. ``paper`` writes the table of the
paper's 34 pairs.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import sagefm as sg
from sagefm.datasets import _simulated
from sagefm.models._vocabulary import hest1k

SIZES = (0.4, -0.4, 0.2, -0.2, 0.1, -0.1, 0.05, -0.05)
N_LIGANDS, N_NULL = 6, 12


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    null = commands.add_parser("null")
    null.add_argument("--section", type=Path, help="section to use; by default a simulated slide")
    null.add_argument("--pairs", type=Path, help="database whose receptors are replaced, CSV")
    null.add_argument("--n-pairs", type=int, default=300)
    null.add_argument("--runs", type=int, default=100)
    null.set_defaults(run=run_null)
    planted = commands.add_parser("planted")
    planted.add_argument("--out", type=Path, default=Path("docs/evaluation"))
    planted.set_defaults(run=run_planted)
    paper = commands.add_parser("paper")
    paper.add_argument("sections", type=Path, nargs="+")
    paper.add_argument("--out", type=Path, default=Path("docs/evaluation"))
    paper.set_defaults(run=run_paper)
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    arguments = parser.parse_args()
    arguments.run(arguments)


def run_null(arguments: argparse.Namespace) -> None:
    """Pairs without meaning."""
    adata = ad.read_h5ad(arguments.section) if arguments.section else sg.datasets.simulated_visium(25, 25)
    sg.pp.neighborhood_graph(adata)
    sg.pp.align_genes(adata)
    detected = np.asarray((adata.X > 0).mean(axis=0)).ravel() > 0.02
    genes = adata.var_names[detected & (adata.var["sage_gene"] >= 0)].to_numpy()
    database = None
    if arguments.pairs:
        database = pd.read_csv(arguments.pairs)
        database = database[database["ligand"].isin(genes) & database["receptor"].isin(genes)]
    shares, kept = [], []
    for seed in range(arguments.runs):
        rng = np.random.default_rng(seed)
        if database is None:
            ligands, receptors = rng.choice(genes, (2, arguments.n_pairs))
        else:
            some = database.sample(min(arguments.n_pairs, len(database)), random_state=seed)
            names = some["receptor"].unique()
            others = np.setdiff1d(genes, some["ligand"])
            receptor_of = dict(zip(names, rng.choice(others, len(names), replace=False), strict=True))
            ligands, receptors = some["ligand"], some["receptor"].map(receptor_of)
        pairs = [(ligand, receptor) for ligand, receptor in zip(ligands, receptors, strict=True) if ligand != receptor]
        sg.tl.perturb_lr(adata, pairs, "sagefm-mini", control_spots=300)
        results = adata.uns["perturb_lr"]["results"]
        tested = results["pval"].dropna()
        shares.append((tested < 0.05).mean())
        kept.append(int((results["padj"] < 0.05).sum()))
    name = arguments.section.stem if arguments.section else "simulated slide"
    kind = "random genes" if database is None else f"{arguments.pairs.stem}, receptors replaced"
    print(
        f"{name}, {kind}, {arguments.runs} runs of about {len(tested)} pairs: p < 0.05 in {np.mean(shares):.1%} "
        f"(runs from {min(shares):.1%} to {max(shares):.1%}); something left after adjustment in "
        f"{np.mean(np.array(kept) > 0):.0%} of the runs ({sum(kept)} pairs in all)"
    )


def run_planted(arguments: argparse.Namespace) -> None:
    """Train on slides with planted effects, and look for them on another slide.

    The model has to learn the effects before any can be found, in minutes: so one ligand acts on several receptors, and
    most other genes of the slides are rare. Receptors without an effect and the genes to match are as abundant as those
    with one.
    """
    rng = np.random.default_rng(0)
    vocabulary, share = hest1k(), _simulated._log_shares()
    markers = [gene for genes in _simulated.MARKERS.values() for gene in genes]
    symbols = np.array(vocabulary.symbols)
    abundant = rng.permutation(symbols[(share > -9.3) & (share < -6.5) & ~np.isin(symbols, markers)])
    receptors = iter(abundant[N_LIGANDS:])
    effects = np.array([*SIZES, *np.zeros(N_NULL)])
    planted = [
        (str(ligand), str(next(receptors)), float(effect)) for ligand in abundant[:N_LIGANDS] for effect in effects
    ]
    pairs = [(ligand, receptor) for ligand, receptor, _ in planted]
    rare = symbols[np.argsort(share)[:4_000]]
    kept = {*rare, *markers, *abundant[: N_LIGANDS * (1 + len(effects)) + 500]}
    slides = {}
    for i in range(8):
        slide = sg.datasets.simulated_visium(40, 40, n_genes=len(symbols), depth=20_000, interactions=planted, rng=i)
        slides[f"slide{i}"] = slide[:, slide.var_names.isin(kept)].copy()
        slides[f"slide{i}"].obs["donor"] = f"slide{i}"
    slide = slides.pop("slide7")
    recipe = replace(sg.train.PRESETS["mini"], niche_weight=0.0, dropout=0.0, max_epochs=40)
    with tempfile.TemporaryDirectory() as folder:
        corpus = sg.train.prepare_corpus(
            slides, Path(folder) / "corpus.zarr", split={"slide6": "validate"}, min_coverage=0.3
        )
        trained = sg.train.pretrain(
            corpus, recipe, out=Path(folder) / "planted.safetensors", run_dir=Path(folder) / "run", accelerator="cpu"
        )
    print(pd.DataFrame(trained.card["validation"]["metrics"]).T)
    sg.pp.neighborhood_graph(slide)
    rows = []
    for name, model in (("trained on them", trained), ("sagefm-mini", "sagefm-mini")):
        sg.tl.perturb_lr(slide, pairs, model)
        results = slide.uns["perturb_lr"]["results"].assign(planted=[effect for *_, effect in planted])
        results["found"] = results["verdict"] == "responds"
        results["sign"] = np.sign(results["effect"]) == np.sign(results["planted"])
        for size, part in results.groupby(results["planted"].abs(), sort=False):
            row = {"model": name, "planted effect": f"±{size:g}" if size else "none", "pairs": len(part)}
            row |= {"respond": int(part["found"].sum()), "with the right sign": "", "E has the right sign": ""}
            if size:
                row["with the right sign"] = int((part["found"] & part["sign"]).sum())
                row["E has the right sign"] = int(part["sign"].sum())
            row["E beyond ±0.9"] = int((part["effect"].abs() > 0.9).sum())
            row["reference r"] = round(float((part["reference_r"] * np.sign(part["planted"] + 1e-9)).mean()), 2)
            rows.append(row)
    table = pd.DataFrame(rows).set_index("model")
    print(table.to_string())
    table.to_csv(arguments.out / "planted.csv")


def run_paper(arguments: argparse.Namespace) -> None:
    """The paper's pairs on real sections: a full table, and a narrow one for the docs."""
    digits = {"effect": 3, "mean_delta": 5, "reference_r": 3, "zscore": 2, "pval": 4, "padj": 3}
    columns = ["status", "n_up", "n_down", "n_same", "effect", "mean_delta", "reference_r", "concordant"]
    columns += ["zscore", "pval", "padj", "verdict"]
    parts, narrow = [], {}
    for file in arguments.sections:
        adata = ad.read_h5ad(file)
        sg.pp.neighborhood_graph(adata)
        sg.tl.perturb_lr(adata, "paper", "sagefm-mini")
        results = adata.uns["perturb_lr"]["results"][columns].round(digits)
        parts.append(results.rename_axis("pair").reset_index().assign(section=file.stem))
        ok = results["status"] == "ok"
        shown = {
            "E": results["effect"].map("{:.2f}".format).where(ok, results["status"].str.replace("_", " ")),
            "r": results["reference_r"].map("{:.2f}".format).where(results["reference_r"].notna(), ""),
            "z": results["zscore"].map("{:.1f}".format).where(results["pval"].notna(), ""),
            "p": results["pval"].map("{:.2f}".format).where(results["pval"].notna(), ""),
        }
        narrow |= {f"{file.stem} {name}": values for name, values in shown.items()}
        print(file.stem, results["verdict"].value_counts().to_dict(), "adjusted p from", results["padj"].min())
        tested = results[results["pval"].notna()]
        print(
            f"E has the sign of r in {tested['concordant'].sum()} of {tested['concordant'].notna().sum()} tested pairs"
        )
    table = pd.concat(parts).set_index(["section", "pair"])
    table.to_csv(arguments.out / "paper_pairs.csv")
    pairs = sg.datasets.paper_interactions()
    view = pd.DataFrame(narrow)
    real = dict(zip(pairs["ligand"] + "|" + pairs["receptor"], pairs["is_ligand_receptor"], strict=True))
    view.index = [name.replace("|", " → ") + ("" if real[name] else " *") for name in view.index]
    view.rename_axis("pair").to_csv(arguments.out / "paper_pairs_view.csv")
    print(view.to_string())


if __name__ == "__main__":
    main()
