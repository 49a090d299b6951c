"""Recipes of pretraining histology encoders."""

from __future__ import annotations

from dataclasses import dataclass, field

from sagefm._utils import check_positive
from sagefm.histology.views import Jitter
from sagefm.histology.vit import Shape


@dataclass(frozen=True)
class HistologyRecipe:
    """Hyper-parameters of :func:`pretrain_histology`, such as ``sg.train.HISTOLOGY_PRESETS["small"]``.

    ``dataclasses.replace`` changes some.

    Parameters
    ----------
    shape
        Of the vision transformer: pixels a side, pixels of a token's side, width and layers.
    prototypes, head_width, bottleneck
        Of the projection head: outputs, and widths of its layers.
    batch_size
        Patches of a step, over all devices together.
    epochs
        Passes over the patches.
    learning_rate
        Of AdamW, for this batch size, after ``warmup``; it falls to a hundredth along a cosine.
    weight_decay
        At the first and at the last step, along a cosine.
    warmup, temperature_warmup
        Shares of the steps in which the learning rate and the teacher's temperature rise.
    momentum
        Of the teacher at the first step; it rises to 1 along a cosine.
    teacher_temperature
        At the first step, and after its warm-up.
    patch_weight
        Weight of the loss of masked tokens. The published loss counts 0 for images without masks, which are half of
        them: that is a weight of 0.5.
    clip
        Maximum gradient norm.
    jitter
        How views differ from the patch.

    Examples
    --------
    >>> from dataclasses import replace
    >>> import sagefm as sg
    >>> replace(sg.train.HISTOLOGY_PRESETS["small"], epochs=1).epochs
    1
    """

    shape: Shape
    prototypes: int = 8192
    head_width: int = 2048
    bottleneck: int = 256
    batch_size: int = 256
    epochs: int = 400
    learning_rate: float = 5e-4
    weight_decay: tuple[float, float] = (0.04, 0.4)
    warmup: float = 0.025
    temperature_warmup: float = 0.125
    momentum: float = 0.996
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    patch_weight: float = 0.5
    clip: float = 3.0
    jitter: Jitter = field(default_factory=Jitter)

    def __post_init__(self) -> None:
        for name in ("prototypes", "head_width", "bottleneck", "batch_size", "epochs", "learning_rate", "clip"):
            check_positive(name, getattr(self, name))
        for name in ("warmup", "temperature_warmup", "momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} has to lie from 0 to 1.")
        if min(self.teacher_temperature) <= 0 or min(*self.weight_decay, self.patch_weight) < 0:
            raise ValueError("temperatures have to be above 0, weight_decay and patch_weight can't be below 0.")


HISTOLOGY_PRESETS: dict[str, HistologyRecipe] = {
    "small": HistologyRecipe(
        Shape(size=112, patch=16, width=192, depth=6),
        prototypes=256,
        head_width=512,
        bottleneck=128,
        batch_size=32,
        epochs=4,
        learning_rate=5e-4,
        weight_decay=(0.04, 0.04),
        warmup=0.1,
        temperature_warmup=0.3,
        momentum=0.95,
    ),
    "vit-b": HistologyRecipe(Shape(size=224, patch=16, width=768, depth=12)),
}
