"""Self-distillation of histology ViTs, of the whole patch and of what is masked of it, as a Lightning module."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax, normalize, softmax

from sagefm._types import Array
from sagefm.histology.views import draw_views
from sagefm.histology.vit import build
from sagefm.train._trainer import ResumableModule, derive_seed

if TYPE_CHECKING:
    from transformers import ViTModel

    from sagefm.histology.encoder import Encoder
    from sagefm.histology.recipe import HistologyRecipe

LEAST_MASKED, MOST_MASKED = 0.1, 0.5  # share of an image's tokens, where it is masked
MASKED_IMAGES = 0.5
STUDENT_TEMPERATURE = 0.1
CENTER_MOMENTUM = 0.9
SAMPLE = 256  # patches whose colors the first weights are fitted to


class Head(nn.Module):
    """Three layers onto the unit sphere, and the cosines with prototypes there.

    The cosines are the published last layer, whose weights are normalised and their norms held at 1.
    """

    def __init__(self, width: int, recipe: HistologyRecipe) -> None:
        super().__init__()
        hidden = recipe.head_width
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, recipe.bottleneck),
        )
        self.prototypes = nn.Parameter(torch.randn(recipe.prototypes, recipe.bottleneck))

    def forward(self, tokens: Tensor) -> Tensor:
        """Cosine of each token with each prototype."""
        return linear(normalize(self.layers(tokens), dim=-1), normalize(self.prototypes, dim=-1))


class Branch(nn.Module):
    """Student or teacher: a vision transformer, and the head that class and patch tokens share."""

    def __init__(self, backbone: ViTModel, recipe: HistologyRecipe) -> None:
        super().__init__()
        self.backbone: nn.Module = backbone
        self.head = Head(recipe.shape.width, recipe)

    def forward(self, images: Tensor, masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs of the class tokens, and of the masked patch tokens in their order; of all patches without masks."""
        tokens = self.backbone(images, bool_masked_pos=masked).last_hidden_state
        patches = tokens[:, 1:] if masked is None else tokens[:, 1:][masked]
        return self.head(tokens[:, 0]).float(), self.head(patches).float()


def draw_masks(n_images: int, n_tokens: int, generator: torch.Generator) -> Tensor:
    """Half of the images masked, each in a random share of its tokens."""
    share = LEAST_MASKED + (MOST_MASKED - LEAST_MASKED) * torch.rand(n_images, generator=generator)
    number = (share * n_tokens).round().clamp(min=1) * (torch.rand(n_images, generator=generator) < MASKED_IMAGES)
    rank = torch.rand(n_images, n_tokens, generator=generator).argsort(dim=1).argsort(dim=1)
    return rank < number[:, None]


def cross_entropy(target: Tensor, output: Tensor) -> Tensor:
    """Of each student's output with the teacher's distribution."""
    return -(target * log_softmax(output / STUDENT_TEMPERATURE, dim=-1)).sum(dim=-1)


def mean_by_image(loss: Tensor, masked: Tensor) -> Tensor:
    """Mean over masked images of the mean over their masked tokens."""
    number = masked.sum(dim=1)
    image = masked.nonzero()[:, 0]
    return (loss / number[image]).sum() / (number > 0).sum().clamp(min=1)


def cosine(first: float, last: float, share: float) -> float:
    """Half a cosine from ``first`` to ``last``."""
    return last + (first - last) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2


@torch.no_grad()
def start(backbone: ViTModel, patches: Array) -> None:
    """First weights with which the class token differs between patches from the start.

    With the usual ones, a narrow transformer's hardly does: it takes what all patches share, their brightness, for
    most of what there is, and outputs fall to the same before they are told apart.
    """
    for layer in backbone.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    pixels = patches[:, ::4, ::4].reshape(-1, 3) / 255
    mean, sd = (torch.from_numpy(of(axis=0)).float() for of in (pixels.mean, pixels.std))
    projection: Any = backbone.embeddings.patch_embeddings.projection
    nn.init.xavier_uniform_(projection.weight.flatten(1))
    projection.weight /= sd[:, None, None]  # as though pixels were standardised
    projection.bias.copy_(-projection.weight.sum(dim=(2, 3)) @ mean)


class IBOT(ResumableModule):
    """Trains a ViT to see in a view what its teacher, an average of its past, sees in another, or behind masks.

    Parameters
    ----------
    recipe
        Hyper-parameters.
    patches
        Arrays of pixels, bytes of shape (n, size, size, 3).
    seed
        Seed of order, views and masks. Weights are drawn from torch's generator.
    init
        Encoder to start from; by default weights are random.

    References
    ----------
    Zhou et al. (2022). iBOT: Image BERT pre-training with online tokenizer. ICLR. arXiv:2111.07832.
    """

    def __init__(
        self,
        recipe: HistologyRecipe,
        patches: Sequence[Array] = (),
        *,
        seed: int = 0,
        init: Encoder | None = None,
    ) -> None:
        super().__init__()
        self.recipe, self.patches, self.seed = recipe, patches, seed
        self._init = None if init is None else init.name
        vit = build(recipe.shape, masked=True)
        if init is not None:
            vit.load_state_dict(init.network.state_dict(), strict=False)  # it has no mask token
        elif len(patches):
            start(vit, patches[0][:SAMPLE])
        self.student = Branch(vit, recipe)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("cls_center", torch.zeros(recipe.prototypes))
        self.register_buffer("patch_center", torch.zeros(recipe.prototypes))
        self.cls_center: Tensor
        self.patch_center: Tensor
        self.register_buffer("loss_sums", torch.zeros(2))  # a buffer, so that checkpoints hold the epoch so far
        self.loss_sums: Tensor
        self.losses: dict[str, float] = {}
        self._n_steps = 1

    def train_dataloader(self) -> Batches:
        """Give this process its share of each batch, in another order each epoch."""
        return Batches(self)

    @property
    def progress(self) -> float:
        """Share of the steps that are done."""
        return self.global_step / self._n_steps

    def on_train_start(self) -> None:
        """Count the steps to come."""
        self._n_steps = int(self.trainer.estimated_stepping_batches)

    def temperature(self) -> float:
        """Of the teacher, now."""
        first, last = self.recipe.teacher_temperature
        return first + (last - first) * min(1.0, self.progress / max(self.recipe.temperature_warmup, 1e-9))

    def compare(self, views: Tensor, masked: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Losses of class tokens and of masked tokens; the teacher's centers take a step.

        ``views`` are the first views of all patches, then the second.
        """
        with torch.no_grad():
            cls, patch = self.teacher(views)
            cls_target = softmax((cls - self.cls_center) / temperature, dim=-1).roll(len(views) // 2, dims=0)
            patch_target = softmax((patch[masked] - self.patch_center) / temperature, dim=-1)
            self._move_centers(cls.mean(dim=0), patch.mean(dim=(0, 1)))
        cls, patch = self.student(views, masked)
        return cross_entropy(cls_target, cls).mean(), mean_by_image(cross_entropy(patch_target, patch), masked)

    def _move_centers(self, cls: Tensor, patch: Tensor) -> None:
        for center, mean in ((self.cls_center, cls), (self.patch_center, patch)):
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(mean)
                mean = mean / torch.distributed.get_world_size()
            center.lerp_(mean, 1 - CENTER_MOMENTUM)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """Loss of this process's share of a batch."""
        seed = derive_seed(self.seed, self.current_epoch, index, self.trainer.global_rank)
        generator = torch.Generator().manual_seed(seed)
        views = torch.cat([draw_views(len(batch), self.recipe.jitter, generator)(batch) for _ in range(2)])
        n_tokens = (self.recipe.shape.size // self.recipe.shape.patch) ** 2
        masked = draw_masks(len(views), n_tokens, generator).to(batch.device)
        cls, patch = self.compare(views, masked, self.temperature())
        self.loss_sums += torch.stack([cls, patch]).detach()
        self.log_dict({"cls_loss": cls.detach(), "patch_loss": patch.detach()}, prog_bar=True, batch_size=len(batch))
        return self.check_loss(cls + self.recipe.patch_weight * patch)

    def on_train_epoch_end(self) -> None:
        """Keep the epoch's losses."""
        cls, patch = (self.loss_sums / self.trainer.num_training_batches).tolist()
        self.losses = {"cls": round(cls, 4), "patch": round(patch, 4)}
        self.loss_sums.zero_()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Hold the prototypes in the first epoch, and set what changes with the steps."""
        if self.current_epoch == 0:
            self.student.head.prototypes.grad = None
        recipe = self.recipe
        rise = (self.progress + 1 / self._n_steps) / max(recipe.warmup, 1e-9)
        fall = cosine(1, 0.01, (self.progress - recipe.warmup) / max(1 - recipe.warmup, 1e-9))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(rise, fall)
            group["weight_decay"] = cosine(*recipe.weight_decay, self.progress) if group["decays"] else 0.0

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Step, and let the teacher follow."""
        super().optimizer_step(*arguments, **options)
        self.move_teacher(cosine(self.recipe.momentum, 1.0, self.progress))

    @torch.no_grad()
    def move_teacher(self, momentum: float) -> None:
        """Average the student into the teacher."""
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            old.lerp_(new, 1 - momentum)

    def finished_network(self) -> ViTModel:
        """The teacher's transformer, without the token that stands for masked ones, on the CPU."""
        with torch.device("meta"):  # without drawing weights
            network = build(self.recipe.shape)
        trained = self.teacher.cpu().backbone.state_dict()
        network.load_state_dict({name: trained[name].clone() for name in network.state_dict()}, assign=True)
        return network.requires_grad_(False).eval()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, whose decay spares biases and norms."""
        parameters = list(self.student.parameters())
        groups = [
            {"params": [one for one in parameters if (one.ndim > 1) is decays], "decays": decays}
            for decays in (True, False)
        ]
        return torch.optim.AdamW(groups, lr=self.recipe.learning_rate)

    def settings(self) -> dict[str, Any]:
        """What tells one training from another."""
        digest = hashlib.sha256()
        for pixels in self.patches:  # one row of each patch tells patches apart, and is quickly read
            digest.update(pixels[:, self.recipe.shape.size // 2].tobytes())
        return {**asdict(self.recipe), "seed": self.seed, "init": self._init, "patches": digest.hexdigest()}


class Batches:
    """Patches in the epoch's order, the same on all processes, of which each gets its share."""

    def __init__(self, module: IBOT) -> None:
        self._module = module
        self._starts = np.cumsum([0, *map(len, module.patches)])

    def __len__(self) -> int:
        return max(1, round(self._starts[-1] / self._module.recipe.batch_size))

    def __iter__(self) -> Iterator[Tensor]:
        module, trainer = self._module, self._module.trainer
        order = np.random.default_rng((module.seed, module.current_epoch)).permutation(self._starts[-1])
        first, module.first_batch = module.first_batch, 0
        for batch in np.array_split(order, len(self))[first:]:
            share = batch[trainer.global_rank :: trainer.world_size]
            section = np.searchsorted(self._starts, share, side="right") - 1
            rows = zip(section, share - self._starts[section], strict=True)
            yield torch.from_numpy(np.stack([module.patches[number][row] for number, row in rows]))
