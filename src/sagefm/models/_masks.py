"""Random masks that depend on nothing but a seed and the spot."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sagefm._types import Ints

TAPE_LENGTH = 1 << 22


class RandomMasks:
    """Mask of random genes for every spot, the same on every device and in every process.

    A tape of independent draws is made once; each spot reads it from a random place on. That costs a copy
    instead of a draw a gene, and one spot's mask doesn't depend on which others are asked for with it.

    Parameters
    ----------
    n_genes
        Genes of a spot.
    fraction
        Share of the genes to mask; each is masked with this probability.
    seed
        Numbers that the masks depend on, such as a seed and an epoch.
    device
        Where the masks are needed.
    """

    def __init__(
        self, n_genes: int, fraction: float, seed: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> None:
        rng = np.random.default_rng(seed)
        self._places = TAPE_LENGTH
        self._key = int(rng.integers(1 << 62))
        tape = torch.from_numpy(rng.random(self._places + n_genes, dtype=np.float32) < fraction).to(device)
        self._windows = tape.unfold(0, n_genes, 1)

    def __call__(self, spots: Ints) -> Tensor:
        """Masks of some spots (any numbers that name them), boolean, shape (spots, genes)."""
        far_apart = scatter(spots, self._key) % np.uint64(self._places)
        places = torch.from_numpy(far_apart.astype(np.int64))
        return self._windows.index_select(0, places.to(self._windows.device))


def scatter(numbers: NDArray[np.integer], key: int) -> NDArray[np.uint64]:
    """Numbers that are near made into ones that are far apart (splitmix64)."""
    with np.errstate(over="ignore"):
        z = numbers.astype(np.uint64) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
