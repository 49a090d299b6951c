"""Speed of embedding at published size, against the literal PyG pipeline and the bare matrix product.

    python benchmarks/embedding.py [--section FILE.h5ad] [--runs 5]

Each run times the three in turn on the same slide and weights (random, of published size); medians of the
times and of the ratios are printed. All pipelines start from counts in memory. The literal one and ours
build their graph. The bare product is n x 14,558 x 1,024 in float32 on a dense matrix that lies ready.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import torch

import sagefm as sg
from sagefm.models._vocabulary import hest1k

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import literal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", type=Path, help="section to embed; by default a simulated slide")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--literal-spots", type=int, default=384, help="spots that the literal pipeline embeds")
    args = parser.parse_args()

    sg.settings.verbosity = "error"
    sg.settings.progress_bars = False
    adata = ad.read_h5ad(args.section) if args.section else sg.datasets.simulated_visium(56, 56)
    torch.manual_seed(0)
    network = sg.models.GCN(14558).requires_grad_(False).eval()
    with tempfile.TemporaryDirectory() as folder:  # as a user gets it: from a file
        saved = sg.models.Model("random, published size", network, hest1k()).save(Path(folder) / "model.safetensors")
        model = sg.models.load(saved)
    symbols = hest1k().symbols
    n, n_literal = adata.n_obs, min(args.literal_spots, adata.n_obs)
    print(f"{n} spots, {adata.n_vars} columns, {torch.get_num_threads()} threads")

    def ours() -> None:
        slide = ad.AnnData(adata.X, obs=adata.obs, var=adata.var, obsm={"spatial": adata.obsm["spatial"]})
        sg.pp.neighborhood_graph(slide)
        sg.tl.sage_embed(slide, model, device="cpu")

    some = adata[:n_literal].copy()  # every spot costs the same, so some of them are enough

    def published() -> None:
        literal.dense_log1p(some, symbols)
        neighborhoods = literal.nearest_spots(adata.obsm["spatial"])[:n_literal]
        literal.run(network, dense, neighborhoods)

    dense = literal.dense_log1p(adata, symbols)
    matrix, weight = torch.from_numpy(dense), network.conv1.lin.weight.T.contiguous()

    def bare() -> None:
        for start in range(0, n, 1024):
            matrix[start : start + 1024] @ weight

    sg.tl.sage_embed  # noqa: B018 imports are not charged to anyone
    ours()
    times: dict[str, list[float]] = {"ours": [], "bare product": [], "literal PyG": []}
    for _ in range(args.runs):
        for name, job, spots in (
            ("ours", ours, n),
            ("bare product", bare, n),
            ("literal PyG", published, n_literal),
        ):
            start = time.perf_counter()
            job()
            times[name].append((time.perf_counter() - start) / spots * 1e3)
    for name, values in times.items():
        print(f"{name:13s} {np.median(values):8.3f} ms a spot  (min {min(values):.3f}, max {max(values):.3f})")
    per_run = {name: np.array(values) for name, values in times.items()}
    print(
        f"faster than literal PyG, median of {args.runs}: {np.median(per_run['literal PyG'] / per_run['ours']):.1f} x"
    )
    print(f"of the bare product's speed:    {np.median(per_run['bare product'] / per_run['ours']):.2f}")


if __name__ == "__main__":
    main()
