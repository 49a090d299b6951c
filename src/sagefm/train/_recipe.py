"""Training recipe: hyper-parameters, and presets of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sagefm._utils import check_choice
from sagefm.models._architectures import ARCHITECTURES, PUBLISHED_HIDDEN


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of pretraining, such as ``sg.train.PRESETS["mini"]``; ``dataclasses.replace`` changes some.

    Parameters
    ----------
    architecture
        ``"gcn"``, the published family, or ``"sage"``.
    hidden
        Widths of the layers; the last is the embedding's.
    dropout
        Share of the embedding dropped before the decoder (``"sage"`` alone).
    mask_fraction
        Each gene of the center is masked with this probability; the loss is the mean squared error on those.
    learning_rate, weight_decay
        Of Adam. The decay is added to the gradient, as in the published script.
    batch_size
        Spots of a step, over all devices together.
    max_epochs
        Epochs at most.
    schedule
        ``"plateau"`` multiplies the learning rate by 0.9 when the validation loss hasn't fallen for ``patience``
        epochs, as the published script; ``"one_cycle"`` warms up over a tenth of the steps, then falls to zero.
    patience
        Epochs without a lower validation loss until training stops; None never stops.
    average_from
        Average the weights of the epochs after this share of them; None takes those of the best epoch by validation
        loss, or the last without validation.
    start_at_mean
        Start the decoder at each gene's mean in training. Where its last ReLU is below zero for all spots a
        gene has no gradient, so that with the usual start many genes are never learnt on little data.
    similar
        Share of the sections, drawn anew in each epoch, that show their similar spots to the decoder, while a whole
        fold of the genes is masked at all of their spots, as in :func:`sagefm.tl.impute`. On the others genes are
        masked at random and the neighbors take the place of the similar spots, as on small slides (``"sage"`` alone).
    niche_weight
        Weight of a second loss: a linear map of the embedding has to give the composition of the neighborhood, which
        depth doesn't change. Afterwards the embedding is turned so that distances are those of the map; predictions
        stay as they are. Without it the embedding of the ``"sage"`` family is mostly the spot's depth.

    Examples
    --------
    >>> from dataclasses import replace
    >>> import sagefm as sg
    >>> replace(sg.train.PRESETS["mini"], hidden=(64, 64)).hidden
    (64, 64)
    """

    architecture: Literal["gcn", "sage"]
    hidden: tuple[int, ...]
    dropout: float = 0.0
    mask_fraction: float = 0.3
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 128
    max_epochs: int = 12
    schedule: Literal["plateau", "one_cycle"] = "one_cycle"
    patience: int | None = None
    average_from: float | None = 0.5
    start_at_mean: bool = True
    niche_weight: float = 0.0
    similar: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (("mask_fraction", 0, 1), ("dropout", 0, 1), ("average_from", 0, 1)):
            value = getattr(self, name)
            if value is not None and not low <= value < high:
                raise ValueError(f"{name}={value!r} has to lie from {low} to below {high}.")
        if self.mask_fraction <= 0:
            raise ValueError("mask_fraction has to be above 0: what isn't masked isn't learnt.")
        for name in ("learning_rate", "batch_size", "max_epochs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} has to be above 0.")
        if not 0 <= self.similar <= 1:
            raise ValueError(f"similar={self.similar!r} has to lie from 0 to 1.")
        if self.weight_decay < 0 or self.niche_weight < 0:
            raise ValueError("weight_decay and niche_weight can't be below 0.")
        check_choice("architecture", self.architecture, ARCHITECTURES)
        ARCHITECTURES[self.architecture].shapes(1, self.hidden)  # refuses what are no widths
        check_choice("schedule", self.schedule, ("plateau", "one_cycle"))


MINI = Recipe(architecture="sage", hidden=(160, 160), dropout=0.2, max_epochs=8, niche_weight=0.03, similar=0.8)
PRESETS: dict[str, Recipe] = {
    "paper": Recipe(
        architecture="gcn",
        hidden=PUBLISHED_HIDDEN,
        learning_rate=5e-5,
        weight_decay=1e-4,
        batch_size=64,
        max_epochs=500,
        schedule="plateau",
        patience=10,
        average_from=None,
        start_at_mean=False,
    ),
    "mini": MINI,
    "nano": replace(MINI, hidden=(48, 48)),
}
