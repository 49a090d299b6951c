"""A small network that predicts likelihoods of classes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sagefm._types import Array, Floats

if TYPE_CHECKING:
    import torch

    from sagefm.tl._labels.held_out import Predict

N_UNITS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 128, 128, 1e-3, 1e-4


def fit_network(
    points: Array,
    target: Floats,
    *,
    n_layers: int,
    n_epochs: int,
    device: torch.device,
    seed: int,
    n_units: int = N_UNITS,
) -> Predict:
    """Fit a network of sigmoid outputs by binary cross-entropy on standardised points."""
    import torch
    from torch import nn

    center, spread = points.mean(axis=0), points.std(axis=0)
    spread = np.where(spread > 0, spread, 1)

    def to_input(points: Array) -> torch.Tensor:
        return torch.as_tensor((points - center) / spread, dtype=torch.float32, device=device)

    x = to_input(points)
    y = torch.tensor(target, dtype=torch.float32, device=device)  # a copy: pandas' arrays may be read-only
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        widths = [points.shape[1], *[n_units] * (n_layers - 1)]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU()]
        network = nn.Sequential(*layers, nn.Linear(widths[-1], target.shape[1])).to(device)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(n_epochs):
        for rows in torch.randperm(len(x), generator=order).to(device).split(BATCH_SIZE):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(network(x[rows]), y[rows]).backward()
            optimizer.step()

    def predict(points: Array) -> Floats:
        with torch.no_grad():
            return np.asarray(torch.sigmoid(network(to_input(points))).cpu().numpy(), dtype=float)

    return predict
