"""What the benchmarks share: jobs timed in turn, so that a slow minute is everyone's, and the line they print."""

import json
import platform
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

import sagefm as sg


def in_turn(jobs: Mapping[str, tuple[Callable[[], object], float]], runs: int) -> dict[str, list[float]]:
    """Seconds of each job in each run, divided by its number of units."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(runs):
        for name, (job, units) in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append((time.perf_counter() - start) / units)
    return times


def ratio(times: Mapping[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times as long one takes as the other: median over runs, lowest and highest."""
    each = np.array(times[slow]) / np.array(times[fast])
    return {"median": float(np.median(each)), "low": float(each.min()), "high": float(each.max())}


def report(what: str, **values: Any) -> None:
    """Print one line of JSON: what was measured, on what, and this process's peak memory."""
    line = {"benchmark": what, **values, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    line |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "sagefm": sg.__version__}
    line["machine"] = platform.machine()
    print(json.dumps(_rounded(line)))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float | np.floating) else value
