"""Several recipes on one corpus."""

from dataclasses import replace

import pytest

import sagefm as sg

SMALL = replace(sg.train.PRESETS["mini"], hidden=(8, 8), max_epochs=1, batch_size=64, niche_weight=0.0, similar=0.0)
GCN = replace(SMALL, architecture="gcn", hidden=(8, 6, 6), dropout=0.0)
RECIPES = {"three layers": GCN, "sage": replace(SMALL, learning_rate=1e-2)}


def test_recipes_are_compared_and_kept(corpus, tmp_path):
    table = sg.train.sweep(corpus, RECIPES, tmp_path, accelerator="cpu")
    assert table["rmse"].is_monotonic_increasing
    for name, row in table.iterrows():
        model = sg.models.load(row["path"])
        assert model.card["validation"]["metrics"][name]["rmse"] == row["rmse"]
        assert (model.architecture, model.hidden) == (RECIPES[name].architecture, RECIPES[name].hidden)
        assert model.n_parameters == row["parameters"]
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    again = sg.train.sweep(corpus, {**RECIPES, "one more": SMALL}, tmp_path, accelerator="cpu")
    assert len(again) == 3
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    with pytest.raises(FileExistsError, match="another recipe, seed or split"):
        sg.train.sweep(corpus, {"sage": SMALL}, tmp_path)
    with pytest.raises(FileExistsError, match="another recipe, seed or split"):
        sg.train.sweep(corpus, RECIPES, tmp_path, rng=1)


@pytest.mark.slow
@pytest.mark.process
def test_processes_give_the_same(corpus, tmp_path):
    one = sg.train.sweep(corpus, RECIPES, tmp_path / "one", accelerator="cpu")
    two = sg.train.sweep(corpus, RECIPES, tmp_path / "two", accelerator="cpu", n_jobs=2)
    assert two.index.tolist() == one.index.tolist()
    assert two["rmse"].tolist() == pytest.approx(one["rmse"].tolist(), rel=1e-6)


def test_refusals(corpus, tmp_path):
    with pytest.raises(ValueError, match="recipes is empty"):
        sg.train.sweep(corpus, {}, tmp_path)
    with pytest.raises(ValueError, match="no section to validate on"):
        sg.train.sweep(corpus.with_split({}), RECIPES, tmp_path)
