"""Pretraining and fine-tuning: they learn, resume and refuse."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import pdist

import sagefm as sg
from sagefm.train._corpus import Corpus
from sagefm.train._module import MaskedCenter

RECIPE = replace(sg.train.PRESETS["mini"], hidden=(12, 8), batch_size=40, max_epochs=2, learning_rate=3e-3)


def run(corpus, folder, recipe=RECIPE, **options):
    return sg.train.pretrain(corpus, recipe, out=folder / "model.safetensors", accelerator="cpu", **options)


def weights(model):
    return torch.cat([parameter.flatten() for parameter in model.network.parameters()])


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return run(corpus, folder, replace(RECIPE, max_epochs=5), card={"licence": "none"}), folder


@pytest.mark.slow
def test_training_learns_and_the_file_serves_every_tool(corpus, slides, trained, slide):
    model, folder = trained
    table = model.card["validation"]["metrics"]
    assert table["model"]["rmse"] < table["zeros"]["rmse"]
    assert table["model"]["rmse"] < table["gene mean"]["rmse"]
    assert table["model"]["r_within"] > 0.02
    assert model.card["licence"] == "none"
    assert model.card["training"]["groups"] == ["donor0", "donor1", "donor3"]
    json.dumps(model.card)
    loaded = sg.models.load(folder / "model.safetensors")
    assert torch.equal(weights(loaded), weights(model)), "what was evaluated is what was saved"
    np.testing.assert_allclose(loaded.gene_mean, corpus.gene_mean(), atol=1e-4)
    sg.tl.sage_embed(slide, folder / "model.safetensors")
    sg.tl.impute(slide, ["CD74"], folder / "model.safetensors")
    assert slide.obsm["X_sage"].shape[1] == 8
    logs = pd.read_csv(next((folder / "model" / "logs").rglob("metrics.csv")))
    assert {"loss", "niche_loss", "val_rmse", "val_r_within"} <= set(logs)


@pytest.mark.slow
def test_logged_metrics_are_those_of_the_evaluation(corpus, tmp_path):
    """Validation while training and :func:`evaluate_imputation` differ in their masks alone."""
    model = run(corpus, tmp_path, replace(RECIPE, average_from=0.5, similar=0.0), half=False)
    logs = pd.read_csv(next((tmp_path / "model" / "logs").rglob("metrics.csv")))
    found = logs["val_rmse"].dropna().iloc[-1]
    assert found == pytest.approx(model.card["validation"]["metrics"]["model"]["rmse"], rel=0.02)


@pytest.mark.slow
def test_logged_metrics_follow_the_training(corpus, tmp_path):
    """Not those of the average before anything is in it, which are the first weights'."""
    run(corpus, tmp_path, replace(RECIPE, max_epochs=4, average_from=0.5), half=False)
    logs = pd.read_csv(next((tmp_path / "model" / "logs").rglob("metrics.csv")))
    assert logs["val_loss"].dropna().iloc[:3].is_unique  # the fourth sees the average of the third alone


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("n_steps", [5, 11], ids=["mid-epoch", "next epoch"])
def test_resumed_run_is_the_same_bit_for_bit(corpus, tmp_path, monkeypatch, n_steps):
    expected = run(corpus, tmp_path / "whole", half=False)
    step = MaskedCenter.training_step

    def interrupted(self, batch, index):
        if self.global_step == n_steps:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, index)

    monkeypatch.setattr(MaskedCenter, "training_step", interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without one
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "broken", checkpoint_steps=2, half=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    seen = []

    def counted(self, batch, index):
        seen.append(self.global_step)
        return step(self, batch, index)

    monkeypatch.setattr(MaskedCenter, "training_step", counted)
    resumed = run(corpus, tmp_path / "broken", checkpoint_steps=2, half=False, resume=True)
    assert seen[0] >= n_steps - 2, "more than the steps since the last checkpoint were lost"
    assert torch.equal(weights(resumed), weights(expected))


@pytest.mark.slow
def test_corpus_larger_than_memory_trains(corpus, tmp_path):
    """Windows fall otherwise in every epoch; steps and schedule don't notice."""
    model = run(corpus, tmp_path, replace(RECIPE, max_epochs=4), shuffle_spots=90)
    n_spots = corpus.sections.loc[corpus.names("train"), "n_spots"].sum()
    assert model.card["training"]["steps"] == 4 * -(-n_spots // RECIPE.batch_size)
    assert model.card["validation"]["metrics"]["model"]["rmse"] < model.card["validation"]["metrics"]["zeros"]["rmse"]


@pytest.mark.process
@pytest.mark.slow
def test_two_processes_train_as_one(corpus, tmp_path):
    """DDP on two CPU processes, through the command line."""
    recipe = replace(sg.train.PRESETS["mini"], hidden=(12, 8), max_epochs=1, batch_size=41, dropout=0.0)
    alone = weights(run(corpus, tmp_path, recipe))
    out = tmp_path / "two.safetensors"
    command = [sys.executable, "-m", "sagefm.cli", "--quiet", "pretrain", str(corpus.path), "-o", str(out)]
    command += ["--hidden", "12", "8", "--max-epochs", "1", "--batch-size", "41", "--dropout", "0"]
    subprocess.run([*command, "--accelerator", "cpu", "--devices", "2"], check=True, timeout=300)
    together = weights(sg.models.load(out))
    torch.testing.assert_close(together, alone, atol=2e-3 * float(alone.abs().max()), rtol=0)


def test_loss_that_is_not_finite_stops(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(MaskedCenter, "loss", lambda self, prediction, spots: prediction.sum() * np.nan)
    with pytest.raises(RuntimeError, match=r"the loss is nan at step 0. Lower learning_rate"):
        run(corpus, tmp_path, replace(RECIPE, niche_weight=0.0))


@pytest.mark.slow
def test_mixed_precision_and_accumulation(corpus, tmp_path):
    recipe = replace(RECIPE, max_epochs=1)
    plain, mixed, accumulated = (
        run(corpus, tmp_path / name, recipe, half=False, **options)
        for name, options in (("plain", {}), ("mixed", {"precision": "bf16-mixed"}), ("both", {"accumulate": 2}))
    )
    rmse = [model.card["validation"]["metrics"]["model"]["rmse"] for model in (plain, mixed)]
    assert rmse[1] == pytest.approx(rmse[0], rel=0.01)
    assert not torch.equal(weights(plain), weights(mixed))
    assert accumulated.card["training"]["steps"] == -(-plain.card["training"]["steps"] // 2)


@pytest.mark.slow
def test_fine_tuning_starts_from_the_model(corpus, trained, tmp_path):
    model, _ = trained
    recipe = replace(RECIPE, learning_rate=1e-7, max_epochs=1, niche_weight=0.0)
    tuned = run(corpus, tmp_path, recipe, init=model, half=False)
    torch.testing.assert_close(weights(tuned), weights(model), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="widths"):
        run(corpus, tmp_path, replace(recipe, hidden=(12, 9)), init=model)


@pytest.mark.slow
def test_fine_tuning_keeps_the_distances_of_the_embedding(corpus, trained, slide, tmp_path):
    """A map that begins at random would turn the embedding at random."""
    model, _ = trained
    tuned = run(corpus, tmp_path, replace(RECIPE, learning_rate=1e-7, max_epochs=1), init=model, half=False)
    slide = slide.copy()
    sg.tl.sage_embed(slide, model)
    before = pdist(slide.obsm["X_sage"])
    sg.tl.sage_embed(slide, tuned)
    assert np.corrcoef(before, pdist(slide.obsm["X_sage"]))[0, 1] > 0.9999


@pytest.mark.parametrize("n_epochs", [1, pytest.param(9, marks=pytest.mark.slow)])
def test_few_steps_train(corpus, tmp_path, n_epochs):
    """The rise of the learning rate is shorter than a step; with nine it is exactly one."""
    run(corpus, tmp_path, replace(RECIPE, batch_size=1000, max_epochs=n_epochs, niche_weight=0.0))


@pytest.mark.slow
def test_paper_preset_stops_early_and_takes_the_best_epoch(corpus, tmp_path):
    paper = sg.train.PRESETS["paper"]
    assert (paper.learning_rate, paper.weight_decay, paper.batch_size, paper.mask_fraction) == (5e-5, 1e-4, 64, 0.3)
    assert paper.hidden == (1024, 512, 512, 512, 1024)
    recipe = replace(paper, hidden=(12, 8, 8, 8, 10), learning_rate=0.05, patience=1, max_epochs=30)
    model = run(corpus, tmp_path, recipe, half=False)
    logs = pd.read_csv(next((tmp_path / "model" / "logs").rglob("metrics.csv")))
    rmse = logs["val_rmse"].dropna().to_numpy()
    assert len(rmse) < 30
    assert model.card["validation"]["metrics"]["model"]["rmse"] == pytest.approx(rmse.min(), rel=0.02)
    with pytest.raises(ValueError, match="no section to validate on"):
        run(corpus.with_split({}), tmp_path, recipe)


def test_refusals_before_training(corpus, tmp_path):
    for options, message in (
        ({"recipe": "large"}, "preset='large' is none of"),
        ({"init": "sagefm-mini"}, "sagefm-mini is a"),
    ):
        with pytest.raises(ValueError, match=message):
            run(corpus, tmp_path, **options)
    with pytest.raises(ValueError, match="safetensors"):
        sg.train.pretrain(corpus, RECIPE, out=tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run(corpus, tmp_path, resume=True)
    for name, value in (
        ("mask_fraction", 0),
        ("dropout", 1),
        ("batch_size", 0),
        ("architecture", "gat"),
        ("hidden", (8, 0)),
        ("hidden", ()),
    ):
        with pytest.raises(ValueError, match=name):
            replace(RECIPE, **{name: value})


@pytest.mark.slow
def test_command_line_from_folder_to_model(slides, tmp_path, capsys):
    from sagefm.cli import main

    for name, slide in slides.items():
        slide.write_h5ad(tmp_path / f"{name}.h5ad")
    path = tmp_path / "corpus.zarr"
    assert main(["--quiet", "prepare", str(tmp_path), "-o", str(path), "--exclude", "s0", "--validate", "donor2"]) == 0
    assert "validate" in capsys.readouterr().out
    assert Corpus.open(path).names() == ["s1", "s2", "s3", "s4"]
    changes = ["--hidden", "8", "8", "--max-epochs", "1", "--learning-rate", "0.01"]
    out = tmp_path / "model.safetensors"
    assert main(["--quiet", "pretrain", str(path), "-o", str(out), "--accelerator", "cpu", *changes]) == 0
    assert sg.models.load(out).card["training"]["recipe"]["learning_rate"] == 0.01
    assert main(["--quiet", "prepare", str(tmp_path), "-o", str(path)]) == 1
    assert main(["--quiet", "pretrain", str(tmp_path / "no.zarr"), "-o", str(out)]) == 1
