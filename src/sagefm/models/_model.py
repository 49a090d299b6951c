"""A loaded model: weights, vocabulary and card."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagefm._types import Floats32, Ints
from sagefm.models._vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sagefm.models._calibration import Calibration
    from sagefm.models._canonical import Canonical


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights that were read from a file: all that the tools need of a network.

    Loaded models may share them, so nothing changes them: :meth:`build` copies.

    Attributes
    ----------
    architecture
        Family of the network.
    hidden
        Output widths of its layers.
    tensors
        Weights by name.
    """

    architecture: str
    hidden: tuple[int, ...]
    tensors: dict[str, Tensor]

    def state_dict(self) -> dict[str, Tensor]:
        """Weights by name, as a network returns its own."""
        return dict(self.tensors)

    def canonical(self) -> Canonical:
        """Return the canonical form, as a network returns its own."""
        from sagefm.models._architectures import ARCHITECTURES

        return ARCHITECTURES[self.architecture].canonical(self.tensors)

    def to(self, device: torch.device) -> Weights:
        """Return the weights on another device."""
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})

    def build(self) -> nn.Module:
        """Return the network, with a copy of the weights."""
        import torch

        from sagefm.models._gcn import GCN
        from sagefm.models._sage import SAGE

        families = {family.architecture: family for family in (GCN, SAGE)}
        with torch.device("meta"):  # without allocating weights, which load_state_dict brings
            network = families[self.architecture](len(self.tensors["fc_gene.bias"]), self.hidden)
        network.load_state_dict({name: tensor.clone() for name, tensor in self.tensors.items()}, assign=True)
        return network.requires_grad_(False).eval()


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A model with its vocabulary and its card, as :func:`sagefm.models.load` returns it.

    Parameters
    ----------
    name
        Name of the model; results record it.
    weights
        A PyTorch Geometric module, such as :class:`sagefm.models.GCN`, or the weights of one, as they were read from a
        file.
    vocabulary
        Genes in the order of the network's input columns.
    n_spots
        Spots of a neighborhood in training, the center included.
    card
        Where the weights come from: training data, metrics, licence.
    gene_mean
        Mean log1p counts of each gene in training, shape (genes,), where it is known: a plain predictor to
        compare with.
    calibration
        What left-out donors showed of the model, which its trust card and the priors and intervals of absent genes
        rest on; see :func:`sagefm.train.calibrate`.
    trained_spots
        Hashes of the spots that it was trained on, ascending, so that its trust card knows them again.

    Examples
    --------
    >>> import sagefm as sg
    >>> model = sg.models.load("sagefm-mini")
    >>> model.hidden
    (160, 160)
    >>> model.card["training"]["spots"]
    27715
    """

    name: str
    weights: Weights | nn.Module
    vocabulary: Vocabulary
    n_spots: int = 15
    card: dict[str, Any] = field(default_factory=dict)
    gene_mean: Floats32 | None = None
    calibration: Calibration | None = None
    trained_spots: Ints | None = None

    @property
    def genes(self) -> list[str]:
        """Symbols of the genes that the model knows, in the order of its columns."""
        return list(self.vocabulary.symbols)

    def __contains__(self, name: object) -> bool:
        """Whether the model knows a gene, by its symbol, its Ensembl id or another symbol: ``"HLA-A" in model``."""
        return name in self.vocabulary

    @property
    def network(self) -> nn.Module:
        """The PyTorch Geometric module that defines the model, which is built when it is first asked for.

        From then on its weights are the model's: what changes them changes the model, and no other.
        """
        if isinstance(self.weights, Weights):
            object.__setattr__(self, "weights", self.weights.build())
        return self.weights  # type: ignore[return-value]

    @property
    def architecture(self) -> str:
        """Short name of the network's family, ``"gcn"`` for the published one."""
        return str(self.weights.architecture)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Output widths of the layers; the last is the embedding's."""
        return tuple(self.weights.hidden)  # type: ignore[arg-type]

    @property
    def n_parameters(self) -> int:
        """Number of weights and biases."""
        return sum(weight.numel() for weight in self.weights.state_dict().values())

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, {self.architecture} {'-'.join(map(str, self.hidden))}, "
            f"{self.n_parameters:,} parameters, {len(self.vocabulary):,} genes)"
        )

    def canonical(self) -> Canonical:
        """Return the same function as one layer on center and neighbors, then an MLP."""
        import torch

        canonical: Canonical = self.weights.canonical()  # type: ignore[operator]
        if canonical.gain is None or self.gene_mean is None:
            return canonical
        return replace(canonical, typical=torch.from_numpy(self.gene_mean).to(canonical.gain))

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
        from sagefm.models._seen import KEY as TRAINED

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
        tensors = {name: tensor.to(dtype).contiguous() for name, tensor in self.weights.state_dict().items()}
        if self.calibration is not None:
            header["calibration"] = self.calibration.header()
            arrays = self.calibration.arrays()
            tensors |= {PREFIX + key: torch.from_numpy(array) for key, array in arrays.items()}
        if self.trained_spots is not None:
            tensors[TRAINED] = torch.from_numpy(self.trained_spots)
        return _containers.write_tensors(Path(path), header, tensors)
