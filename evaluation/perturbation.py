"""How far the verdicts of perturb_lr can be trusted, and the paper's pairs on real sections.

    python evaluation/perturbation.py pairs PAIRS.csv SECTION.h5ad ... [--runs 4] [--out docs/evaluation]
    python evaluation/perturbation.py targets SECTION.h5ad ... [--runs 20] [--out docs/evaluation]
    python evaluation/perturbation.py context SECTION.h5ad
    python evaluation/perturbation.py planted [--out docs/evaluation]
    python evaluation/perturbation.py paper SECTION.h5ad ... [--out docs/evaluation]

``pairs`` runs perturb_lr with sagefm-mini on a database; on its ligands and receptors paired wrongly, so that each
keeps its number of partners and no known pair is left; and on random genes. It writes how many p-values lie below 0.05,
in how many calls anything responds, and whether true pairs are ahead of the same genes in other pairs. ``targets`` runs
perturb_targets on random genes in the place of the targets, and on the textbooks'. ``context`` compares E with that of
a pass that computes depth anew under the clamp. ``planted`` trains a model on
simulated slides with planted effects and looks for them on another one. ``paper`` writes the table of the paper's 34
pairs.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch

import sagefm as sg
from sagefm.datasets import _simulated
from sagefm.models._vocabulary import hest1k

SIZES = (0.4, -0.4, 0.2, -0.2, 0.1, -0.1, 0.05, -0.05)
N_LIGANDS, N_NULL, N_CONTEXT = 6, 12, 60


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    pairs = commands.add_parser("pairs")
    pairs.add_argument("pairs", type=Path)
    pairs.add_argument("sections", type=Path, nargs="+")
    pairs.add_argument("--n-pairs", type=int, default=300)
    pairs.add_argument("--runs", type=int, default=4)
    pairs.add_argument("--out", type=Path, default=Path("docs/evaluation"))
    pairs.set_defaults(run=run_pairs)
    targets = commands.add_parser("targets")
    targets.add_argument("sections", type=Path, nargs="+")
    targets.add_argument("--runs", type=int, default=20)
    targets.add_argument("--out", type=Path, default=Path("docs/evaluation"))
    targets.set_defaults(run=run_targets)
    context = commands.add_parser("context")
    context.add_argument("section", type=Path)
    context.set_defaults(run=run_context)
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


def read_section(file: Path) -> tuple[ad.AnnData, np.ndarray]:
    """A section with its graph, and the genes that over 2 % of its spots show."""
    adata = ad.read_h5ad(file)
    sg.pp.neighborhood_graph(adata)
    sg.pp.align_genes(adata)
    detected = np.asarray((adata.X > 0).mean(axis=0)).ravel() > 0.02
    return adata, adata.var_names[detected & (adata.var["sage_gene"] >= 0)].to_numpy()


def run_pairs(arguments: argparse.Namespace) -> None:
    """Pairs of a database, the same genes paired wrongly, and random genes."""
    database = pd.read_csv(arguments.pairs)
    known = set(database.itertuples(index=False, name=None))
    rows = []
    for file in arguments.sections:
        adata, genes = read_section(file)
        here = [all(gene in adata.var_names for gene in "_".join(pair).split("_")) for pair in database.to_numpy()]
        for seed in range(arguments.runs):
            rng, true = np.random.default_rng(seed), database[here].sample(arguments.n_pairs, random_state=seed)
            tried = {
                "true": true,
                "mis-paired": mispair(true, known, rng),
                "random genes": pd.DataFrame(rng.choice(genes, (arguments.n_pairs, 2)), columns=["ligand", "receptor"]),
            }
            for kind, pairs in tried.items():
                sg.tl.perturb_lr(adata, pairs.drop_duplicates(), "sagefm-mini")
                found = adata.uns["perturb_lr"]
                tested = found["results"].dropna(subset="pval")
                rows.append(
                    {
                        "section": file.stem,
                        "pairs": kind,
                        "tested": len(tested),
                        "p < 0.05": (tested["pval"] < 0.05).mean(),
                        "of the receptor": (tested["receptor_pval"] < 0.05).mean(),
                        "of the ligand": (tested["ligand_pval"] < 0.05).mean(),
                        "respond": int((tested["padj"] < 0.05).sum()),
                        "calls with a response": int((tested["padj"] < 0.05).any()),
                        "AUC": found["pairing"]["auc"],
                        "its p": found["pairing"]["pval"],
                    }
                )
        print(file.stem, flush=True)
    table = pd.DataFrame(rows)
    sums = {name: "sum" if name in ("respond", "calls with a response") else "mean" for name in table.columns[2:]}
    by_section = table.groupby(["section", "pairs"], sort=False).agg(sums)
    by_section["AUC"] = by_section["AUC"].where(by_section.index.get_level_values("pairs") == "true")
    by_section["its p"] = by_section["its p"].where(by_section["AUC"].notna())
    by_section = by_section.astype({"tested": int}).round(3)
    print(by_section.to_string())
    print(
        table.groupby("pairs").agg(sums).round(3).to_string(), f"{arguments.runs * len(arguments.sections)} calls each"
    )
    by_section.to_csv(arguments.out / "pairs.csv")


def mispair(pairs: pd.DataFrame, known: set[tuple[str, str]], rng: np.random.Generator) -> pd.DataFrame:
    """Receptors exchanged until no pair is known; what can't be exchanged is left out."""
    ligands, receptors = pairs["ligand"].to_numpy(), rng.permutation(pairs["receptor"].to_numpy())
    for _ in range(200):
        bad = [i for i, pair in enumerate(zip(ligands, receptors, strict=True)) if pair in known or pair[0] == pair[1]]
        for i in bad:
            j = rng.integers(len(receptors))
            receptors[[i, j]] = receptors[[j, i]]
    keep = [pair not in known and pair[0] != pair[1] for pair in zip(ligands, receptors, strict=True)]
    return pd.DataFrame({"ligand": ligands, "receptor": receptors})[keep]


def run_targets(arguments: argparse.Namespace) -> None:
    """Random genes in the place of the textbooks' targets, and these."""
    textbook = sg.datasets.textbook_targets()
    parts = []
    for file in arguments.sections:
        adata, genes = read_section(file)
        table = textbook[textbook["gene"].isin(adata.var_names) & textbook["target"].isin(genes)]
        for seed in range(arguments.runs + 1):
            rng, used = np.random.default_rng(seed), table[["gene", "target"]].copy()
            if seed < arguments.runs:
                pool = np.setdiff1d(genes, textbook["gene"])
                used["target"] = rng.choice(pool, len(used), replace=False)
            sg.tl.perturb_targets(adata, used, "sagefm-mini")
            tests = adata.uns["perturb_targets"]["tests"].query("gene != 'all'").dropna(subset="pval")
            kind = "random genes" if seed < arguments.runs else "textbook"
            parts.append(tests.assign(section=file.stem, targets=kind))
    tests = pd.concat(parts)
    for name in ("target_pval", "gene_pval", "pval"):
        tests[f"{name} < 0.05"] = tests[name] < 0.05
    tests["padj < 0.05"] = tests["padj"] < 0.05
    columns = [name for name in tests.columns if "<" in name]
    found = tests.groupby(["section", "targets"], sort=False)[columns].mean().round(3)
    found.insert(0, "genes tested", tests.groupby(["section", "targets"], sort=False).size())
    print(found.to_string())
    print(tests.groupby("targets")[columns].mean().round(3).to_string())
    found.to_csv(arguments.out / "targets.csv")


@torch.inference_mode()
def run_context(arguments: argparse.Namespace) -> None:
    """E with the depth held fixed, as the tool has it, against E where depth is computed anew from clamped counts."""
    adata, genes = read_section(arguments.section)
    drawn = np.random.default_rng(0).choice(genes, (N_CONTEXT, 2), replace=False)
    model = sg.models.load("sagefm-mini")
    sg.tl.perturb_lr(adata, pd.DataFrame(drawn, columns=["ligand", "receptor"]), model, n_controls=0)
    fixed = adata.uns["perturb_lr"]["results"]["effect"].to_numpy()
    index = model.vocabulary.find(drawn.ravel().tolist()).reshape(-1, 2)
    columns = adata.var["sage_gene"].to_numpy()
    x = torch.zeros(adata.n_obs, len(model.vocabulary))
    x[:, columns[columns >= 0]] = torch.from_numpy(np.log1p(adata.X[:, columns >= 0].toarray()))
    graph = torch.from_numpy(adata.obsp["sage_connectivities"].toarray()).float()
    mask = torch.zeros(len(model.vocabulary), dtype=torch.bool)
    mask[index[:, 1]] = True
    canonical, around, degree = model.canonical(), graph @ x, graph.sum(1, keepdim=True)
    anew = []
    for ligand, receptor in index:
        ends = []
        for level in (x[:, ligand].min(), x[:, ligand].max()):
            clamped = around.clone()
            clamped[:, ligand] = level * degree[:, 0]
            found = canonical.forward_both(x.masked_fill(mask, 0), clamped, degree, mask.expand_as(x))[0]
            ends.append(found[:, receptor])
        change = ends[1] - ends[0]
        anew.append(float((change > 1e-8).float().mean() - (change < -1e-8).float().mean()))
    gap, signs = np.abs(fixed - anew), np.sign(fixed) != np.sign(anew)
    text = f"E differs by {gap.max():.2f} at most and {gap.mean():.3f} on average, {signs.sum()} of {len(gap)} signs"
    print(f"{arguments.section.stem}: {text}")


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
    recipe = replace(sg.train.PRESETS["mini"], niche_weight=0.0, dropout=0.0, max_epochs=120)
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
