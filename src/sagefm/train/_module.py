"""The masked-central-spot objective as a Lightning module."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sagefm._depth import DepthSpline
from sagefm.models._scores import RunningScores, Summary
from sagefm.models._spots import Spots, predict_and_embed
from sagefm.train._corpus import Corpus
from sagefm.train._niche import Niche
from sagefm.train._recipe import Recipe
from sagefm.train._split import TRAIN, VALIDATE
from sagefm.train._stream import SHUFFLE_SPOTS, Stream
from sagefm.train._trainer import ResumableModule, derive_seed


def masked_squared_error(prediction: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Sum of squared errors over what was masked; divided by its number it is the paper's loss."""
    error = (prediction - truth) * mask
    return torch.dot(error.flatten(), error.flatten())


class MaskedCenter(ResumableModule):
    """Trains a network to predict the masked genes of central spots.

    The step runs the canonical form, whose gradients are those of one complete graph a spot.

    Parameters
    ----------
    network
        A :class:`sagefm.models.GCN` or :class:`sagefm.models.SAGE`.
    corpus
        What to train and validate on.
    recipe
        How.
    niche
        Second target, where the recipe has one.
    seed
        Seed of order, masks and dropout.
    shuffle_spots
        Spots that are in memory at a time.
    """

    def __init__(
        self,
        network: nn.Module,
        corpus: Corpus,
        recipe: Recipe,
        *,
        niche: Niche | None = None,
        seed: int = 0,
        shuffle_spots: int = SHUFFLE_SPOTS,
    ) -> None:
        super().__init__()
        self.network = network
        self.niche = niche
        self.corpus, self.recipe, self.seed, self.shuffle_spots = corpus, recipe, seed, shuffle_spots
        self._scores: dict[str, RunningScores] = {}
        self._splines: dict[str, DepthSpline] = {}

    def _stream(self, split: str, **options: Any) -> Stream:
        return Stream(
            self.corpus,
            split,
            batch_size=self.recipe.batch_size,
            mask_fraction=self.recipe.mask_fraction,
            seed=self.seed,
            device=self.trainer.strategy.root_device,
            **options,
        )

    def train_dataloader(self) -> Iterable[Any]:
        """Batches of the training split: this process's share of each."""
        stream = self._stream(
            TRAIN,
            similar=self.recipe.similar,
            shuffle_spots=self.shuffle_spots,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            epoch=lambda: self.current_epoch,
        )
        stream.first_batch = self.first_batch
        return stream

    def val_dataloader(self) -> Iterable[Any]:
        """Batches of the validation split; every process goes through all."""
        if not self.corpus.names(VALIDATE):
            return []
        similar = float(self.recipe.similar > 0)
        return self._stream(VALIDATE, similar=similar, shuffle=False, shuffle_spots=self.shuffle_spots)

    def forward(self, spots: Spots) -> tuple[Tensor, Tensor]:
        """Predicted log1p counts of all genes, shape (spots, genes), and the embedding."""
        return predict_and_embed(self.network.canonical(), spots)  # type: ignore[operator]

    def loss(self, prediction: Tensor, spots: Spots) -> Tensor:
        """Squared error, summed over what was masked."""
        return masked_squared_error(prediction, spots.center, spots.mask)

    def training_step(self, batch: tuple[str, Spots], index: int) -> Tensor:
        """Loss of this process's share, such that the mean over processes is the loss of the batch."""
        spots = batch[1]
        with _seeded((self.seed, self.global_step, self.trainer.global_rank), spots.center.device):
            prediction, embedding = self(spots)
        totals = torch.stack([spots.mask.sum(), spots.degree.new_tensor(len(spots.center), dtype=torch.int64)])
        if self.trainer.world_size > 1:
            # Shares may differ by a spot, or be empty, and differ in what is masked.
            totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        n_masked, n_spots = totals
        loss = self.loss(prediction.float(), spots) / n_masked * self.trainer.world_size
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(spots.center))
        if self.niche is not None:
            niche_loss = self.niche(embedding, spots) / n_spots * self.trainer.world_size
            self.log("niche_loss", niche_loss.detach(), batch_size=len(spots.center))
            loss = loss + self.recipe.niche_weight * niche_loss
        return self.check_loss(loss)

    def on_validation_epoch_start(self) -> None:
        """Start the scores anew."""
        self._scores = {}

    def validation_step(self, batch: tuple[str, Spots], index: int) -> None:
        """Add a batch to its section's scores."""
        section, spots = batch
        scores = self._scores.setdefault(section, RunningScores(spots.center.shape[1]))
        depth = (spots.center.expm1() * ~spots.mask).sum(1)
        basis = torch.from_numpy(self._spline_of(section)(depth.double().cpu().numpy()))
        scores.add(self(spots)[0].float(), spots.center, spots.mask, basis.to(depth.device))

    def _spline_of(self, section: str) -> DepthSpline:
        """Spline of the depths that a section's spots have while some genes are masked, about."""
        if section not in self._splines:
            total = np.asarray(self.corpus.read(section).X.sum(axis=1), dtype=float).ravel()
            self._splines[section] = DepthSpline(total * (1 - self.recipe.mask_fraction))
        return self._splines[section]

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the epoch."""
        summary = Summary(len(self.corpus.vocabulary))
        for scores in self._scores.values():
            summary.add(scores)
        metrics = summary.metrics()
        self.log("val_loss", metrics["rmse"] ** 2)
        for name in ("rmse", "r_beyond_depth", "r_within", "r_pooled", "r2_spot", "r2_gene"):
            self.log(f"val_{name}", metrics[name], prog_bar=name in ("rmse", "r_beyond_depth"))
        self._scores = {}

    def finished_network(self) -> nn.Module:
        """The network after training, its embedding in the niche's basis, on the CPU."""
        network = self.network.cpu().eval().requires_grad_(False)
        if self.niche is not None:
            network.change_basis(self.niche.cpu().basis())  # type: ignore[operator]
        return network

    def configure_optimizers(self) -> Any:
        """Adam, and the recipe's schedule."""
        recipe = self.recipe
        optimizer = torch.optim.Adam(
            self.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        if recipe.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.9, patience=recipe.patience or 10)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
        n_steps = int(self.trainer.estimated_stepping_batches) + 1
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            recipe.learning_rate,
            total_steps=n_steps,
            pct_start=max(0.1, 2 / n_steps),  # torch divides by 0 where the rise is shorter than two steps
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    def settings(self) -> dict[str, Any]:
        """What tells one training from another."""
        recipe = asdict(self.recipe)
        if self.recipe.schedule == "plateau":  # which may go on for longer
            del recipe["max_epochs"]
        sections = self.corpus.sections[["digest", "split"]].to_csv()
        return {
            **recipe,
            "seed": self.seed,
            "corpus": hashlib.sha256(sections.encode()).hexdigest(),
        }


@contextlib.contextmanager
def _seeded(place: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Random numbers of torch from a seed of our own, with those of the user put back after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(*place))
        yield
