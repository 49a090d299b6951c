"""Checkpoints of runs that were interrupted."""

from dataclasses import replace

import pytest
import torch

import sagefm as sg
from sagefm.train import _pretrain, _trainer
from sagefm.train._module import MaskedCenter

RECIPE = replace(sg.train.PRESETS["mini"], hidden=(8, 8), max_epochs=3, batch_size=16)  # four batches an epoch


def train(inputs, out, **options):
    out = out / "model.safetensors"
    return sg.train.pretrain(inputs / "corpus.zarr", RECIPE, out=out, accelerator="cpu", half=False, **options)


@pytest.mark.slow
def test_no_epoch_is_skipped_after_a_checkpoint_at_its_end(inputs, tmp_path, monkeypatch):
    """Lightning resumes after the last batch of an epoch without its end and the next epoch."""
    expected = train(inputs, tmp_path / "whole")
    step = MaskedCenter.training_step

    def interrupted(self, batch, index):
        if self.global_step == 6:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(MaskedCenter, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(inputs, tmp_path / "broken", checkpoint_steps=4)
    seen = []

    def counted(self, batch, index):
        seen.append(self.global_step)
        return step(self, batch, index)

    monkeypatch.setattr(MaskedCenter, "training_step", counted)
    found = train(inputs, tmp_path / "broken", checkpoint_steps=4, resume=True)
    assert seen == list(range(5, 12))
    weights = [model.network.state_dict().values() for model in (found, expected)]
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


@pytest.mark.slow
def test_checkpoints_of_another_training_arent_resumed(inputs):
    """As lies there when the same file is trained anew and killed before its first checkpoint."""
    corpus, checkpoint = sg.train.Corpus.open(inputs / "corpus.zarr"), {}
    _pretrain.build(corpus, RECIPE).on_save_checkpoint(checkpoint)
    _pretrain.build(corpus, RECIPE).on_load_checkpoint(checkpoint)
    for recipe, seed, message in (
        (replace(RECIPE, learning_rate=0.1), 0, "another training: learning_rate is 0.1 here and was 0.001 there"),
        (RECIPE, 1, "seed is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            _pretrain.build(corpus, recipe, seed=seed).on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="corpus is "):
        _pretrain.build(corpus.with_split({}), RECIPE).on_load_checkpoint(checkpoint)


def test_a_checkpoint_stays_until_the_next_is_complete(tmp_path):
    writer, path = _trainer.AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    writer.save_checkpoint({"step": 1}, path)
    with pytest.raises((AttributeError, TypeError)):  # from the middle of it
        writer.save_checkpoint({"step": 2, "weights": torch.zeros(10), "bad": lambda: None}, path)
    assert torch.load(path)["step"] == 1
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
