"""Random views of patches for self-supervised training, a batch at a time, where the batch lies."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from sagefm.histology.encoder import scaled

DARKEST = 1 / 256  # of a stained pixel, whose optical density would else be infinite


@dataclass(frozen=True)
class Jitter:
    """How much views may differ from the patch.

    Parameters
    ----------
    area
        Least share of the patch's area that a view shows; the most is all of it.
    brightness, contrast
        Most relative change of either.
    stain
        Most relative change of a color's optical density.
    """

    area: float = 0.4
    brightness: float = 0.2
    contrast: float = 0.2
    stain: float = 0.2


@dataclass(frozen=True)
class Views:
    """What is done to each patch of a batch; see :func:`draw_views`.

    Parameters
    ----------
    side
        Side of the square that is shown, as a share of the patch's.
    shift
        Its center, columns and rows, where the patch spans -1 to 1; shape (patches, 2).
    turns
        Right angles by which it is turned.
    flip
        1, or -1 where it is mirrored.
    brightness, contrast
        Factors.
    stain
        Factors of the three colors' optical density, shape (patches, 3).
    """

    side: Tensor
    shift: Tensor
    turns: Tensor
    flip: Tensor
    brightness: Tensor
    contrast: Tensor
    stain: Tensor

    def __call__(self, patches: Tensor) -> Tensor:
        """Views of patches, bytes of shape (n, size, size, 3), as 0..1 of shape (n, 3, size, size)."""
        device = patches.device
        side, shift, turns, flip, brightness, contrast, stain = (
            getattr(self, field.name).to(device) for field in fields(self)
        )
        angle = turns * (torch.pi / 2)
        cos, sin = angle.cos().round(), angle.sin().round()
        turned = torch.stack([flip * cos, -sin, flip * sin, cos], dim=1).reshape(-1, 2, 2)
        affine = torch.cat([side[:, None, None] * turned, shift[:, :, None]], dim=2)
        images = scaled(patches)
        grid = affine_grid(affine, list(images.shape), align_corners=False)
        images = grid_sample(images, grid, padding_mode="border", align_corners=False)
        # A factor of the optical density is a power of the intensity.
        images = images.clamp(min=DARKEST) ** stain[:, :, None, None] * brightness[:, None, None, None]
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        return ((images - mean) * contrast[:, None, None, None] + mean).clamp(0, 1)


def draw_views(n_patches: int, jitter: Jitter, generator: torch.Generator) -> Views:
    """Draw what is done to each patch: a square of it, turned by right angles and mirrored, in other colors."""

    def uniform(low: float, high: float, *more: int) -> Tensor:
        return low + (high - low) * torch.rand(n_patches, *more, generator=generator)

    def factor(most: float, *more: int) -> Tensor:
        return uniform(1 - most, 1 + most, *more)

    side = uniform(jitter.area, 1).sqrt()
    return Views(
        side=side,
        shift=uniform(-1, 1, 2) * (1 - side)[:, None],
        turns=torch.randint(4, (n_patches,), generator=generator),
        flip=1 - 2 * torch.randint(2, (n_patches,), generator=generator),
        brightness=factor(jitter.brightness),
        contrast=factor(jitter.contrast),
        stain=factor(jitter.stain, 3),
    )
