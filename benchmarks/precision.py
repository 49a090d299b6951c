"""Error of reduced precision on the CPU; benchmarks/gpu.py has that of a GPU.

    python benchmarks/precision.py [--section FILE.h5ad]

Largest difference of embeddings and imputed genes from float32 on the CPU, relative to the largest value; also the
root mean square of the difference relative to that of the values.
"""

import argparse
import time
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from timing import report

import sagefm as sg
from sagefm.models._vocabulary import hest1k


def run(adata: ad.AnnData, model: object, device: str, dtype: str) -> tuple[dict[str, np.ndarray], float]:
    start = time.perf_counter()
    sg.tl.sage_embed(adata, model, device=device, dtype=dtype)
    seconds = time.perf_counter() - start
    sg.tl.impute(adata, model=model, reliability=False, device=device, dtype=dtype)
    return {"embedding": adata.obsm["X_sage"], "imputed": np.nan_to_num(adata.layers["sage_imputed"])}, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", type=Path)
    args = parser.parse_args()
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    adata = ad.read_h5ad(args.section) if args.section else sg.datasets.simulated_visium(40, 50)
    sg.pp.neighborhood_graph(adata)
    torch.manual_seed(0)
    published = sg.models.Model("random, published size", sg.models.GCN(14558), hest1k())
    errors: dict[str, dict[str, list[float]]] = {}
    milliseconds = {}
    runs = [("cpu", "bfloat16")]
    for name, model in (("sagefm-mini", sg.models.load("sagefm-mini")), ("published size, random", published)):
        expected, _ = run(adata, model, "cpu", "float32")
        for device, dtype in runs:
            run(adata, model, device, dtype)
            found, seconds = run(adata, model, device, dtype)
            milliseconds[f"{name}, {device}, {dtype}"] = seconds / adata.n_obs * 1e3
            errors[f"{name}, {device}, {dtype}"] = {
                what: [
                    float(np.abs(found[what] - value).max() / np.abs(value).max()),
                    float(np.linalg.norm(found[what] - value) / np.linalg.norm(value)),
                ]
                for what, value in expected.items()
            }
    section = args.section.stem if args.section else "simulated"
    report("precision", section=section, spots=adata.n_obs, errors=errors, milliseconds_a_spot=milliseconds)


if __name__ == "__main__":
    main()
