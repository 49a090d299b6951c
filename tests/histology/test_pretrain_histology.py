"""Self-supervised pretraining of histology encoders, against plain formulas and on painted slides."""

import logging
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

import sagefm as sg
from sagefm.histology import ibot as _ibot
from sagefm.histology import pretrain as _pretrain_histology
from sagefm.histology.ibot import IBOT
from sagefm.histology.spot_patches import open_patches
from sagefm.histology.views import Jitter, Views, draw_views

SMALL = sg.train.HISTOLOGY_PRESETS["small"]
TINY = replace(
    SMALL,
    shape=replace(SMALL.shape, size=32, patch=8, width=64, depth=2),
    prototypes=32,
    head_width=64,
    bottleneck=16,
    batch_size=32,
    epochs=2,
)


@pytest.fixture(scope="module")
def slide():
    adata = sg.datasets.simulated_visium(6, 6, n_genes=300, image=True, rng=3)
    sg.pp.histology_patches(adata, size=64)
    return adata


@pytest.fixture
def module():
    torch.manual_seed(0)
    return IBOT(TINY)


@pytest.fixture
def patches():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))


def pretrain(slides, path, recipe=TINY, **options):
    return sg.train.pretrain_histology(slides, recipe, out=path, accelerator="cpu", **options)


def weights(encoder):
    return torch.cat([parameter.flatten() for parameter in encoder.network.parameters()])


# The objective.


def probabilities(logits):
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def plain_cross_entropy(teacher, center, temperature, student):
    target = probabilities((teacher - center) / temperature)
    output = probabilities(student / 0.1)
    return -sum(p * np.log(q) for p, q in zip(target, output, strict=True))


def test_losses_are_the_plain_formulas(module, patches):
    """Every pair of views and every masked token by itself."""
    generator = torch.Generator().manual_seed(0)
    views = torch.cat([draw_views(6, TINY.jitter, generator)(patches) for _ in range(2)])
    masked = _ibot.draw_masks(12, 16, generator)
    assert 0 < masked.any(dim=1).sum() < 12
    module.cls_center.normal_(std=0.1)
    module.patch_center.normal_(std=0.1)
    for parameter in module.student.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    centers = [center.double().numpy().copy() for center in (module.cls_center, module.patch_center)]
    with torch.no_grad():
        teacher = [part.double().numpy() for part in module.teacher(views)]
        tokens = module.student.backbone(views, bool_masked_pos=masked).last_hidden_state
        student = module.student.head(tokens).double().numpy()

    cls = []
    for patch in range(6):
        for view, other in ((patch, patch + 6), (patch + 6, patch)):
            cls.append(plain_cross_entropy(teacher[0][other], centers[0], 0.05, student[view, 0]))
    patch = []
    for image in range(12):
        hidden = np.flatnonzero(masked[image])
        losses = [
            plain_cross_entropy(teacher[1][image, token], centers[1], 0.05, student[image, 1 + token])
            for token in hidden
        ]
        if len(hidden):
            patch.append(np.mean(losses))
    found = module.compare(views, masked, 0.05)
    assert found[0].item() == pytest.approx(np.mean(cls), rel=1e-4)
    assert found[1].item() == pytest.approx(np.mean(patch), rel=1e-4)
    for center, before, output in zip((module.cls_center, module.patch_center), centers, teacher, strict=True):
        mean = output.reshape(-1, output.shape[-1]).mean(axis=0)
        np.testing.assert_allclose(center, 0.9 * before + 0.1 * mean, atol=1e-6)


def test_the_teacher_follows_and_learns_nothing_else(module, patches):
    views = torch.cat([patches, patches]).permute(0, 3, 1, 2) / 255
    masked = torch.zeros(12, 16, dtype=torch.bool)
    masked[:, :3] = True
    sum(module.compare(views, masked, 0.05)).backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in module.teacher.parameters())
    assert all(parameter.grad is not None for parameter in module.student.parameters())
    before = [parameter.clone() for parameter in module.teacher.parameters()]
    for parameter in module.student.parameters():
        parameter.data += 1
    for _ in range(3):
        module.move_teacher(0.9)
    for old, new, goal in zip(before, module.teacher.parameters(), module.student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9**3 * old + (1 - 0.9**3) * goal, rtol=1e-5, atol=1e-5)


def test_without_masks_there_is_no_loss_of_them(module, patches):
    views = torch.cat([patches, patches]).permute(0, 3, 1, 2) / 255
    cls, patch = module.compare(views, torch.zeros(12, 16, dtype=torch.bool), 0.05)
    assert patch.item() == 0
    (cls + patch).backward()


def test_first_weights(patches):
    """As though pixels were standardised; the class token differs between patches from the start."""
    torch.manual_seed(0)
    backbone = IBOT(TINY, [patches.numpy()]).student.backbone
    tokens = backbone.embeddings.patch_embeddings(patches.permute(0, 3, 1, 2) / 255)
    assert tokens.mean(dim=(0, 1)).abs().max() < tokens.std()
    assert 0.5 < tokens.std() < 2
    features = backbone(patches.permute(0, 3, 1, 2) / 255).last_hidden_state[:, 0]
    assert features.std(dim=0).mean() > 0.05


def test_masks():
    masked = _ibot.draw_masks(2000, 49, torch.Generator().manual_seed(0))
    share = masked.float().mean(dim=1)
    assert share.gt(0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert share[share > 0].min() > 0.08
    assert share.max() < 0.52
    assert share[share > 0].mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(masked.float().mean(dim=0), 0.15, atol=0.04)  # any token


def test_schedules():
    assert _ibot.cosine(0.9, 1.0, 0) == pytest.approx(0.9)
    assert _ibot.cosine(0.9, 1.0, 0.5) == pytest.approx(0.95)
    assert _ibot.cosine(0.9, 1.0, 1) == _ibot.cosine(0.9, 1.0, 7) == 1
    assert _ibot.cosine(1, 0.01, -1) == 1


# Views.


def views(n, **changes):
    """That leave patches as they are, but for some."""
    ones = torch.ones(n)
    same = Views(ones, torch.zeros(n, 2), torch.zeros(n), ones, ones, ones, torch.ones(n, 3))
    return replace(same, **changes)


def test_views_of_identity(patches):
    patches = patches.clamp(min=1)
    found = views(6)(patches)
    torch.testing.assert_close(found, patches.permute(0, 3, 1, 2) / 255, rtol=0, atol=1e-5)
    black = views(6)(torch.zeros_like(patches))
    assert black.max() <= 1 / 255


def test_views_turn_and_flip(patches):
    """By right angles, pixel for pixel; four of them are none."""
    plain = (patches.clamp(min=1).permute(0, 3, 1, 2) / 255).numpy()
    seen = []
    for turns in range(5):
        for flip in (1.0, -1.0):
            found = views(6, turns=torch.full((6,), turns), flip=torch.full((6,), flip))(patches.clamp(min=1)).numpy()
            options = [np.rot90(plain[..., ::direction], k, axes=(2, 3)) for direction in (1, -1) for k in range(4)]
            (which,) = [i for i, option in enumerate(options) if np.abs(option - found).max() < 1e-5]
            seen.append(which)
    assert sorted(seen[:8]) == list(range(8))
    assert seen[8:] == seen[:2]
    assert seen[0] == 0


def test_views_crop(patches):
    """The upper left quarter, at twice the size."""
    smooth = torch.nn.functional.interpolate(patches.permute(0, 3, 1, 2).float(), size=128, mode="bilinear")
    smooth = smooth.round().byte().clamp(min=1).permute(0, 2, 3, 1)
    found = views(6, side=torch.full((6,), 0.5), shift=torch.full((6, 2), -0.5))(smooth)
    expected = torch.nn.functional.interpolate(smooth[:, :64, :64].permute(0, 3, 1, 2) / 255, size=128, mode="bilinear")
    torch.testing.assert_close(found[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-4, rtol=0)


def test_views_in_other_colors(patches):
    patches = patches.clamp(min=20, max=200)
    plain = patches.permute(0, 3, 1, 2) / 255
    stain = torch.rand(6, 3) + 0.5
    expected = torch.exp(torch.log(plain) * stain[:, :, None, None])  # the optical density, times the factor
    torch.testing.assert_close(views(6, stain=stain)(patches), expected.clamp(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(views(6, brightness=torch.full((6,), 0.5))(patches), plain / 2, atol=1e-5, rtol=0)
    flat = views(6, contrast=torch.zeros(6))(patches)
    torch.testing.assert_close(flat, plain.mean(dim=(1, 2, 3), keepdim=True).expand_as(flat), atol=1e-5, rtol=0)


def test_views_are_of_the_seed(patches):
    def seen(seed):
        return draw_views(6, Jitter(), torch.Generator().manual_seed(seed))(patches)

    assert torch.equal(seen(1), seen(1))
    assert not torch.equal(seen(1), seen(2))
    assert 0 <= seen(1).min() <= seen(1).max() <= 1
    drawn = draw_views(1000, Jitter(), torch.Generator().manual_seed(0))
    assert 0.4 <= drawn.side.square().min() < 0.45
    assert (drawn.shift.abs() <= 1 - drawn.side[:, None] + 1e-6).all()
    assert set(drawn.turns.tolist()) == {0, 1, 2, 3}
    assert set(drawn.flip.tolist()) == {-1, 1}


# Patches.


def test_places_lie_on_tissue(slide, log):
    ((_, patches),) = open_patches(slide, None, "histology")
    places = _pretrain_histology.draw_places(patches, 150, np.random.default_rng(0))
    assert len(places) == 150
    distance = np.abs(places[:, None] - patches.centers).max(axis=2).min(axis=1)
    assert distance.max() <= patches.width
    assert (distance == 0).sum() >= 30  # the spots
    few = _pretrain_histology.draw_places(patches, 10, np.random.default_rng(0))
    assert len(np.unique(few, axis=0)) == 10
    glass = replace(patches, image=replace(patches.image, pixels=np.full((900, 900, 3), 250, np.uint8)))
    with pytest.raises(ValueError, match="has 25% tissue"):
        _pretrain_histology.draw_places(glass, 10, np.random.default_rng(0))


def test_patches_keep_their_field_of_view(slide, monkeypatch):
    """Read from every kind of slide, in memory or on disk."""
    (found,) = _pretrain_histology.gather([slide], 32, 36, 0, "histology", "table")
    assert found.shape == (36, 32, 32, 3)
    ((_, patches),) = open_patches(slide, None, "histology")
    places = _pretrain_histology.draw_places(patches, 36, np.random.default_rng((0, 0, 0)))
    pixels = patches.image.pixels
    for place, patch in zip(places, found, strict=True):
        x, y = np.rint(place - 32).astype(int)
        whole = pixels[y : y + 64, x : x + 64].astype(float)
        halved = whole.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - patch).mean() < 6
    monkeypatch.setattr(sg.settings, "_memory_limit", 0.0)
    (again,) = _pretrain_histology.gather([slide], 32, 36, 0, "histology", "table")
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(again, found)


# Training.


@pytest.mark.slow
def test_it_learns_without_collapse(slide, tmp_path, log):
    recipe = replace(TINY, epochs=10, learning_rate=2e-3, momentum=0.9, jitter=Jitter(0.9, 0.05, 0.05, 0.05))
    path = tmp_path / "runs" / "tiny.safetensors"
    encoder = pretrain(slide, path, recipe, n_patches=128)
    training = encoder.card["training"]
    uniform = np.log(TINY.prototypes)  # what says nothing pays that
    assert training["losses"]["cls"] < 0.8 * uniform
    assert training["losses"]["patch"] < 0.9 * uniform
    expected = {"preset": "own", "slides": 1, "patches": 128, "epochs": 10, "steps": 40, "seed": 0, "init": None}
    assert expected.items() <= training.items()
    assert training["recipe"]["shape"]["size"] == 32

    back = sg.models.load_encoder(path)
    assert (back.name, back.size, back.width) == ("tiny", 32, 64)
    assert back.card["training"]["losses"] == training["losses"]
    assert torch.equal(weights(back), weights(encoder))
    with safe_open(path, "pt") as file:
        assert not [name for name in file.keys() if "mask" in name or "head" in name]
    (pixels,) = _pretrain_histology.gather([slide], 32, 36, 0, "histology", "table")
    features = back.embed(pixels, "cpu")
    assert features.std(axis=0).mean() > 0.1
    assert "collapsed" not in log.text
    assert "Wrote" in log.text
    assert list((tmp_path / "runs" / "tiny" / "logs").rglob("metrics.csv"))


@pytest.mark.slow
def test_seeds(slide, tmp_path):
    recipe = replace(TINY, epochs=1)
    before = torch.get_rng_state()
    first, again, other = (
        pretrain(slide, tmp_path / f"{i}.safetensors", recipe, n_patches=40, rng=seed)
        for i, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    assert torch.equal(torch.get_rng_state(), before)


def interrupt_at(monkeypatch, n_steps):
    """Ctrl-C before a step; returns the steps that are begun."""
    seen, step = [], IBOT.training_step

    def training_step(self, batch, index):
        if self.global_step == n_steps:
            signal.raise_signal(signal.SIGINT)
        seen.append(self.global_step)
        return step(self, batch, index)

    monkeypatch.setattr(IBOT, "training_step", training_step)
    return seen


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("n_steps", [3, 5], ids=["first epoch", "last epoch"])
def test_a_resumed_run_is_the_same_bit_for_bit(slide, tmp_path, monkeypatch, n_steps):
    options = {"n_patches": 130, "checkpoint_steps": 1}  # four batches an epoch
    expected = pretrain(slide, tmp_path / "whole.safetensors", **options)
    path = tmp_path / "broken.safetensors"
    with pytest.raises(FileNotFoundError, match="to resume from"):
        pretrain(slide, path, resume=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without one
    with monkeypatch.context() as patch:
        interrupt_at(patch, n_steps)
        with pytest.raises(KeyboardInterrupt):
            pretrain(slide, path, **options)
    assert not path.exists()
    for changed, message in (
        ({"recipe": replace(TINY, learning_rate=0.1)}, "learning_rate is 0.1 here and was 0.0005 there"),
        ({"recipe": replace(TINY, jitter=Jitter(area=0.9))}, "jitter is .*'area': 0.9"),
        ({"epochs": 3}, "epochs is 3 here and was 2"),
        ({"rng": 1}, "seed is 1 here and was 0"),
        ({"n_patches": 129}, "patches is "),
        ({"init": tmp_path / "whole.safetensors"}, "init is 'whole' here and was None"),
    ):
        with pytest.raises(ValueError, match=f"another training: {message}"):
            pretrain(slide, path, resume=True, **{**options, **changed})
    seen = interrupt_at(monkeypatch, -1)
    resumed = pretrain(slide, path, resume=True, **options)
    assert seen == list(range(n_steps, 8))
    assert torch.equal(weights(resumed), weights(expected))
    assert resumed.card == expected.card


@pytest.mark.slow
def test_several_slides_and_a_start(slide, tmp_path):
    slide.write_h5ad(tmp_path / "slide.h5ad")
    path = tmp_path / "first.safetensors"
    first = pretrain([slide, tmp_path / "slide.h5ad"], path, epochs=1, n_patches=20, name="mine")
    assert first.name == "mine"
    assert first.card["training"]["slides"] == 2
    assert first.card["training"]["patches"] == 40
    still = replace(TINY, epochs=1, learning_rate=1e-12, weight_decay=(0, 0))
    second = pretrain(slide, tmp_path / "second.safetensors", still, n_patches=20, init=path)
    torch.testing.assert_close(weights(second), weights(first), rtol=0, atol=1e-6)
    assert second.card["training"]["init"] == "mine"
    with pytest.raises(ValueError, match="Change the recipe"):
        pretrain(slide, path, SMALL, init=path)


def test_refusals(slide, tmp_path, monkeypatch):
    path = tmp_path / "out.safetensors"
    with pytest.raises(KeyError, match=r"Run sg\.pp\.histology_patches"):
        pretrain(sg.datasets.simulated_visium(4, 4, n_genes=300), path)
    with pytest.raises(ValueError, match=r"has to end with \.safetensors"):
        pretrain(slide, tmp_path / "out.pt")
    with pytest.raises(ValueError, match="'large' is none of 'small', 'vit-b'"):
        pretrain(slide, path, "large")
    with pytest.raises(ValueError, match="slides is empty"):
        pretrain([], path)
    with pytest.raises(ValueError, match="epochs=0 has to be at least 1"):
        pretrain(slide, path, epochs=0)
    with pytest.raises(FileNotFoundError, match="no slide at"):
        pretrain(tmp_path / "nowhere.h5ad", path)
    with pytest.raises(ValueError, match="learning_rate=0 has to be above 0"):
        replace(TINY, learning_rate=0)
    with pytest.raises(ValueError, match="momentum=2 has to lie from 0 to 1"):
        replace(TINY, momentum=2)
    with pytest.raises(ValueError, match="temperatures have to be above 0"):
        replace(TINY, teacher_temperature=(0, 1))
    monkeypatch.setattr(_ibot, "cross_entropy", lambda target, output: (target * output).sum(dim=-1) * np.nan)
    with pytest.raises(RuntimeError, match="the loss is nan at step 0"):
        pretrain(slide, path, n_patches=20)
    assert not path.exists()


def test_collapse_is_said(slide, tmp_path, monkeypatch, log):
    monkeypatch.setattr(_pretrain_histology, "FLAT", 1e3)
    with log.at_level(logging.WARNING):
        pretrain(slide, tmp_path / "out.safetensors", epochs=1, n_patches=20)
    assert "sees no difference between patches" in log.text


def test_without_lightning(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    for name in ("histology.pretrain", "histology.ibot", "train._trainer"):
        monkeypatch.delitem(sys.modules, f"sagefm.{name}")
    with pytest.raises(ModuleNotFoundError, match="pretrain_histology needs Lightning"):
        _ = sg.train.pretrain_histology
