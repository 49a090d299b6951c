"""The two families of networks, by their weights: names, shapes, and the canonical form that the tools compute with.

The networks themselves are :class:`~sagefm.models.GCN` and :class:`~sagefm.models.SAGE`. They need PyTorch Geometric,
which takes seconds to import; this doesn't.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sagefm.models._canonical import Canonical, Linear

Shapes = dict[str, tuple[int, ...]]

PUBLISHED_HIDDEN = (1024, 512, 512, 512, 1024)


class Architecture(NamedTuple):
    """A family of networks.

    Attributes
    ----------
    shapes
        Shape of each weight, from the number of genes and the hidden widths; raises ``ValueError`` if no network has
        such widths.
    canonical
        Canonical form, from the weights by name: differentiable, so that training runs on it.
    """

    shapes: Callable[[int, Sequence[int]], Shapes]
    canonical: Callable[[Mapping[str, Tensor]], Canonical]


def gcn_shapes(n_genes: int, hidden: Sequence[int]) -> Shapes:
    """Shape of each weight of :class:`~sagefm.models.GCN`."""
    _check_widths(hidden)
    shapes: Shapes = {}
    for i, (n_in, n_out) in enumerate(pairwise((n_genes, *hidden)), start=1):
        shapes |= {f"conv{i}.lin.weight": (n_out, n_in), f"conv{i}.bias": (n_out,)}
    return shapes | {"fc_gene.weight": (n_genes, hidden[-1]), "fc_gene.bias": (n_genes,)}


def gcn_canonical(weights: Mapping[str, Tensor]) -> Canonical:
    """Canonical form of :class:`~sagefm.models.GCN`.

    On a complete graph of d+1 nodes every entry of GCNConv's propagation matrix is 1/(d+1). So all nodes are equal
    after ``conv1``, and further convolutions act as linear layers.
    """
    n_convs = sum(name.startswith("conv") for name in weights) // 2
    first, *trunk = [(weights[f"conv{i}.lin.weight"].T, weights[f"conv{i}.bias"]) for i in range(1, n_convs + 1)]
    return Canonical(
        normalization="gcn",
        center=first[0],
        neighbors=first[0],
        bias=first[1],
        trunk=trunk,
        decoder=_linear(weights, "fc_gene"),
    )


def sage_shapes(n_genes: int, hidden: Sequence[int]) -> Shapes:
    """Shape of each weight of :class:`~sagefm.models.SAGE`."""
    _check_widths(hidden)
    n_first = hidden[0]
    shapes: Shapes = {"gain": (n_genes,), "similar_gain": (n_genes,)}
    shapes |= {"conv.lin_l.weight": (n_first, n_genes), "conv.lin_l.bias": (n_first,)}
    shapes |= {"conv.lin_r.weight": (n_first, n_genes)}
    for i, (n_in, n_out) in enumerate(pairwise(hidden)):
        shapes |= {f"linear.{i}.weight": (n_out, n_in), f"linear.{i}.bias": (n_out,)}
    return shapes | {"fc_gene.weight": (n_genes, hidden[-1]), "fc_gene.bias": (n_genes,)}


def sage_canonical(weights: Mapping[str, Tensor]) -> Canonical:
    """Canonical form of :class:`~sagefm.models.SAGE`."""
    n_linears = sum(name.startswith("linear.") for name in weights) // 2
    return Canonical(
        normalization="sage",
        center=weights["conv.lin_r.weight"].T,
        neighbors=weights["conv.lin_l.weight"].T,
        bias=weights["conv.lin_l.bias"],
        trunk=[_linear(weights, f"linear.{i}") for i in range(n_linears)],
        decoder=_linear(weights, "fc_gene"),
        gain=weights["gain"],
        similar_gain=weights["similar_gain"],
        typical=torch.zeros_like(weights["gain"]),  # until a model says what it has seen
    )


def _check_widths(hidden: Sequence[int]) -> None:
    """Refuse what no network can have."""
    if not hidden or any(width < 1 for width in hidden):
        raise ValueError(f"hidden has to name the width of each layer, at least 1, got {tuple(hidden)}.")


def _linear(weights: Mapping[str, Tensor], name: str) -> Linear:
    return weights[f"{name}.weight"].T, weights[f"{name}.bias"]


ARCHITECTURES = {
    "gcn": Architecture(gcn_shapes, gcn_canonical),
    "sage": Architecture(sage_shapes, sage_canonical),
}
