"""The GPU benchmark runs from end to end on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow
@pytest.mark.process
def test_every_part_runs_resumes_and_makes_a_table(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out")]
    first = subprocess.run([*command, "--small"], capture_output=True, text=True, check=True)
    parts = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")}
    assert set(parts) == {"card", "parity", "throughput", "memory", "training", "encoder"}
    assert all(f"{name}: " in first.stdout for name in parts)
    assert {row["model"] for row in parts["parity"]} == {"published size", "sagefm-mini"}
    assert all(row["largest_error"] < 1e-5 for row in parts["parity"] + parts["memory"])
    assert all(row["spots_a_second"] > 0 for row in parts["throughput"] + parts["training"])
    again = subprocess.run([*command, "--small"], capture_output=True, text=True, check=True)
    assert again.stdout == ""
    subprocess.run([*command, "--table", str(tmp_path / "gpu.csv")], check=True)
    table = pd.read_csv(tmp_path / "gpu.csv")
    assert set(table["part"]) == set(parts)
