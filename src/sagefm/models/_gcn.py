"""The published architecture, built of PyTorch Geometric's own layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GCNConv

from sagefm.models._architectures import PUBLISHED_HIDDEN, gcn_canonical, gcn_shapes
from sagefm.models._canonical import Canonical


class GCN(nn.Module):
    """Masked-central-spot graph convolutional network (SAGE-FM, arXiv 2601.15504, as published in code).

    ``GCNConv`` layers with leaky ReLU (slope 0.01) between them, then a linear decoder with ReLU. This forward pass is
    the definition; :meth:`canonical` is the same function without the graph. The paper's text has ReLU and edges that
    encode distance; its code, which this follows, has leaky ReLU and edges without weights.

    Parameters
    ----------
    n_genes
        Number of genes of the vocabulary.
    hidden
        Output widths of the convolutions; the last one is the embedding's. The published network has five.

    Examples
    --------
    >>> import torch
    >>> import sagefm as sg
    >>> network = sg.models.GCN(100, hidden=(8, 6, 6, 6, 8))
    >>> complete = torch.combinations(torch.arange(15)).T
    >>> edges = torch.cat([complete, complete.flip(0)], dim=1)
    >>> nodes = network.embed(torch.rand(15, 100), edges)
    >>> bool(torch.allclose(nodes, nodes[:1].expand(15, 8), atol=1e-6))  # all 15 are equal
    True
    """

    architecture = "gcn"

    def __init__(self, n_genes: int, hidden: Sequence[int] = PUBLISHED_HIDDEN) -> None:
        super().__init__()
        gcn_shapes(n_genes, hidden)  # refuses what are no widths
        self.hidden = tuple(hidden)
        for i, widths in enumerate(pairwise((n_genes, *self.hidden)), start=1):
            self.add_module(f"conv{i}", GCNConv(*widths))
        self.fc_gene = nn.Linear(self.hidden[-1], n_genes)

    def _convs(self) -> list[GCNConv]:
        return [self.get_submodule(f"conv{i}") for i in range(1, len(self.hidden) + 1)]

    def embed(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Embedding of every node, shape (nodes, hidden[-1])."""
        *first, last = self._convs()
        for conv in first:
            x = F.leaky_relu(conv(x, edge_index), negative_slope=Canonical.negative_slope)
        return last(x, edge_index)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Predicted log1p counts of every node.

        Parameters
        ----------
        x
            log1p counts, shape (nodes, genes).
        edge_index
            Edges, shape (2, edges): one complete graph of 15 nodes per spot in the published model.
        """
        return F.relu(self.fc_gene(self.embed(x, edge_index)))

    @torch.no_grad()
    def change_basis(self, matrix: Tensor) -> None:
        """Multiply the embedding with an invertible matrix; predictions stay the same.

        Parameters
        ----------
        matrix
            New embedding = old embedding @ matrix, shape (hidden[-1], hidden[-1]).
        """
        last = self._convs()[-1]
        last.lin.weight.copy_(matrix.T @ last.lin.weight)
        last.bias.copy_(last.bias @ matrix)
        self.fc_gene.weight.copy_(torch.linalg.solve(matrix, self.fc_gene.weight.T).T)

    def canonical(self) -> Canonical:
        """Return the same function as one layer on center and neighbors, then an MLP; differentiable."""
        return gcn_canonical(dict(self.named_parameters()))
