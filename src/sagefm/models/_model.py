"""A loaded model: network, vocabulary and card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sagefm.models._vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import nn

    from sagefm.models._calibration import Calibration
    from sagefm.models._canonical import Canonical


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A model with its vocabulary and its card, as :func:`sagefm.models.load` returns it.

    Parameters
    ----------
    name
        Name of the model; results record it.
    network
        The PyTorch Geometric module that defines the model, such as :class:`sagefm.models.GCN`.
    vocabulary
        Genes in the order of the network's input columns.
    n_spots
        Spots of a neighbourhood in training, the centre included.
    card
        Where the weights come from: training data, metrics, licence.
    gene_mean
        Mean log1p counts of each gene in training, shape (genes,), where it is known: a plain predictor to
        compare with.
    calibration
        What left-out donors showed of the model, which its trust card and the priors and intervals of absent genes
        rest on; see :func:`sagefm.train.calibrate`.

    Examples
    --------
    >>> import sagefm as sg
    >>> model = sg.models.load("sagefm-mini")
    >>> model.hidden
    (160, 160)
    >>> model.card["training"]["spots"]
    16448
    """

    name: str
    network: nn.Module
    vocabulary: Vocabulary
    n_spots: int = 15
    card: dict[str, Any] = field(default_factory=dict)
    gene_mean: NDArray[np.float32] | None = None
    calibration: Calibration | None = None

    @property
    def architecture(self) -> str:
        """Short name of the network's family, ``"gcn"`` for the published one."""
        return str(self.network.architecture)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Output widths of the layers; the last is the embedding's."""
        return tuple(self.network.hidden)  # type: ignore[arg-type]

    @property
    def n_parameters(self) -> int:
        """Number of weights and biases."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, {self.architecture} {'-'.join(map(str, self.hidden))}, "
            f"{self.n_parameters:,} parameters, {len(self.vocabulary):,} genes)"
        )

    def canonical(self) -> Canonical:
        """Return the same function as one layer on centre and neighbours, then an MLP."""
        return self.network.canonical()  # type: ignore[operator]

    def save(self, path: str | Path, *, half: bool = False) -> Path:
        """Write safetensors with a JSON header; :func:`sagefm.models.load` reads it back by path.

        Parameters
        ----------
        path
            File to write. It appears under this name only once it is complete.
        half
            Store float16, for half the size. Loading converts to float32.
        """
        import torch

        from sagefm.models import _containers, _vocabulary
        from sagefm.models._calibration import PREFIX

        header = {
            "name": self.name,
            "architecture": self.architecture,
            "hidden": list(self.hidden),
            "n_spots": self.n_spots,
            "vocabulary": _vocabulary.to_header(self.vocabulary),
            "card": self.card,
        }
        if self.gene_mean is not None:
            header["gene_mean"] = [round(float(value), 4) for value in self.gene_mean]
        dtype = torch.float16 if half else torch.float32
        tensors = {name: tensor.to(dtype).contiguous() for name, tensor in self.network.state_dict().items()}
        if self.calibration is not None:
            header["reference"] = self.calibration.header()
            arrays = self.calibration.arrays()
            tensors |= {PREFIX + key: torch.from_numpy(array) for key, array in arrays.items()}
        return _containers.write_tensors(Path(path), header, tensors)
