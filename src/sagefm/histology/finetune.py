"""Regression of expression by a histology encoder that is trained along."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sagefm._types import Array, Floats32, Ints, Strings
from sagefm._utils import get_device
from sagefm.histology.encoder import Encoder, scaled
from sagefm.train._trainer import fit

if TYPE_CHECKING:
    from sagefm.histology.expression import Predictor


class FineTunedRegressor:
    """Trains a copy of the encoder with a layer norm and a linear layer on top, by mean squared error (Adam)."""

    def __init__(
        self, encoder: Encoder, *, n_epochs: int, learning_rate: float, batch_size: int, device: str, seed: int
    ) -> None:
        self.encoder, self.n_epochs, self.learning_rate = encoder, n_epochs, learning_rate
        self.batch_size, self.device, self.seed = batch_size, get_device(device), seed

    def fit(self, inputs: Array, target: Floats32, groups: Strings, rows: Ints) -> Predictor:
        """Fit pixels, shape (spots, size, size, 3); nothing is chosen, so groups aren't looked at."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            module = _TrainedEncoder(self.encoder, torch.from_numpy(target[rows]), self.learning_rate, self.seed)
        loader = DataLoader(
            TensorDataset(torch.from_numpy(rows), torch.from_numpy(target[rows])),
            self.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(self.seed),
            collate_fn=lambda batch: (  # pixels may lie in a file: only those of a batch are read
                torch.from_numpy(inputs[[int(row) for row, _ in batch]]),
                torch.stack([values for _, values in batch]),
            ),
        )
        accelerator = {"cuda": "gpu"}.get(self.device.type, self.device.type)
        fit(module, None, loader, max_epochs=self.n_epochs, accelerator=accelerator, devices=1)
        module.eval().to(self.device)

        def predict(pixels: Array) -> Floats32:
            with torch.inference_mode():
                batches = torch.from_numpy(np.asarray(pixels)).split(self.batch_size)
                found = [module(scaled(batch.to(self.device))).clamp(min=0).cpu() for batch in batches]
            return torch.cat(found).numpy()

        return predict


class _TrainedEncoder(lightning.LightningModule):
    """Encoder, and the head that predicts expression."""

    def __init__(self, encoder: Encoder, target: Tensor, learning_rate: float, seed: int) -> None:
        super().__init__()
        self.network = copy.deepcopy(encoder.network).requires_grad_(True).train()
        linear = nn.Linear(encoder.width, target.shape[1])
        with torch.no_grad():  # the mean is known, and at this rate would take long to learn
            linear.bias.copy_(target.mean(dim=0))
        self.head = nn.Sequential(nn.LayerNorm(encoder.width), linear)
        self.learning_rate = learning_rate
        self._random = torch.Generator().manual_seed(seed + 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.network(pixels).last_hidden_state[:, 0])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        pixels, target = batch
        turned = turn(scaled(pixels), torch.randint(8, (len(pixels),), generator=self._random))
        loss = nn.functional.mse_loss(self(turned), target)
        if not torch.isfinite(loss):
            raise RuntimeError("the loss of fine-tuning isn't finite. Lower learning_rate.")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.learning_rate)


def turn(images: Tensor, which: Tensor) -> Tensor:
    """Images, shape (n, 3, size, size), turned by 0 to 3 right angles (``which`` 0 to 3), and mirrored too (4 to 7)."""
    turned = torch.empty_like(images)
    for kind in which.unique().tolist():
        rows = (which == kind).to(images.device)
        part = torch.rot90(images[rows], kind % 4, dims=(2, 3))
        turned[rows] = part.flip(3) if kind >= 4 else part
    return turned
