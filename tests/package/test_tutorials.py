"""The tutorials run, offline."""

import json

import matplotlib as mpl
import pytest
from helpers import ROOT

import sagefm as sg

TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, monkeypatch):
    mpl.use("agg")
    simulate = sg.datasets.simulated_visium  # a third of the slide, where the notebook names no size
    smaller = {"n_rows": 24, "n_cols": 24}
    monkeypatch.setattr(sg.datasets, "simulated_visium", lambda *a, **k: simulate(*a, **(k if a else {**smaller, **k})))
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    notebook = json.loads(path.read_text())
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            assert cell["outputs"] or "import" in cell["source"][0], "a cell without its output was committed"


def test_no_machine_is_named():
    for path in TUTORIALS:
        text = path.read_text()
        assert "site-packages" not in text
        assert "Traceback" not in text
