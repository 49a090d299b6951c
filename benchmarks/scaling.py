"""Time and peak memory of one job on a slide of any size, read from disk.

    python benchmarks/scaling.py embed|impute|perturb|graph --spots 32000 [--genes 12000] [--model mini|published]
        [--pairs 10] [--store] [--no-similar] [--folder DIR]

The slide is a simulated one, repeated side by side and written to disk; a child process reads it backed, so that its
counts stay there. Prints one line of JSON: seconds, and peak resident memory in GB before the job and during it, the
second also without pages of files, which the system takes back when memory is short. With ``--store`` results go to
zarr.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd

import sagefm as sg
from sagefm.models._vocabulary import hest1k

DEPTH = 2000  # counts a spot, about


def write_slide(path: Path, n_spots: int, n_genes: int) -> None:
    """Tile a simulated slide, a copy at a time, so that any size can be written."""
    tile = sg.datasets.simulated_visium(40, 50, n_genes=n_genes, depth=DEPTH)
    n_tiles = -(-n_spots // tile.n_obs)
    obs = pd.DataFrame(
        {
            "array_row": np.tile(tile.obs["array_row"], n_tiles)[:n_spots],
            "array_col": (np.tile(tile.obs["array_col"], n_tiles) + np.repeat(np.arange(n_tiles), tile.n_obs) * 100)[
                :n_spots
            ],
        },
        index=[f"spot_{i}" for i in range(n_spots)],
    )
    x = tile.X.tocsr()
    empty = ad.AnnData(obs=obs, var=tile.var[[]])
    empty.obsm["spatial"] = obs[["array_col", "array_row"]].to_numpy() * [50.0, 86.6]
    empty.write_h5ad(path)
    last = n_spots - (n_tiles - 1) * tile.n_obs
    nnz = int((n_tiles - 1) * x.nnz + x.indptr[last])
    with h5py.File(path, "r+") as file:
        if "X" in file:
            del file["X"]
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": empty.shape})
        data = group.create_dataset("data", nnz, "float32", chunks=(2**18,))
        indices = group.create_dataset("indices", nnz, "int32", chunks=(2**18,))
        ends = [np.zeros(1, dtype=np.int64)]
        for i in range(n_tiles):
            rows = x if i < n_tiles - 1 else x[:last]
            here = slice(ends[-1][-1], ends[-1][-1] + rows.nnz)
            data[here], indices[here] = rows.data, rows.indices
            ends.append(rows.indptr[1:] + ends[-1][-1])
        group.create_dataset("indptr", data=np.concatenate(ends))


class Watch:
    """Peak resident memory, with and without pages of files, sampled while the context lasts."""

    def __enter__(self) -> "Watch":
        self.peak = self.anonymous = 0.0
        self.before = self._read()[0]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @staticmethod
    def _read() -> tuple[float, float]:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return tuple(int(lines[name].split()[0]) / 1e6 for name in ("VmRSS", "RssAnon"))

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            peak, anonymous = self._read()
            self.peak, self.anonymous = max(self.peak, peak), max(self.anonymous, anonymous)


def child(args: argparse.Namespace) -> None:
    import torch
    import torch_geometric.nn  # noqa: F401 imports are not charged

    model = "sagefm-mini"
    if args.model == "published":
        torch.manual_seed(0)
        model = sg.models.Model("random, published size", sg.models.GCN(14558), hest1k())
    pairs = None
    small = sg.datasets.simulated_visium(8, 8, n_genes=8000)
    sg.pp.neighborhood_graph(small)
    sg.tl.sage_embed(small, model, device=args.device)  # nor is what happens once
    adata = ad.read_h5ad(args.child, backed="r")
    if args.job != "graph":
        sg.pp.neighborhood_graph(adata)
        sg.pp.align_genes(adata, model, min_coverage=0)
    folder = tempfile.TemporaryDirectory(dir=args.folder)
    store = {"store": Path(folder.name) / "out.zarr"} if args.store else {}
    if args.job == "perturb":
        names = list(adata.var_names)  # any genes: what a pair costs doesn't depend on them
        pairs = list(zip(names[::11], names[5::11], strict=False))[: args.pairs]
    jobs = {
        "graph": lambda: sg.pp.neighborhood_graph(adata, args.method),
        "embed": lambda: sg.tl.sage_embed(adata, model, device=args.device, **store),
        "impute": lambda: sg.tl.impute(adata, None, model, similar=not args.no_similar, device=args.device, **store),
        "perturb": lambda: sg.tl.perturb_lr(adata, pairs, model, n_controls=args.n_controls, device=args.device),
    }
    with Watch() as watch:
        start = time.perf_counter()
        jobs[args.job]()
        seconds = time.perf_counter() - start
    output = {"embed": adata.obsm.get("X_sage"), "impute": adata.layers.get("sage_imputed")}.get(args.job)
    result = {"job": args.job, "model": args.model, "spots": adata.n_obs, "genes": adata.n_vars}
    if pairs is not None:
        result |= {"pairs": len(pairs), "n_controls": args.n_controls}
    if args.job == "graph":
        result["method"] = adata.uns["sage_neighbors"]["params"]["method"]
    result |= {"store": args.store, "seconds": seconds, "before_gb": watch.before, "peak_gb": watch.peak}
    result |= {"anonymous_gb": watch.anonymous, "output_gb": 0.0 if output is None else output.nbytes / 1e9}
    print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in result.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-similar", action="store_true", help="impute without similar spots")
    parser.add_argument("job", choices=["embed", "impute", "perturb", "graph"])
    parser.add_argument("--spots", type=int, default=32_000)
    parser.add_argument("--genes", type=int, default=12_000)
    parser.add_argument("--model", choices=["mini", "published"], default="mini")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--n-controls", type=int, default=0)
    parser.add_argument("--method", choices=["auto", "knn"], default="auto", help="of the graph")
    parser.add_argument("--store", action="store_true", help="write results to zarr")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where slides are written, and kept for another call")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    if args.child:
        child(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        slide = (args.folder or Path(folder)) / f"slide_{args.spots}x{args.genes}.h5ad"
        if not slide.exists():
            write_slide(slide, args.spots, args.genes)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child", str(slide)], check=True)


if __name__ == "__main__":
    main()
