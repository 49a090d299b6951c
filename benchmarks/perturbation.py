"""Speed of a whole database of ligand-receptor pairs at published size.

    python benchmarks/perturbation.py [PAIRS.csv] [--section FILE.h5ad] [--runs 3] [--n-controls 20]

PAIRS.csv has columns ligand and receptor; without it as many random pairs of genes as --n-pairs says. Each run times
three things in turn on the same slide and weights (random, of published size): ours, all pairs with their controls,
from counts in memory; the bare float32 products of the trunk, two levels of every ligand that the vocabulary has at
every spot; and the literal protocol, which edits the 15 x genes matrix of a spot and runs the network on a complete
graph, for one pair at some spots. Medians are in the line that is printed, and the process's peak memory after ours.
"""

import argparse
import resource
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from timing import in_turn, ratio, report

import sagefm as sg
from sagefm.models._vocabulary import hest1k

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import literal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path, nargs="?")
    parser.add_argument("--n-pairs", type=int, default=1000, help="where there is no file")
    parser.add_argument("--section", type=Path, help="section to use; by default a simulated slide of 2,000 spots")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--n-controls", type=int, default=20)
    parser.add_argument("--literal-spots", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    adata = ad.read_h5ad(args.section) if args.section else sg.datasets.simulated_visium(40, 50, n_genes=14_558)
    sg.pp.neighborhood_graph(adata)
    sg.pp.align_genes(adata)
    if args.pairs is None:
        known = adata.var_names[adata.var["sage_gene"] >= 0]
        drawn = np.random.default_rng(0).choice(known, (args.n_pairs, 2))
        pairs = pd.DataFrame(drawn, columns=["ligand", "receptor"]).drop_duplicates()
    else:
        pairs = pd.read_csv(args.pairs)
    torch.manual_seed(0)
    network = sg.models.GCN(14558).requires_grad_(False).eval()
    model = sg.models.Model("random, published size", network, hest1k())
    n = adata.n_obs

    def ours() -> None:
        sg.tl.perturb_lr(adata, pairs, model, n_controls=args.n_controls, device=args.device)

    ours()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    results = adata.uns["perturb_lr"]["results"]
    ok = results[results["status"] == "ok"]
    known = results[results["status"] != "not_in_model"]
    trunk = [layer.lin.weight.T.contiguous() for layer in (network.conv2, network.conv3, network.conv4, network.conv5)]
    hidden = torch.randn(n, trunk[0].shape[0])

    def bare() -> None:
        for _ in range(2 * known["ligand"].nunique()):
            h = hidden
            for weight in trunk:
                h = h @ weight

    dense = literal.dense_log1p(adata, hest1k().symbols, adata.var["sage_gene"].to_numpy())
    neighborhoods = literal.neighborhoods_of(adata.obsp["sage_connectivities"])[: args.literal_spots]
    ligand, receptor = (hest1k().find([ok.iloc[0][side].split("_")[0]])[0] for side in ("ligand", "receptor"))

    def published() -> None:
        for pick in (np.min, np.max):
            literal.perturbed(network, dense, neighborhoods, {ligand: pick(dense[:, ligand])}, np.array([receptor]))

    share = len(neighborhoods) / n  # every spot costs the same
    jobs = {"perturb": (ours, 1), "bare trunk products": (bare, 1), "literal, one pair": (published, share)}
    times = in_turn(jobs, args.runs)
    per_pair = {"perturb": [value / len(ok) for value in times["perturb"]], "literal": times["literal, one pair"]}
    report(
        "perturbation",
        section=args.section.stem if args.section else "simulated",
        spots=n,
        pairs=len(pairs),
        pairs_run=len(ok),
        ligands_run=int(ok["ligand"].nunique()),
        ligands_in_vocabulary=int(known["ligand"].nunique()),
        n_controls=args.n_controls,
        seconds={name: float(np.median(values)) for name, values in times.items()},
        of_bare_trunk_time=ratio(times, "perturb", "bare trunk products"),
        faster_than_literal_a_pair=ratio(per_pair, "literal", "perturb"),
        peak_of_ours_gb=peak,
    )


if __name__ == "__main__":
    main()
