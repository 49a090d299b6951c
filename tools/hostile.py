"""Try every bad and odd slide of tests/catalogue on every function, and print the counts by function.

python tools/hostile.py [--all]

By default each function meets what spoils a part of the slide that it reads; with --all everything, which has to leave
the others' results as they are.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

import sagefm as sg

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import catalogue


def main() -> int:
    """Return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also what a function doesn't read")
    options = parser.parse_args()
    sg.settings.progress_bars = False
    logging.getLogger("sagefm").setLevel(logging.CRITICAL)
    bench = catalogue.Bench()
    functions = catalogue.FUNCTIONS | catalogue.PLOTS
    pairs = [
        (oddity, name)
        for oddity in catalogue.ODDITIES
        for name, function in functions.items()
        if options.all or oddity.spoils & function.reads
    ]
    rows = []
    for oddity, name in tqdm(pairs, unit="trial"):
        outcome = bench.trial(oddity, name)
        rows.append({"function": name, "input": oddity.name, "outcome": outcome.kind})
        if outcome.kind == "wrong":
            tqdm.write(f"{name}: {oddity.name}: {outcome.text} {outcome.detail}")
    table = pd.DataFrame(rows)
    counts = table.groupby("function", sort=False)["outcome"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=["right", "refused", "wrong"], fill_value=0)
    counts.insert(0, "tried", counts.sum(axis=1))
    counts.loc["all"] = counts.sum()
    print(f"{len(catalogue.ODDITIES)} inputs")
    print(counts.to_string())
    return int(counts.loc["all", "wrong"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
