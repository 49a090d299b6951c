"""Everything that a GPU can be asked, meant to take under eight minutes: exactness, speed, full memory, training.

    python benchmarks/gpu.py OUT_DIR [--sections FILE.h5ad ...] [--small] [--parts NAME ...]
    python benchmarks/gpu.py OUT_DIR --table docs/evaluation/gpu.csv

Each part writes OUT_DIR/NAME.json and is left out where that is there, so an interrupted run goes on. ``--small`` takes
little of everything, and runs on a CPU as well: it tries the way through. Weights are random, of published size.

``card``       name, memory, and the rate of the first layer's product in each precision
``parity``     embed, impute and perturb against float32 on the CPU, both families, each precision
``throughput`` spots a second of each, on slides of 3,000 to 300,000 spots, and their share of the product's rate
``memory``     a call with too little memory, whose blocks are halved, against one with enough
``training``   spots a second of a step by batch size and precision, compiled or not; hours of the paper's pretraining
``encoder``    patches a second of the ViT-B
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

import sagefm as sg
from sagefm.models._vocabulary import hest1k
from sagefm.train._module import MaskedCenter, masked_squared_error
from sagefm.train._stream import Stream

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
PRECISIONS = ("float32", "tf32", "bfloat16") if ON_GPU else ("float32",)
PAPER_SPOTS, PAPER_EPOCHS = 776_171, 126
PAIRS = [("CXCL12", "CXCR4"), ("CSF1", "CSF1R"), ("TGFB1", "TGFBR2"), ("EGF", "EGFR")]


def main() -> None:
    """Run the parts that are missing, or write their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--sections", type=Path, nargs="*", default=[], help="for parity; by default a simulated slide")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--table", type=Path, help="write what lies in OUT_DIR as a table, and run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        write_table(arguments.out, arguments.table)
        return
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.parts:
        file = arguments.out / f"{name}.json"
        if file.exists():
            continue
        started = time.perf_counter()
        rows = []
        for row in PARTS[name](arguments):
            rows.append({key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in row.items()})
            print(json.dumps({"part": name, **rows[-1]}), flush=True)
        file.write_text(json.dumps(rows, indent=1))
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


def seconds_of(job: Callable[[], object], repeats: int = 3) -> float:
    """Median time of a job, after a first one that nobody counts."""
    times = []
    for _ in range(repeats + 1):
        _wait()
        start = time.perf_counter()
        job()
        _wait()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def published() -> sg.models.Model:
    """Random weights of published size."""
    torch.manual_seed(0)
    return sg.models.Model("published size", sg.models.GCN(14_558).requires_grad_(False).eval(), hest1k())


def slide_of(n: int) -> ad.AnnData:
    """A simulated slide, repeated side by side."""
    tile = sg.datasets.simulated_visium(*((50, 60) if n >= 3_000 else (14, 16)), n_genes=12_000, depth=2_000)
    copies = -(-n // tile.n_obs)
    obs = pd.concat([tile.obs[["array_row", "array_col"]]] * copies)[:n]
    obs["array_col"] += np.repeat(np.arange(copies) * 200, tile.n_obs)[:n]
    obs.index = [f"spot_{i}" for i in range(n)]
    slide = ad.AnnData(sparse.vstack([tile.X] * copies).tocsr()[:n], obs=obs, var=tile.var[[]])
    sg.pp.neighborhood_graph(slide)
    return slide


def call(what: str, adata: ad.AnnData, model: sg.models.Model, device: str, dtype: str = "float32") -> np.ndarray:
    """What a tool returns, as an array."""
    options = {"device": device, "dtype": dtype}
    if what == "embed":
        sg.tl.sage_embed(adata, model, **options)
        return adata.obsm["X_sage"]
    if what == "impute":
        sg.tl.impute(adata, None, model, reliability=False, similar=False, **options)
        return np.nan_to_num(adata.layers["sage_imputed"])
    sg.tl.perturb_lr(adata, PAIRS, model, n_controls=0, similar=False, store_spots=True, device=device)
    return adata.obsm["perturb_lr"].to_numpy()


def card(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """The device, and how fast it multiplies."""
    yield {
        "name": torch.cuda.get_device_name() if ON_GPU else "CPU",
        "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if ON_GPU else None,
        "torch": torch.__version__,
        "sagefm": sg.__version__,
    }
    n = 300 if arguments.small else 16_384
    for precision in PRECISIONS:
        yield {"precision": precision, "tflops": 2 * n * 14_558 * 1_024 / seconds_of(product(n, precision)) / 1e12}


def product(n: int, precision: str) -> Callable[[], object]:
    """The first layer's product at published width, on the device already."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    x = torch.rand(n, 14_558, device=DEVICE, dtype=dtype)
    weight = torch.rand(14_558, 1_024, device=DEVICE, dtype=dtype)

    def job() -> None:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        x @ weight
        torch.set_float32_matmul_precision("highest")

    return job


def parity(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Largest and mean error of each tool, relative to the largest value and to the mean one."""
    slides = {file.stem: ad.read_h5ad(file) for file in arguments.sections} or {"simulated": slide_of(224)}
    for name, adata in slides.items():
        sg.pp.neighborhood_graph(adata)
        for model in (published(), sg.models.load("sagefm-mini")):
            for what in ("embed", "impute", "perturb"):
                expected = call(what, adata, model, "cpu")
                for precision in PRECISIONS if what != "perturb" else PRECISIONS[:1]:
                    error = np.abs(call(what, adata, model, DEVICE, precision) - expected)
                    yield {
                        "section": name,
                        "model": model.name,
                        "tool": what,
                        "precision": precision,
                        "largest_error": float(error.max() / np.abs(expected).max()),
                        "mean_error": float(error.mean() / np.abs(expected).mean()),
                    }


def throughput(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Spots a second, from counts in memory to results in ``adata``, and the share of the bare product's rate."""
    sizes = (224,) if arguments.small else (3_000, 30_000, 300_000)
    models = (published(), sg.models.load("sagefm-mini"))
    n = 300 if arguments.small else 16_384
    bare = {precision: seconds_of(product(n, precision)) / n for precision in PRECISIONS}
    for n in sizes:
        adata = slide_of(n)
        for model in models:
            for what in ("embed", "impute", "perturb"):
                if what == "impute" and n > 30_000:  # 300,000 x 12,000 predictions are 14 GB; store= is for these
                    continue
                for precision in PRECISIONS if what == "embed" else PRECISIONS[:1]:
                    repeats = 3 if n < 30_000 else 1
                    seconds = seconds_of(partial(call, what, adata, model, DEVICE, precision), repeats)
                    row = {"spots": n, "model": model.name, "tool": what, "precision": precision}
                    row |= {"seconds": seconds, "spots_a_second": n / seconds}
                    if what == "embed" and model.name == "published size":
                        row["of_product_rate"] = bare[precision] * n / seconds
                    yield row


def memory(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Too little memory for the blocks that were asked for, against enough."""
    adata, model = slide_of(224 if arguments.small else 6_000), published()
    sg.tl.sage_embed(adata, model, device=DEVICE)
    expected = adata.obsm["X_sage"]
    if ON_GPU:
        torch.cuda.empty_cache()
        share = 0.6e9 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(share)  # a block of 6,000 spots alone takes 0.35 GB
    try:
        sg.tl.sage_embed(adata, model, device=DEVICE, batch_size=adata.n_obs)
    finally:
        if ON_GPU:
            torch.cuda.set_per_process_memory_fraction(1.0)
    used = torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else None
    error = float(np.abs(adata.obsm["X_sage"] - expected).max() / np.abs(expected).max())
    yield {"asked_for": adata.n_obs, "largest_error": error, "memory_gb": used}


def training(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Steps at published size on a corpus that lies on the device."""
    adata = slide_of(224 if arguments.small else 9_000)
    adata.obs["donor"] = "donor"
    with tempfile.TemporaryDirectory() as folder:
        corpus = sg.train.prepare_corpus(adata, Path(folder) / "corpus.zarr", split={}, similar=False)
        for batch_size in (64,) if arguments.small else (64, 512, 4_096):
            for precision in PRECISIONS:
                for compiled in (False, True) if ON_GPU and batch_size == 4_096 else (False,):
                    yield step(corpus, batch_size, precision, compiled=compiled, small=arguments.small)


def step(corpus: sg.train.Corpus, batch_size: int, precision: str, *, compiled: bool, small: bool) -> dict[str, object]:
    """Spots a second of one setting."""
    torch.manual_seed(0)
    network = sg.models.GCN(14_558).to(DEVICE)
    module = MaskedCenter(network, corpus, sg.train.PRESETS["paper"])
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-5, weight_decay=1e-4, fused=True)
    stream = Stream(corpus, "train", batch_size=batch_size, mask_fraction=0.3, device=torch.device(DEVICE))
    forward = torch.compile(module.forward) if compiled else module.forward
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    mixed = torch.autocast(DEVICE, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    n_spots, spent, deadline = 0, 0.0, 0.1 if small else 6.0
    while spent < deadline:
        for number, (_, spots) in enumerate(stream):
            _wait()
            start = time.perf_counter()
            with mixed:
                prediction = forward(spots)[0]
            loss = masked_squared_error(prediction.float(), spots.center, spots.mask) / spots.mask.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            _wait()
            if number or small:  # the first one of a pass touches memory, or compiles
                spent, n_spots = spent + time.perf_counter() - start, n_spots + len(spots.center)
            if spent > deadline:
                break
    torch.set_float32_matmul_precision("highest")
    speed = n_spots / spent
    found = {"batch_size": batch_size, "precision": precision, "compiled": compiled, "spots_a_second": speed}
    used = torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else None
    return found | {"hours_of_the_paper": PAPER_SPOTS * PAPER_EPOCHS / speed / 3600, "memory_gb": used}


def encoder(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A ViT-B with random weights, as the histology tools use it."""
    from transformers import ViTConfig, ViTModel

    small = {"num_hidden_layers": 1, "hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96}
    network = ViTModel(ViTConfig(**(small if arguments.small else {})), add_pooling_layer=False).eval()
    loaded, n = sg.models.Encoder("random", network), 4 if arguments.small else 1_024
    patches = np.random.default_rng(0).integers(0, 256, (n, 224, 224, 3), dtype=np.uint8)
    yield {"patches": n, "patches_a_second": n / seconds_of(lambda: loaded.embed(patches, device=DEVICE))}


PARTS = {part.__name__: part for part in (card, parity, throughput, memory, training, encoder)}


def write_table(folder: Path, file: Path) -> None:
    """One row for each figure, as the docs show them."""
    parts = {name: json.loads((folder / f"{name}.json").read_text()) for name in PARTS}
    rows = []
    for name, found in parts.items():
        for row in found:
            figures = {key: value for key, value in row.items() if isinstance(value, float)}
            setting = ", ".join(str(value) for key, value in row.items() if key not in figures and value is not None)
            rows += [(name, setting, key.replace("_", " "), f"{value:.3g}") for key, value in figures.items()]
    pd.DataFrame(rows, columns=["part", "setting", "figure", "value"]).to_csv(file, index=False)


if __name__ == "__main__":
    main()
