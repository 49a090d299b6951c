"""Peak memory of embedding a large slide at published size.

    python benchmarks/memory.py [--spots 20000]

The slide is a simulated one, repeated side by side, written to disk and read by a child process, whose peak
resident memory is printed: after imports and reading, and after embedding.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
from scipy import sparse

import sagefm as sg
from sagefm.models._vocabulary import hest1k


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def child(slide: str, model: str) -> None:
    import torch  # noqa: F401
    import torch_geometric.nn  # noqa: F401

    adata = ad.read_h5ad(slide)
    before = peak_gb()
    sg.pp.neighborhood_graph(adata)
    sg.tl.sage_embed(adata, model, device="cpu")
    counts = adata.X.data.nbytes + adata.X.indices.nbytes + adata.X.indptr.nbytes
    print(f"{adata.n_obs} spots, {adata.n_vars} genes, counts {counts / 1e9:.2f} GB, embedding", end=" ")
    print(f"{adata.obsm['X_sage'].nbytes / 1e9:.2f} GB")
    print(f"peak after imports and reading {before:.2f} GB, after embedding {peak_gb():.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spots", type=int, default=20_000)
    parser.add_argument("--child", nargs=2, metavar=("SLIDE", "MODEL"))
    args = parser.parse_args()
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    if args.child:
        child(*args.child)
        return
    tile = sg.datasets.simulated_visium(50, 50)
    n_tiles = -(-args.spots // tile.n_obs)
    obs = tile.obs.loc[np.tile(tile.obs_names, n_tiles), ["array_row", "array_col"]].copy()
    obs["array_col"] += np.repeat(np.arange(n_tiles), tile.n_obs) * 100
    obs.index = [f"spot_{i}" for i in range(len(obs))]
    large = ad.AnnData(sparse.vstack([tile.X] * n_tiles, format="csr"), obs=obs, var=tile.var)[: args.spots].copy()
    large.obsm["spatial"] = large.obs[["array_col", "array_row"]].to_numpy(float)
    with tempfile.TemporaryDirectory() as folder:
        slide, model = Path(folder) / "slide.h5ad", Path(folder) / "model.safetensors"
        large.write_h5ad(slide)
        sg.models.Model("random, published size", sg.models.GCN(14558), hest1k()).save(model)
        subprocess.run([sys.executable, __file__, "--child", slide, model], check=True)


if __name__ == "__main__":
    main()
