"""All benchmarks, one after the other, each in a process of its own: JSON and the tables of the documentation.

    python benchmarks/run.py [--out build/benchmarks] [--sections FOLDER] [--rivals PYTHON] [--quick]

What is done is kept in OUT/results.json, and the same command goes on from there; ``--only NAME`` does some of it
again. FOLDER has real sections (CRC_16.h5ad, JEF_eevee_breast.h5ad); PYTHON is the interpreter of an environment with
novae and scVI (see rivals.py). Run it on a machine that does nothing else. OUT/tables.md goes into the documentation.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

# This process stays small: the peak that a child reports counts its parent's, from before the child's program starts.
HERE = Path(__file__).parent
SPOTS = (1_000, 8_000, 32_000, 128_000, 512_000)


def jobs(args: argparse.Namespace, folder: Path) -> dict[str, list[list[str]]]:
    """Commands by name; those of one name are run in turn."""
    python = sys.executable
    spots = [n for n in SPOTS if not args.quick or n <= 8_000]
    real = [args.sections / name for name in ("CRC_16.h5ad", "JEF_eevee_breast.h5ad")] if args.sections else []
    sections = [[], *(["--section", str(file)] for file in real)]
    runs = ["--runs", "1" if args.quick else "5"]

    def scaling(*arguments: object) -> list[str]:
        return [python, "scaling.py", *map(str, arguments), "--folder", str(folder)]

    found = {
        "matmul": [[python, "-c", MATMUL]],
        "inference": [[python, "inference.py", *section, *runs] for section in sections],
        "training": [[python, "training.py", "--batch-size", size, *runs] for size in ("64", "128")],
        "perturbation": [
            [
                python,
                "perturbation.py",
                *([str(args.pairs)] if args.pairs else []),
                "--runs",
                "1" if args.quick else "3",
            ]
        ],
        "precision": [[python, "precision.py"]],
        "embed": [scaling("embed", "--model", "published", "--store", "--spots", n) for n in spots],
        "embed, mini": [scaling("embed", "--model", "mini", "--store", "--spots", n) for n in spots],
        "embed, genes": [
            scaling("embed", "--model", "published", "--spots", 8_000, "--genes", n) for n in (3_000, 6_000)
        ],
        "impute": [scaling("impute", "--store", "--spots", n) for n in spots if n <= 128_000],
        "perturb": [scaling("perturb", "--spots", n) for n in spots],
        "perturb, published": [scaling("perturb", "--model", "published", "--spots", n) for n in spots if n <= 128_000],
        "perturb, pairs": [scaling("perturb", "--spots", 8_000, "--pairs", n) for n in (100, 1_000)],
        "graph": [scaling("graph", "--spots", 10**6, "--genes", 100, "--method", method) for method in ("auto", "knn")],
        "start-up": [[python, "-c", START] for _ in range(3)],
    }
    if args.rivals:
        slide = str(folder / "rivals.h5ad")
        if args.sections:
            slide = str(args.sections / "CRC_16.h5ad")
        jobs = {"published": python, "mini": python, "novae": str(args.rivals), "nichepca": python, "mofa": python}
        jobs["scvi"] = str(args.rivals)
        each = [[interpreter, "rivals.py", job, slide, "--runs", "1"] for job, interpreter in jobs.items()]
        found["rivals"] = each * (1 if args.quick else 3)  # in turn
    return found


MATMUL = """
import json, time, torch
a, b = torch.randn(2048, 14558), torch.randn(14558, 1024)
a @ b
times = []
for _ in range(20):
    start = time.perf_counter(); a @ b; times.append(time.perf_counter() - start)
print(json.dumps({"gflops": 2 * 2048 * 14558 * 1024 / sorted(times)[10] / 1e9}))
"""
SLIDE = "import sagefm as sg; sg.datasets.simulated_visium(40, 50, n_genes=14_558).write_h5ad('{}')"
START = """
import json, subprocess, sys, time
def took(*command):
    start = time.perf_counter(); subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
print(json.dumps({"nothing": took(sys.executable, "-c", ""), "import": took(sys.executable, "-c", "import sagefm"),
    "help": took(sys.executable, "-m", "sagefm.cli", "--help")}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--sections", type=Path)
    parser.add_argument("--rivals", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--quick", action="store_true", help="small sizes and one run: does everything work?")
    args = parser.parse_args()
    for name in ("sections", "pairs"):
        if getattr(args, name):
            setattr(args, name, getattr(args, name).absolute())
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / "results.json"
    results: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        listed = jobs(args, Path(folder))
        if unknown := set(args.only) - set(listed):
            parser.error(f"--only names {sorted(unknown)}; there are {list(listed)}.")
        for name, commands in listed.items():
            if name not in args.only and (args.only or name in results):
                continue
            if name == "rivals" and not args.sections:
                subprocess.run([sys.executable, "-c", SLIDE.format(Path(folder) / "rivals.h5ad")], check=True)
            lines = []
            for command in commands:
                load = os.getloadavg()[0]
                start = time.perf_counter()
                done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{' '.join(command)}\n{done.stderr}")
                lines.append(json.loads(done.stdout.strip().splitlines()[-1]) | {"load_before": round(load, 2)})
                print(f"{name}: {time.perf_counter() - start:.0f} s  {json.dumps(lines[-1])[:300]}", flush=True)
            results[name] = lines
            results["machine"] = {
                "date": str(date.today()),
                "python": platform.python_version(),
                "torch": version("torch"),
                "numpy": version("numpy"),
                "cores": os.cpu_count(),
            }
            record.write_text(json.dumps(results, indent=1))
            (args.out / "tables.md").write_text(tables(results))
    print(record)


def tables(results: dict[str, Any]) -> str:
    """Tables of the documentation, of what there is."""
    parts = []
    for title, make in TABLES.items():
        rows = make(results)
        if rows:
            header, *body = rows
            lines = [
                " | ".join(header),
                " | ".join("---" for _ in header),
                *(" | ".join(map(str, row)) for row in body),
            ]
            parts.append(f"{title}\n\n" + "\n".join(f"| {line} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def literal_table(results: dict[str, Any]) -> list[list[str]]:
    rows = [["", "ms a spot", "literal PyG", "times as fast (lowest to highest run)"]]
    for line in results.get("inference", []):
        where, ms = f"{line['section']}, {line['spots']:,} spots", line["milliseconds_a_spot"]
        for what in ("embed", "impute"):
            times = line[f"{what}_faster_than_literal"]
            ratio = f"{times['median']:.0f} ({times['low']:.0f} to {times['high']:.0f})"
            rows.append([f"{what}, {where}", number(ms[what]), number(ms[f"literal {what}"]), ratio])
    for line in results.get("training", []):
        times, ms = line["faster_than_literal"], line["milliseconds_a_spot"]
        ratio = f"{times['median']:.1f} ({times['low']:.1f} to {times['high']:.1f})"
        what = f"training step, batches of {line['batch_size']}"
        rows.append([what, number(ms["ours"]), number(ms["literal PyG"]), ratio])
    for line in results.get("perturbation", []):
        seconds, times = line["seconds"], line["faster_than_literal_a_pair"]
        what = f"perturbation, a pair of {line['pairs_run']:,} with {line['n_controls']} controls each"
        ms = [1e3 * seconds["perturb"] / line["pairs_run"] / line["spots"]]
        ms.append(1e3 * seconds["literal, one pair"] / line["spots"])
        ratio = f"{times['median']:,.0f} ({times['low']:,.0f} to {times['high']:,.0f})"
        rows.append([what, *map(number, ms), ratio])
    return rows if len(rows) > 1 else []


def matmul_table(results: dict[str, Any]) -> list[list[str]]:
    rows = [["", "of the bare product's speed (lowest to highest run)"]]
    for line in results.get("inference", []):
        share = line["embed_of_bare_product_speed"]
        what = f"embed, {line['section']}, {line['nonzeros_a_spot']:,.0f} non-zeros a spot"
        rows.append([what, f"{share['median']:.2f} ({share['low']:.2f} to {share['high']:.2f})"])
    return rows if len(rows) > 1 else []


def rivals_table(results: dict[str, Any]) -> list[list[str]]:
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in results.get("rivals", []):
        lines.setdefault(line["job"], []).append(line)
    if not lines:
        return []
    seconds = {job: [float(np.median(line["seconds"])) for line in found] for job, found in lines.items()}
    derived = [line["notes"]["derived_seconds_at_default_epochs"] for line in lines["scvi"]]
    # Most of novae's time is numpy looking the gene names up among the known ones, which isn't its model's doing.
    lookup = [float(np.median(line["parts"]["gene_lookup"])) for line in lines["novae"]]
    alone = [whole - part for whole, part in zip(seconds["novae"], lookup, strict=True)]
    seconds |= {"scvi, all epochs (derived)": derived, "novae, names looked up for free": alone}
    rows = [["", "dimensions", "seconds", "peak GB", "times as long as published size", "as mini"]]
    for name, values in seconds.items():
        job = name.split(",")[0]
        # The rounds are paired: each ran everything in turn.
        ratios = [np.median(np.array(values) / np.array(seconds[ours])) for ours in ("published", "mini")]
        shape, peak = lines[job][0]["notes"]["embedding_shape"], max(line["peak_rss_gb"] for line in lines[job])
        what = f"{lines[job][0]['package']} {lines[job][0]['version']}: {name}"
        rows.append([what, shape[1], number(np.median(values)), number(peak), *map(number, ratios)])
    return rows


def scaling_table(results: dict[str, Any]) -> list[list[str]]:
    rows = [["", "spots", "genes", "pairs", "seconds", "µs a spot", "peak GB", "without pages of files", "result GB"]]
    names = (
        "embed",
        "embed, mini",
        "embed, genes",
        "impute",
        "perturb",
        "perturb, published",
        "perturb, pairs",
        "graph",
    )
    for name in names:
        for line in results.get(name, []):
            what = f"{line['job']}, {line['model']}{', to zarr' if line['store'] else ''}"
            if line["job"] == "graph":
                what = f"graph, {line['method']}"
            row = [what, f"{line['spots']:,}", f"{line['genes']:,}", line.get("pairs", ""), number(line["seconds"])]
            row.append(number(line["seconds"] / line["spots"] * 1e6))
            rows.append([*row, *(f"{line[key]:.2f}" for key in ("peak_gb", "anonymous_gb", "output_gb"))])
    return rows if len(rows) > 1 else []


def precision_table(results: dict[str, Any]) -> list[list[str]]:
    rows = [["", "embedding: largest, RMS", "imputed: largest, RMS"]]
    for line in results.get("precision", []):
        for name, errors in line["errors"].items():
            rows.append(
                [name, *(", ".join(f"{value:.1e}" for value in errors[key]) for key in ("embedding", "imputed"))]
            )
    return rows if len(rows) > 1 else []


TABLES = {
    "**Against the literal pipeline**": literal_table,
    "**Against the bare matrix product**": matmul_table,
    "**Against other embeddings**": rivals_table,
    "**Time and memory by size**": scaling_table,
    "**Reduced precision**": precision_table,
}

if __name__ == "__main__":
    main()
