"""Corpus, stream and pretraining, on small simulated sections."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import anndata as ad
import literal
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import pdist

import sagefm as sg
from sagefm.models._vocabulary import hest1k
from sagefm.train._corpus import Corpus
from sagefm.train._module import MaskedCenter, masked_squared_error
from sagefm.train._niche import Niche
from sagefm.train._stream import Stream

RECIPE = replace(sg.train.PRESETS["mini"], hidden=(12, 8), batch_size=40, max_epochs=2, learning_rate=3e-3)


@pytest.fixture(scope="module")
def slides():
    """Five sections of four donors."""
    slides = {}
    for i in range(5):
        slide = sg.datasets.simulated_visium(7 + i, 8, n_genes=5000, rng=i)
        slide.obs["donor"] = f"donor{min(i, 3)}"
        slide.obs["sample"] = f"s{i}"
        slides[f"s{i}"] = slide
    return slides


@pytest.fixture(scope="module")
def corpus(slides, tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.zarr"
    return sg.train.prepare_corpus(slides, path, split={"donor2": "validate"})


# Corpus


def test_corpus_holds_the_counts_and_the_graph(slides, corpus):
    assert repr(corpus).startswith("Corpus(")
    assert corpus.names("train") == ["s0", "s1", "s3", "s4"]
    assert corpus.names("validate") == ["s2"]
    slide = slides["s1"]
    stored = Corpus.open(corpus.path).read("s1")
    assert list(stored.var_names) == list(hest1k().symbols)
    same = stored[slide.obs_names, slide.var_names]
    assert (same.X != slide.X).nnz == 0
    assert stored.X.dtype == np.uint16
    assert stored.X.sum() == slide.X.sum()
    assert list(stored.var_names[stored.var["measured"]]) == [s for s in hest1k().symbols if s in slide.var_names]
    graph = slide.copy()
    sg.pp.neighborhood_graph(graph)
    assert (same.obsp["sage_connectivities"] != graph.obsp["sage_connectivities"]).nnz == 0
    trained = [
        slide.to_df().reindex(columns=hest1k().symbols, fill_value=0) for n, slide in slides.items() if n != "s2"
    ]
    np.testing.assert_allclose(corpus.gene_mean(), np.log1p(pd.concat(trained).to_numpy()).mean(0), atol=1e-4)


def test_corpus_is_compact(corpus):
    stored = sum(file.stat().st_size for file in corpus.path.rglob("X/**/*") if file.is_file())
    assert stored / corpus.sections["n_values"].sum() < 4


def test_sections_evaluate_as_they_are(corpus, tiny):
    table = sg.benchmark.evaluate_imputation(corpus.iter_sections("validate"), tiny)
    assert table.loc["neighbor mean", "n_spots"] == corpus.sections.loc["s2", "n_spots"]


def test_every_container(slides, corpus, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    slides["s0"].write_h5ad(tmp_path / "s0.h5ad")
    slides["s1"].write_zarr(tmp_path / "s1.zarr")
    spatialdata.SpatialData(tables={"table": slides["s2"].copy()}).write(tmp_path / "s2.zarr")
    both = ad.concat(
        [slides["s3"], slides["s4"]], label="slide", keys=["s3", "s4"], index_unique="-", join="outer", merge="first"
    )
    both.obs["donor"] = "donor3"
    found = sg.train.prepare_corpus(tmp_path, tmp_path / "a.zarr", split={"donor2": "validate"})
    libraries = sg.train.prepare_corpus(both, tmp_path / "b.zarr", library_key="slide", split={})
    digests = pd.concat([found.sections, libraries.sections])["digest"]
    assert list(digests) == list(corpus.sections["digest"])
    assert list(libraries.sections.index) == ["section0_s3", "section0_s4"]


def test_panel_and_odd_sections_are_refused_by_name(slides, tmp_path):
    fractions = slides["s0"].copy()
    fractions.X.data[-1] = 2.5  # beyond what a sample of the values would show
    other = slides["s1"].copy()
    other.obs["donor"] = ["a", "b"] * (other.n_obs // 2)
    path = tmp_path / "corpus.zarr"
    for bad, message in (
        (slides["s1"][:, :50].copy(), "section 'bad': the slide has"),
        (fractions, "section 'bad': .*counts"),
        (other, "section 'bad': split_by='donor' .* holds 2"),
        (slides["s1"][:9].copy(), "section 'bad': "),
    ):
        with pytest.raises(ValueError, match=message):
            sg.train.prepare_corpus({"good": slides["s0"], "bad": bad}, path)
        assert not list(tmp_path.iterdir()), "something was left behind"
    with pytest.raises(KeyError, match="layer 'counts'"):
        sg.train.prepare_corpus(slides, path, layer="counts")
    with pytest.raises(ValueError, match="no section"):
        sg.train.prepare_corpus([], path)


def test_corpus_is_not_overwritten_unasked(slides, corpus):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        sg.train.prepare_corpus(slides, corpus.path)
    with pytest.raises(FileNotFoundError, match="prepare_corpus"):
        Corpus.open(corpus.path / "nothing")
    with pytest.raises(ValueError, match="no corpus"):
        Corpus.open(corpus.path / "section")


def test_random_split_keeps_donors_together(slides, tmp_path):
    splits = set()
    for seed in range(4):
        path = tmp_path / f"{seed}.zarr"
        corpus = sg.train.prepare_corpus(slides, path, fractions=(0.5, 0.25, 0.25), rng=seed)
        assert corpus.sections.groupby("donor")["split"].nunique().max() == 1
        assert corpus.sections.groupby("split", observed=False)["group"].nunique().to_dict() == {
            "train": 2,
            "validate": 1,
            "test": 1,
        }
        splits.add(tuple(corpus.sections["split"]))
    assert len(splits) > 1


def test_leaks_are_refused(slides, corpus, tmp_path, log):
    path = tmp_path / "corpus.zarr"
    with pytest.raises(ValueError, match="donor 'donor3' would be in several splits"):
        sg.train.prepare_corpus(slides, path, split_by="sample", split={"s3": "validate"})
    copied = slides | {"again": slides["s0"].copy()}
    copied["again"].obs["donor"] = "another"
    with pytest.raises(ValueError, match="'s0', 'again' hold the same counts"):
        sg.train.prepare_corpus(copied, path, split={"another": "validate"})
    with pytest.raises(ValueError, match="'donor9', which no section"):
        corpus.with_split({"donor9": "validate"})
    with pytest.raises(ValueError, match="'val' is none of the splits"):
        corpus.with_split({"donor1": "val"})
    with pytest.raises(ValueError, match="nothing to train on"):
        corpus.with_split({f"donor{i}": "test" for i in range(4)})
    table = pd.DataFrame({"group": ["donor1", "donor1"], "split": ["train", "validate"]})
    with pytest.raises(ValueError, match="'donor1' into two splits"):
        corpus.with_split(table)
    table.iloc[:1].assign(split="test").to_csv(tmp_path / "split.csv")
    assert corpus.with_split(tmp_path / "split.csv").names("test") == ["s1"]
    # The paper splits by sample: allowed, and said.
    paper = corpus.with_split("paper")
    assert list(paper.sections["split"].value_counts()[["train", "validate", "test"]]) == [4, 0, 1]
    torn = paper.sections.loc[["s3", "s4"], "split"].nunique() == 2
    assert torn == ("one donor are in different splits" in log.text)


# Stream


def numbers(stream):
    """Which spots each batch holds, by their counts."""
    return [[row.numpy().tobytes() for row in spots.center] for _, spots in stream]


def stream(corpus, **options):
    return Stream(corpus, "train", **{"batch_size": 30, "mask_fraction": 0.3, "shuffle_spots": 150, **options})


def test_every_spot_once_an_epoch_in_an_order_of_the_seed(corpus):
    epoch = [0]
    chosen = stream(corpus, epoch=lambda: epoch[0])
    first = numbers(chosen)
    spots = [spot for batch in first for spot in batch]
    assert len(spots) == len(set(spots)) == corpus.sections.loc[corpus.names("train"), "n_spots"].sum()
    assert len(first) == len(chosen)
    assert {len(batch) for batch in first} <= set(range(20, 41))
    assert numbers(chosen) == first
    epoch[0] = 1
    second = numbers(chosen)
    assert second != first
    assert len(second) == len(first)
    assert {spot for batch in second for spot in batch} == set(spots)
    assert numbers(stream(corpus, seed=1)) != first


@pytest.mark.parametrize("shuffle_spots", [10_000, 150, 37])
def test_neighborhoods_are_whole_whatever_is_in_memory(corpus, shuffle_spots):
    """Windows of a part of a section read the neighbours beyond it."""
    expected = {}
    for adata in corpus.iter_sections("train"):
        x = np.log1p(adata.X.toarray().astype(np.float32))
        sums = adata.obsp["sage_connectivities"] @ x
        expected |= {row.tobytes(): total for row, total in zip(x, sums, strict=True)}
    held = []
    chosen = stream(corpus, shuffle_spots=shuffle_spots)
    for _, spots in chosen:
        for center, neighbor_sum in zip(spots.center.numpy(), spots.neighbor_sum.numpy(), strict=True):
            np.testing.assert_allclose(neighbor_sum, expected[center.tobytes()], atol=1e-4)
        assert (spots.degree == 14).all()
        held.append(len(chosen._held[1]))
    assert max(held) <= shuffle_spots + 2 * chosen.batch_size


def test_processes_share_each_batch(corpus):
    whole = list(stream(corpus))
    shares = [list(stream(corpus, rank=rank, world_size=3)) for rank in range(3)]
    for (_, spots), *parts in zip(whole, *shares, strict=True):
        for name in ("center", "neighbor_sum", "degree", "mask"):
            together = torch.cat([getattr(part, name) for _, part in parts])
            assert torch.equal(together, getattr(spots, name)), name


@pytest.mark.parametrize("n_done", [1, 6, 9])
def test_stream_resumes_at_a_batch(corpus, n_done):
    whole, rest = stream(corpus), stream(corpus)
    rest.first_batch = n_done
    assert numbers(rest) == numbers(whole)[n_done:]
    assert numbers(rest) == numbers(whole), "only the first epoch begins late"


# Objective


@pytest.mark.parametrize("architecture", [sg.models.GCN, sg.models.SAGE])
def test_step_trains_what_the_literal_step_trains(corpus, architecture):
    """Loss and gradients of a batch against one complete PyG graph a spot, masks as the stream drew them."""
    torch.manual_seed(0)
    is_sage = architecture is sg.models.SAGE
    network = architecture(14558, (12, 8) if is_sage else (12, 8, 8, 8, 10)).eval()
    if is_sage:
        with torch.no_grad():
            network.gain.normal_(0.5, 0.1)
    adata = corpus.read("s2")
    x = np.log1p(adata.X.toarray().astype(np.float32))
    neighborhoods = literal.neighborhoods_of(adata.obsp["sage_connectivities"])
    ((_, spots),) = Stream(corpus, "validate", batch_size=1000, mask_fraction=0.3, shuffle=False)

    total = torch.zeros(())
    for center, graph in enumerate(literal.ego_graphs(x, neighborhoods)):
        mask = spots.mask[center]
        graph.x[0, mask] = 0
        extra = {"masked": mask[None]} if is_sage else {}
        prediction = network(graph.x, graph.edge_index, **extra)[0]
        total = total + ((prediction - torch.from_numpy(x[center])) ** 2)[mask].sum()
    expected_loss = total / spots.mask.sum()
    expected_loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}

    network.zero_grad()
    module = MaskedCenter(network, corpus, RECIPE)
    loss = masked_squared_error(module(spots)[0], spots.center, spots.mask) / spots.mask.sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    for name, parameter in network.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max(), name


@pytest.mark.parametrize(
    ("architecture", "hidden"), [(sg.models.GCN, (12, 8, 8, 8, 10)), (sg.models.SAGE, (12, 8)), (sg.models.SAGE, (12,))]
)
def test_another_basis_predicts_the_same(architecture, hidden):
    torch.manual_seed(0)
    network = architecture(14558, hidden).eval().requires_grad_(False)
    x = torch.rand(15, 14558)
    edges = literal.complete_edges(15)
    matrix = torch.rand(hidden[-1], hidden[-1]) + torch.eye(hidden[-1])
    prediction, embedding = network(x, edges), network.embed(x, edges)
    network.change_basis(matrix)
    torch.testing.assert_close(network.embed(x, edges), embedding @ matrix, atol=1e-4, rtol=0)
    torch.testing.assert_close(network(x, edges), prediction, atol=1e-4, rtol=0)


def test_basis_keeps_the_distances_of_the_niche(corpus):
    niche = Niche.fit(corpus, 20)
    z = torch.randn(50, 20)
    turned, mapped = torch.pdist(z @ niche.basis()), torch.pdist(z @ niche.map.weight.T)
    assert (turned / mapped).detach().numpy() == pytest.approx(1, abs=0.05)


def test_niche_tells_domains_apart_and_not_depth(corpus, slides):
    niche = Niche.fit(corpus, 20)
    ((_, spots),) = Stream(corpus, "validate", batch_size=1000, mask_fraction=0.3, shuffle=False)
    target = niche.target(spots)
    # The mean of 15 equal spots and of ones half as deep.
    counts = torch.expm1(spots.center)
    deep, thin = (spots._replace(center=x, neighbor_sum=14 * x) for x in (counts.log1p(), (counts / 2).log1p()))
    assert torch.allclose(niche.target(deep), niche.target(thin), atol=1e-3)
    domain = slides["s2"].obs["domain"][corpus.read("s2").obs_names]
    means = np.stack([target[(domain == name).to_numpy()].mean(0) for name in domain.unique()])
    assert means.std(0).max() > 0.3 * target.std(0).max()


# Pretraining


def run(corpus, folder, recipe=RECIPE, **options):
    return sg.train.pretrain(corpus, recipe, out=folder / "model.safetensors", accelerator="cpu", **options)


def weights(model):
    return torch.cat([parameter.flatten() for parameter in model.network.parameters()])


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return run(corpus, folder, replace(RECIPE, max_epochs=5), card={"licence": "none"}), folder


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


def test_logged_metrics_are_those_of_the_evaluation(corpus, tmp_path):
    """Validation while training and :func:`evaluate_imputation` differ in their masks alone."""
    model = run(corpus, tmp_path, replace(RECIPE, average_from=0.5), half=False)
    logs = pd.read_csv(next((tmp_path / "model" / "logs").rglob("metrics.csv")))
    found = logs["val_rmse"].dropna().iloc[-1]
    assert found == pytest.approx(model.card["validation"]["metrics"]["model"]["rmse"], rel=0.02)


def test_logged_metrics_follow_the_training(corpus, tmp_path):
    """Not those of the average before anything is in it, which are the first weights'."""
    run(corpus, tmp_path, replace(RECIPE, max_epochs=4, average_from=0.5), half=False)
    logs = pd.read_csv(next((tmp_path / "model" / "logs").rglob("metrics.csv")))
    assert logs["val_loss"].dropna().iloc[:3].is_unique  # the fourth sees the average of the third alone


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


def test_corpus_larger_than_memory_trains(corpus, tmp_path):
    """Windows fall otherwise in every epoch; steps and schedule don't notice."""
    model = run(corpus, tmp_path, replace(RECIPE, max_epochs=4), shuffle_spots=90)
    n_spots = corpus.sections.loc[corpus.names("train"), "n_spots"].sum()
    assert model.card["training"]["steps"] == 4 * -(-n_spots // RECIPE.batch_size)
    assert model.card["validation"]["metrics"]["model"]["rmse"] < model.card["validation"]["metrics"]["zeros"]["rmse"]


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


def test_fine_tuning_starts_from_the_model(corpus, trained, tmp_path):
    model, _ = trained
    recipe = replace(RECIPE, learning_rate=1e-7, max_epochs=1, niche_weight=0.0)
    tuned = run(corpus, tmp_path, recipe, init=model, half=False)
    torch.testing.assert_close(weights(tuned), weights(model), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="widths"):
        run(corpus, tmp_path, replace(recipe, hidden=(12, 9)), init=model)


def test_fine_tuning_keeps_the_distances_of_the_embedding(corpus, trained, slide, tmp_path):
    """A map that begins at random would turn the embedding at random."""
    model, _ = trained
    tuned = run(corpus, tmp_path, replace(RECIPE, learning_rate=1e-7, max_epochs=1), init=model, half=False)
    slide = slide.copy()
    sg.tl.sage_embed(slide, model)
    before = pdist(slide.obsm["X_sage"])
    sg.tl.sage_embed(slide, tuned)
    assert np.corrcoef(before, pdist(slide.obsm["X_sage"]))[0, 1] > 0.9999


@pytest.mark.parametrize("n_epochs", [1, 9])
def test_few_steps_train(corpus, tmp_path, n_epochs):
    """The rise of the learning rate is shorter than a step; with nine it is exactly one."""
    run(corpus, tmp_path, replace(RECIPE, batch_size=1000, max_epochs=n_epochs, niche_weight=0.0))


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
    for name, value in (("mask_fraction", 0), ("dropout", 1), ("batch_size", 0), ("architecture", "gat")):
        with pytest.raises(ValueError, match=name):
            replace(RECIPE, **{name: value})


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
