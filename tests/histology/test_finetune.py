"""Fine-tuning of an encoder on expression."""

import signal

import numpy as np
import pytest
import torch

import sagefm as sg
from sagefm.histology import vit as _vit
from sagefm.histology.finetune import _TrainedEncoder, turn
from sagefm.models import Encoder

KEY = "histology_expression"


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    shape = _vit.Shape(size=48, patch=16, width=64, depth=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _vit.build(shape)
    return Encoder("tiny", network.requires_grad_(False).eval()).save(
        tmp_path_factory.mktemp("vit") / "vit.safetensors"
    )


FINETUNE = {"method": "finetune", "group_key": "half", "n_epochs": 6, "learning_rate": 1e-3, "device": "cpu"}


@pytest.mark.slow
def test_fine_tuning_learns(predicted, vit):
    adata = predicted.copy()
    sg.tl.predict_expression(adata, 10, model=vit, batch_size=16, **FINETUNE)
    r = adata.uns[KEY]["scores"]["r"]
    assert r.max() > 0.3
    assert adata.uns[KEY]["params"]["method"] == "finetune"
    with pytest.raises(ValueError, match="aren't kept"):
        sg.tl.superresolve_expression(adata, 50)
    found = []
    for seed in (0, 0, 1):
        short = predicted.copy()
        sg.tl.predict_expression(short, 3, model=vit, batch_size=16, rng=seed, **{**FINETUNE, "n_epochs": 1})
        found.append(short.obsm[KEY].to_numpy())
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


@pytest.mark.process
def test_fine_tuning_is_interrupted(predicted, vit, monkeypatch):
    """Lightning would end the interpreter."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without one
    monkeypatch.setattr(_TrainedEncoder, "training_step", lambda *args: signal.raise_signal(signal.SIGINT))
    adata = predicted.copy()
    with pytest.raises(KeyboardInterrupt):
        sg.tl.predict_expression(adata, 5, model=vit, key_added="tuned", **FINETUNE)
    assert "tuned" not in adata.uns


@pytest.mark.slow
def test_fine_tuning_sees_no_held_out_counts(predicted, vit):
    changed = predicted.copy()
    rows = np.flatnonzero(changed.obs["half"] == "upper")
    changed.X[rows] = changed.X[np.random.default_rng(0).permutation(rows)]
    options = {**FINETUNE, "n_epochs": 1}
    before = predicted.copy()
    genes = list(predicted.obsm[KEY].columns[:3])
    for each in (before, changed):
        sg.tl.predict_expression(each, genes, model=vit, **options)
    np.testing.assert_array_equal(before.obsm[KEY].iloc[rows], changed.obsm[KEY].iloc[rows])
    others = np.setdiff1d(np.arange(changed.n_obs), rows)
    assert not np.allclose(before.obsm[KEY].iloc[others], changed.obsm[KEY].iloc[others], atol=1e-5)


@pytest.mark.slow
def test_what_can_not_be_fine_tuned(predicted, vit, monkeypatch):
    with pytest.raises(ValueError, match="texture can't be fine-tuned"):
        sg.tl.predict_expression(predicted, 5, **FINETUNE)
    other = predicted.copy()
    for recorded in ("of somebody else", {"params": "text"}):
        other.uns["X_histology"] = recorded
        with pytest.raises(ValueError, match="pass model"):
            sg.tl.predict_expression(other, 5, **FINETUNE)
    with pytest.raises(ValueError, match="learning_rate"):
        sg.tl.predict_expression(predicted, 5, model=vit, **{**FINETUNE, "learning_rate": 0})
    with pytest.raises(ValueError, match="none of 'ridge'"):
        sg.tl.predict_expression(predicted, 5, method="forest")
    with pytest.raises(RuntimeError, match="isn't finite"):
        sg.tl.predict_expression(predicted, 5, model=vit, **{**FINETUNE, "learning_rate": 1e30})


def test_turns_and_mirrors():
    image = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).float()
    seen = {tuple(turn(image[:1], torch.tensor([kind])).ravel().tolist()) for kind in range(8)}
    assert len(seen) == 8
    for kind in range(4):
        turned = image
        for _ in range(kind):
            turned = turned.transpose(2, 3).flip(2)
        np.testing.assert_array_equal(turn(image, torch.tensor([kind, kind])), turned)
        np.testing.assert_array_equal(turn(image, torch.tensor([kind + 4, kind + 4])), turned.flip(3))
