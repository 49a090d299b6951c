"""The form that every tool is written on: one linear layer on center and neighbors, then an MLP.

``h_i = c_i @ Wc + n_i @ Wn + b``, then trunk, then decoder; optionally the decoder adds each gene's own mean over the
neighbors and over the slide's similar spots, ``gain_g * sqrt(depth_i) * n_ig + similar_gain_g * s_ig``. Where no spot
shows a gene, its mean in training stands for both. Knows tensors only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Linear = tuple[Tensor, Tensor]
"""Weight of shape (inputs, outputs) and bias of shape (outputs,)."""


@dataclass(frozen=True)
class Canonical:
    """A masked-central-spot model without its graph.

    Attributes
    ----------
    normalization
        How center and neighbors are weighted by the number of neighbors d: ``"gcn"`` divides the center
        and the sum over neighbors by d+1, as ``GCNConv`` does on a complete graph of d+1 nodes; ``"sage"``
        leaves the center as it is and divides the sum by d, as ``SAGEConv`` with mean aggregation does.
    center, neighbors
        First-layer weights, shape (genes, width). One tensor for both where the model cannot tell the
        center from its neighbors, as in the published GCN; it is then projected once.
    bias
        First-layer bias, shape (width,).
    trunk
        Linear layers after the first; leaky ReLU before each of them, none after the last.
    decoder
        Linear layer from the embedding to the genes, followed by ReLU.
    gain
        Weight of each gene's own mean over the neighbors, shape (genes,), or None.
    similar_gain
        Weight of its mean over similar spots, where there is a ``gain``, shape (genes,), or None.
    typical
        Mean log1p count of each gene in training, where there is a ``gain``, shape (genes,), or None. Stands for the
        means of a gene that no spot shows: the gains carry most of a gene's level, which would be missing without.
    dropout
        Share of the embedding dropped before the decoder; 0 outside training.
    """

    normalization: Literal["gcn", "sage"]
    center: Tensor
    neighbors: Tensor
    bias: Tensor
    trunk: list[Linear]
    decoder: Linear
    gain: Tensor | None = None
    similar_gain: Tensor | None = None
    typical: Tensor | None = None
    dropout: float = 0.0

    negative_slope: ClassVar[float] = 0.01

    @property
    def n_genes(self) -> int:
        """Number of genes of the vocabulary."""
        return self.center.shape[0]

    @property
    def width(self) -> int:
        """Output width of the first layer."""
        return self.center.shape[1]

    @property
    def embedding_dim(self) -> int:
        """Width of the embedding."""
        return self.decoder[0].shape[0]

    @property
    def shares_weights(self) -> bool:
        """Whether center and neighbors go through the same matrix."""
        return self.center is self.neighbors

    def to(self, device: torch.device, dtype: torch.dtype) -> Canonical:
        """Return the same model on another device, in another precision."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device=device, dtype=dtype)

        center = move(self.center)
        return replace(
            self,
            center=center,
            neighbors=center if self.shares_weights else move(self.neighbors),
            bias=move(self.bias),
            trunk=[(move(weight), move(bias)) for weight, bias in self.trunk],
            decoder=(move(self.decoder[0]), move(self.decoder[1])),
            gain=None if self.gain is None else move(self.gain),
            similar_gain=None if self.similar_gain is None else move(self.similar_gain),
            typical=None if self.typical is None else move(self.typical),
        )

    def first_layer(self, center: Tensor, neighbor_sum: Tensor, degree: Tensor) -> Tensor:
        """First layer before its activation.

        Parameters
        ----------
        center
            ``c_i @ Wc``, shape (spots, width).
        neighbor_sum
            Sum of ``x_j @ Wn`` over the neighbors j of i, shape (spots, width).
        degree
            Number of neighbors, shape (spots, 1).
        """
        if self.normalization == "gcn":
            return (center + neighbor_sum) / (degree + 1) + self.bias
        return center + neighbor_sum / degree.clamp(min=1) + self.bias

    def center_share(self, degree: Tensor) -> Tensor:
        """What the first layer multiplies ``c_i @ Wc`` with; masking gene g takes away this ``* x_ig * Wc[g]``."""
        return 1 / (degree + 1) if self.normalization == "gcn" else torch.ones_like(degree)

    def neighbors_share(self, degree: Tensor) -> Tensor:
        """What it multiplies ``n_i @ Wn`` with; raising gene g by v in all neighbors adds this ``* v * Wn[g]``."""
        return degree / (degree + 1) if self.normalization == "gcn" else (degree > 0).to(degree)

    def embed(self, h: Tensor) -> Tensor:
        """Embedding from the first layer's output before its activation."""
        for weight, bias in self.trunk:
            h = torch.addmm(bias, F.leaky_relu(h, self.negative_slope), weight)
        return h

    def decode(
        self,
        z: Tensor,
        genes: Tensor | None = None,
        scaled_mean: Tensor | None = None,
        similar: Tensor | None = None,
    ) -> Tensor:
        """Predicted log1p counts from the embedding.

        Parameters
        ----------
        z
            Embedding, shape (spots, embedding_dim).
        genes
            Vocabulary indices of the genes to predict; all by default.
        scaled_mean
            Mean of these genes over the neighbors times :func:`depth_scale`, shape (spots, genes). Zero by
            default; read only where there is a gain.
        similar
            Their mean over similar spots times :func:`depth_ratio`, likewise.
        """
        weight, bias = self.decoder
        if genes is not None:
            weight, bias = weight[:, genes], bias[genes]
        output = torch.addmm(bias, z, weight)
        return F.relu(add_terms(output, ((self.gain, scaled_mean), (self.similar_gain, similar)), genes))

    def read_out(self, genes: Tensor) -> ReadOut:
        """Prepare to predict some genes many times, without the embedding."""
        # On the CPU, since not every device has double precision.
        weight, bias = (part.cpu().double() for part in (self.decoder[0][:, genes], self.decoder[1][genes]))
        if self.trunk:
            last_weight, last_bias = (part.cpu().double() for part in self.trunk[-1])
            weight, bias = last_weight @ weight, last_bias @ weight + bias
        return ReadOut(
            trunk=self.trunk[:-1],
            weight=weight.T.contiguous().to(self.bias),
            bias=bias.to(self.bias),
            activated=bool(self.trunk),
            gain=None if self.gain is None else self.gain[genes],
            similar_gain=None if self.similar_gain is None else self.similar_gain[genes],
        )

    def forward(
        self,
        center: Tensor,
        neighbor_sum: Tensor,
        degree: Tensor,
        masked: Tensor | None = None,
        similar: Tensor | None = None,
        unseen: Tensor | None = None,
    ) -> Tensor:
        """All predictions from log1p counts: differentiable, for training and for tests.

        Parameters
        ----------
        center
            (Masked) log1p counts of the center, shape (spots, genes).
        neighbor_sum
            Sum of the neighbors' log1p counts, shape (spots, genes).
        degree
            Number of neighbors, shape (spots, 1).
        masked
            Genes that don't count for the depth of a spot, boolean, shape (spots, genes); none by default.
        similar
            Mean over similar spots times :func:`depth_ratio`, shape (spots, genes); zero by default.
        unseen
            Genes that no spot shows, boolean, shape (genes,); none by default.
        """
        return self.forward_both(center, neighbor_sum, degree, masked, similar, unseen)[0]

    def forward_both(
        self,
        center: Tensor,
        neighbor_sum: Tensor,
        degree: Tensor,
        masked: Tensor | None = None,
        similar: Tensor | None = None,
        unseen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`; also the embedding, with the dropout that the decoder saw."""
        if self.shares_weights:  # one product instead of two
            h = self.first_layer((center + neighbor_sum) @ self.center, center.new_zeros(()), degree)
        else:
            h = self.first_layer(center @ self.center, neighbor_sum @ self.neighbors, degree)
        z = F.dropout(self.embed(h), self.dropout, training=self.dropout > 0)
        if self.gain is None:
            return self.decode(z), z
        mean = neighbor_sum / degree.clamp(min=1)
        observed = mean if masked is None else mean * ~masked
        total = center.sum(1, keepdim=True)
        scaled_mean = depth_scale(total, observed.sum(1, keepdim=True)) * mean
        if unseen is not None and self.typical is not None:
            hidden = unseen if masked is None else unseen | masked
            typical = self.typical * depth_ratio(total, (self.typical * ~hidden).sum(-1, keepdim=True))
            scaled_mean = torch.where(unseen, typical, scaled_mean)
            similar = torch.where(unseen, typical, torch.zeros_like(typical) if similar is None else similar)
        return self.decode(z, scaled_mean=scaled_mean, similar=similar), z


@dataclass(frozen=True)
class ReadOut:
    """Some genes straight from the first layer.

    Between the embedding and the decoder lies no activation, so for genes known beforehand the trunk's last layer and
    the decoder are one matrix, and a third of the published trunk's work is saved.

    Attributes
    ----------
    trunk
        Layers but for the last.
    weight, bias
        What is left, shapes (genes, width) and (genes,).
    activated
        Whether a leaky ReLU comes before it.
    gain, similar_gain
        Weight of each gene's own mean over the neighbors, and over similar spots, or None.
    """

    trunk: list[Linear]
    weight: Tensor
    bias: Tensor
    activated: bool
    gain: Tensor | None
    similar_gain: Tensor | None

    def predict(
        self,
        h: Tensor,
        genes: Tensor | None = None,
        scaled_mean: Tensor | None = None,
        similar: Tensor | None = None,
    ) -> Tensor:
        """Predicted log1p counts of the genes, or of some (counted among them). Overwrites ``h``.

        As :meth:`Canonical.decode` of :meth:`Canonical.embed`.
        """
        for weight, bias in self.trunk:
            h = torch.addmm(bias, F.leaky_relu_(h, Canonical.negative_slope), weight)
        if self.activated:
            h = F.leaky_relu_(h, Canonical.negative_slope)
        weight, bias = self.weight, self.bias
        if genes is not None:
            weight, bias = weight[genes], bias[genes]
        output = torch.addmm(bias, h, weight.T)
        return F.relu(add_terms(output, ((self.gain, scaled_mean), (self.similar_gain, similar)), genes))


def add_terms(
    output: Tensor, terms: Iterable[tuple[Tensor | None, Tensor | None]], genes: Tensor | None = None
) -> Tensor:
    """Add each gene's own means, times their gains; a pair of which either is None adds nothing."""
    for gain, mean in terms:
        if gain is not None and mean is not None:
            output = output + (gain if genes is None else gain[genes]) * mean
    return output


def depth_ratio(center: Tensor, neighbors: Tensor) -> Tensor:
    """Depth of a spot relative to its neighbors: sum of its log1p counts over that of their mean, within 0.2 to 5.

    Both sums leave out what is masked at the spot. Where the neighbors hold nothing the ratio is 1.
    """
    ratio = (center / neighbors.clamp(min=1e-12)).clamp(0.2, 5.0)
    return torch.where(neighbors > 0, ratio, 1.0)


def depth_scale(center: Tensor, neighbors: Tensor) -> Tensor:
    """Square root of :func:`depth_ratio`, which the decoder scales the neighbors' mean with.

    Beside an embedding, which knows the depth as well, the root serves better than the ratio itself (ablation in the
    docs).
    """
    return depth_ratio(center, neighbors).sqrt()
