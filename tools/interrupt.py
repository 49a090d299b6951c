"""Kill jobs at random moments, start them again, and compare with what they make undisturbed.

    python tools/interrupt.py [--n 50] [--seed 0] [--jobs embed pretrain ...]

The jobs are in ``tests/interruption.py``: embedding and imputing to disk, many sections (one and two at a time), the
command line, corpora, pretraining and the protocol, on small simulated slides. Each is run undisturbed first. Then one
is killed by Ctrl-C (SIGINT), SIGTERM or SIGKILL at any moment of its work, some two or three times, and started again
as a user would. After every kill whatever has its name has to be whole, and after Ctrl-C nothing else may be left; in
the end everything has to be as without the interruption, bit for bit. Exit code 1 if anything isn't. Some 20 minutes
on 2 CPU cores.
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import sagefm as sg

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from interruption import JOBS, interrupt, make_inputs, run_undisturbed

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
N_KILLS = (1, 1, 1, 2, 3)


def main() -> int:
    """Kill, look, start again, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50, help="jobs to interrupt (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--out", type=Path, help="table to write, .csv")
    arguments = parser.parse_args()
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    generator = np.random.default_rng(arguments.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs"
        make_inputs(inputs)
        undisturbed = {}
        for job in arguments.jobs:
            undisturbed[job] = run_undisturbed(job, inputs, Path(folder) / "undisturbed" / job)
            print(f"{job}: {undisturbed[job].seconds:.1f} s undisturbed", flush=True)
        for number in range(arguments.n):
            job = arguments.jobs[number % len(arguments.jobs)]
            kills = [
                (SIGNALS[generator.integers(len(SIGNALS))], generator.uniform(0, 1))
                for _ in range(generator.choice(N_KILLS))
            ]
            found = interrupt(job, inputs, Path(folder) / f"{number}", undisturbed[job], kills)
            done = kills[: len(found.there)]
            row = {
                "job": job,
                "signals": " ".join(kill.name.removeprefix("SIG") for kill, _ in done),
                "at": " ".join(f"{share:.0%}" for _, share in done),
                "there": "; ".join(found.there),
                "whole": "; ".join(found.damaged) or "yes",
                "same": "; ".join(found.different) or "yes",
            }
            print(" | ".join(str(value) for value in row.values()), flush=True)
            rows.append(row)
    table = pd.DataFrame(rows)
    print(f"\n{table.to_string(index=False)}\n")
    if arguments.out is not None:
        table.to_csv(arguments.out, index=False)
    counts = table.assign(interrupted=1, signal=table["signals"].str.split())
    counts["kills"] = counts["signal"].str.len()
    counts[["whole", "same"]] = table[["whole", "same"]] == "yes"
    print(counts.groupby("job", sort=False)[["interrupted", "kills", "whole", "same"]].sum().to_string(), "\n")
    print(
        counts.explode("signal").assign(kills=1).groupby("signal")[["kills", "whole", "same"]].sum().to_string(), "\n"
    )
    n_wrong = (~(counts["whole"] & counts["same"])).sum()
    print(f"{len(table)} jobs interrupted, {counts['kills'].sum()} kills: {n_wrong} went wrong.")
    return int(n_wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
