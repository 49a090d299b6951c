"""Speed of embedding and imputation at published size, against the literal PyG pipeline and the bare matrix product.

    python benchmarks/inference.py [--section FILE.h5ad] [--runs 5]

Each run times everything in turn on the same slide and weights (random, of published size); medians of the times and
of the ratios are in the line that is printed. All pipelines start from counts in memory; the literal ones and ours
build their graph. The bare product is n x 14,558 x 1,024 in float32 on a dense matrix that lies ready. Imputation is
of all measured genes, each in one of four folds; the literal one runs the network once a fold.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from timing import in_turn, ratio, report

import sagefm as sg
from sagefm.models._vocabulary import hest1k

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import literal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", type=Path, help="section to embed; by default a simulated slide")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--literal-spots", type=int, default=256, help="spots that the literal pipelines run on")
    args = parser.parse_args()

    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    adata = ad.read_h5ad(args.section) if args.section else sg.datasets.simulated_visium(56, 56)
    torch.manual_seed(0)
    network = sg.models.GCN(14558).requires_grad_(False).eval()
    with tempfile.TemporaryDirectory() as folder:  # as a user gets it: from a file
        saved = sg.models.Model("random, published size", network, hest1k()).save(Path(folder) / "model.safetensors")
        model = sg.models.load(saved)
    mini = sg.models.load("sagefm-mini")
    symbols = hest1k().symbols
    n, n_literal = adata.n_obs, min(args.literal_spots, adata.n_obs)
    if "spatial" not in adata.obsm:
        adata.obsm["spatial"] = adata.obs[["array_col", "array_row"]].to_numpy(float)

    def fresh() -> ad.AnnData:
        slide = ad.AnnData(adata.X, obs=adata.obs, var=adata.var, obsm={"spatial": adata.obsm["spatial"]})
        sg.pp.neighborhood_graph(slide)
        sg.pp.align_genes(slide, model, min_coverage=0)
        return slide

    some = adata[:n_literal].copy()  # every spot costs the same, so some of them are enough
    dense = literal.dense_log1p(adata, symbols)
    matrix, weight = torch.from_numpy(dense), network.conv1.lin.weight.T.contiguous()
    masks = np.random.default_rng(0).permutation(14_558) % 4

    def published() -> list[list[int]]:
        literal.dense_log1p(some, symbols)
        return literal.nearest_spots(adata.obsm["spatial"])[:n_literal]

    def literal_imputation() -> None:
        neighborhoods = published()
        for fold in range(4):
            literal.run(network, dense, neighborhoods, what="predict", center_mask=masks == fold)

    def bare() -> None:
        for start in range(0, n, 1024):
            matrix[start : start + 1024] @ weight

    jobs = {
        "embed": (lambda: sg.tl.sage_embed(fresh(), model, device="cpu"), n),
        "embed, mini": (lambda: sg.tl.sage_embed(fresh(), mini, device="cpu"), n),
        "bare product": (bare, n),
        "literal embed": (lambda: literal.run(network, dense, published()), n_literal),
        "impute": (lambda: sg.tl.impute(fresh(), model=model, reliability=False, device="cpu"), n),
        "impute with reliability": (lambda: sg.tl.impute(fresh(), model=model, device="cpu"), n),
        "literal impute": (literal_imputation, n_literal),
    }
    for name in ("embed", "embed, mini", "impute with reliability"):
        jobs[name][0]()  # what happens once is charged to nobody
    times = in_turn(jobs, args.runs)
    report(
        "inference",
        section=args.section.stem if args.section else "simulated",
        spots=n,
        columns=adata.n_vars,
        nonzeros_a_spot=float(adata.X.nnz / n),
        milliseconds_a_spot={name: float(np.median(values)) * 1e3 for name, values in times.items()},
        embed_faster_than_literal=ratio(times, "literal embed", "embed"),
        embed_of_bare_product_speed=ratio(times, "bare product", "embed"),
        impute_faster_than_literal=ratio(times, "literal impute", "impute"),
    )


if __name__ == "__main__":
    main()
