"""The GraphSAGE family: own weights for center and neighbors, and the means in the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import SAGEConv, SimpleConv

from sagefm.models._architectures import sage_canonical, sage_shapes
from sagefm.models._canonical import Canonical, depth_scale


class SAGE(nn.Module):
    """Masked-central-spot GraphSAGE network.

    One ``SAGEConv`` with mean aggregation, linear layers with leaky ReLU (slope 0.01) between them, and a
    decoder that adds each gene's own mean over the neighbors, times a gain of the gene and the square root of
    the spot's depth relative to its neighbors, and its mean over the similar spots of the slide at the depth of the
    spot, times a second gain. Unlike :class:`GCN` it can tell a spot from its neighbors. A second
    convolution would make neighborhoods of neighborhoods, which it has none of.

    Parameters
    ----------
    n_genes
        Number of genes of the vocabulary.
    hidden
        Output widths of the convolution and of the linear layers; the last one is the embedding's.
    dropout
        Share of the embedding dropped in training.

    Examples
    --------
    >>> import sagefm as sg
    >>> network = sg.models.SAGE(100, hidden=(8, 4))
    >>> sum(parameter.numel() for parameter in network.parameters())
    2344
    """

    architecture = "sage"

    def __init__(self, n_genes: int, hidden: Sequence[int] = (256, 256), dropout: float = 0.2) -> None:
        super().__init__()
        sage_shapes(n_genes, hidden)  # refuses what are no widths
        self.hidden = tuple(hidden)
        self.dropout = dropout
        self.conv = SAGEConv(n_genes, self.hidden[0], aggr="mean")
        self.linear = nn.Sequential(*(nn.Linear(*widths) for widths in pairwise(self.hidden)))
        self.fc_gene = nn.Linear(self.hidden[-1], n_genes)
        self.gain = nn.Parameter(torch.zeros(n_genes))
        self.similar_gain = nn.Parameter(torch.zeros(n_genes))

    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in self.linear if isinstance(layer, nn.Linear)]

    def embed(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Embedding of every node, shape (nodes, hidden[-1])."""
        h = self.conv(x, edge_index)
        for linear in self._linears():
            h = linear(F.leaky_relu(h, negative_slope=Canonical.negative_slope))
        return h

    def forward(
        self, x: Tensor, edge_index: Tensor, masked: Tensor | None = None, similar: Tensor | None = None
    ) -> Tensor:
        """Predicted log1p counts of every node.

        Parameters
        ----------
        x
            log1p counts, masked ones 0, shape (nodes, genes).
        edge_index
            Edges, shape (2, edges): one complete graph per spot.
        masked
            Genes that don't count for the depth of a node, boolean, shape (nodes, genes); none by default.
        similar
            Mean log1p counts of the spots similar to each node, times the depth relative to them, shape (nodes, genes);
            zero by default.
        """
        mean = SimpleConv(aggr="mean")(x, edge_index)
        observed = mean if masked is None else mean * ~masked
        scale = depth_scale(x.sum(1, keepdim=True), observed.sum(1, keepdim=True))
        output = self.fc_gene(self.embed(x, edge_index)) + self.gain * scale * mean
        return F.relu(output if similar is None else output + self.similar_gain * similar)

    @torch.no_grad()
    def change_basis(self, matrix: Tensor) -> None:
        """Multiply the embedding with an invertible matrix; predictions stay the same.

        Parameters
        ----------
        matrix
            New embedding = old embedding @ matrix, shape (hidden[-1], hidden[-1]).
        """
        linears = self._linears()
        weights = [linears[-1].weight] if linears else [self.conv.lin_l.weight, self.conv.lin_r.weight]
        for weight in weights:
            weight.copy_(matrix.T @ weight)
        bias = linears[-1].bias if linears else self.conv.lin_l.bias
        bias.copy_(bias @ matrix)
        self.fc_gene.weight.copy_(torch.linalg.solve(matrix, self.fc_gene.weight.T).T)

    def canonical(self) -> Canonical:
        """Return the same function as one layer on center and neighbors, then an MLP; differentiable."""
        canonical = sage_canonical(dict(self.named_parameters()))
        return replace(canonical, dropout=self.dropout if self.training else 0.0)
