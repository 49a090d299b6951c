"""The composition of the neighborhood as a second target, which shapes the embedding."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sagefm._types import Floats32
from sagefm.models._spots import Spots, predict_and_embed
from sagefm.train._corpus import Corpus
from sagefm.train._split import TRAIN
from sagefm.train._stream import Stream

N_COMPONENTS = 50
N_SAMPLED = 6000
TOTAL = 1e4
# Share of the largest eigenvalue that directions which say nothing of the niche keep in the new basis.
FLOOR = 1e-3


class Niche(nn.Module):
    """Principal components of the mean of all 15 spots, scaled to one total, log1p.

    Masked genes are predicted best from the spot's depth and its own neighbors' mean, which the decoder of the
    GraphSAGE family has besides. So its embedding would hold depth above all, and clusters of it would be
    clusters of depth. This target asks the embedding for what depth doesn't change: what the tissue around the spot
    is made of. A linear map has to find it there; afterwards the embedding is turned so that Euclidean distances
    are those of the map (:meth:`basis`), by which no prediction changes.

    Parameters
    ----------
    mean
        Profile to subtract, shape (genes,).
    components
        Weight of each gene in each component, shape (genes, components).
    embedding_dim
        Width of the embedding.
    """

    mean: Tensor
    components: Tensor
    turned_back: Tensor

    def __init__(self, mean: Tensor, components: Tensor, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)
        self.map = nn.Linear(embedding_dim, components.shape[1])
        self.register_buffer("turned_back", torch.eye(embedding_dim))

    @classmethod
    def fit(cls, corpus: Corpus, embedding_dim: int, *, seed: int = 0) -> Niche:
        """Find the components on some thousand training spots, centered within their section.

        So the components are what differs within sections, not between donors or platforms.
        """
        from sklearn.decomposition import PCA

        profiles = list(_sample(corpus, seed).values())
        mean = np.concatenate(profiles).mean(0)
        centered = np.concatenate([profile - profile.mean(0) for profile in profiles])
        spread = centered.std(0)
        # Between covariance and correlation: strong genes count more, but don't drown the others.
        weight = 1 / np.sqrt(spread + 0.01 * spread.max())
        centered *= weight
        n_components = min(N_COMPONENTS, *centered.shape)
        pca = PCA(n_components, svd_solver="randomized", random_state=seed).fit(centered)
        components = (weight[:, None] * pca.components_.T) / np.sqrt(pca.explained_variance_[0])
        return cls(torch.from_numpy(mean), torch.from_numpy(components.astype(np.float32)), embedding_dim)

    @torch.no_grad()
    def start_from(self, network: nn.Module, corpus: Corpus, *, turned: bool) -> None:
        """Let the map begin as the best one for a network that is trained already.

        A short fine-tuning wouldn't find it from random numbers. If the network's embedding was ``turned`` when it was
        trained, :meth:`basis` turns it only by as much as the map changes from here on.
        """
        from sklearn.linear_model import Ridge

        network.eval()
        parts = []
        for _, spots in Stream(corpus, TRAIN, batch_size=1024, mask_fraction=0.0, shuffle=False):
            _, embedding = predict_and_embed(network.canonical(), spots)  # type: ignore[operator]
            parts.append((embedding.numpy(), self.target(spots).numpy()))
        network.train()
        embeddings, targets = (np.concatenate(blocks) for blocks in zip(*parts, strict=True))
        fitted = Ridge(alpha=1.0).fit(embeddings, targets)
        self.map.weight.copy_(torch.from_numpy(np.atleast_2d(fitted.coef_)))
        self.map.bias.copy_(torch.from_numpy(np.atleast_1d(fitted.intercept_)))
        if turned:
            self.turned_back.copy_(torch.linalg.inv(self.basis()))

    def target(self, spots: Spots) -> Tensor:
        """Components of some spots, nothing masked, shape (spots, components)."""
        return (_profile(spots) - self.mean) @ self.components

    def forward(self, embedding: Tensor, spots: Spots) -> Tensor:
        """Squared error of the linear map, mean over components, summed over spots."""
        return (self.map(embedding).float() - self.target(spots)).square().sum() / self.components.shape[1]

    @torch.no_grad()
    def basis(self) -> Tensor:
        """Invertible matrix M: distances of ``embedding @ M`` are those of the mapped embedding, nearly.

        Of a model that was fine-tuned: M changes distances as much as they changed under the map.
        """
        weight = self.map.weight.double().cpu()
        values, vectors = torch.linalg.eigh(weight.T @ weight)
        scale = (values.clamp(min=0) + FLOOR * values.max()).sqrt()
        return self.turned_back.cpu() @ ((vectors * scale) @ vectors.T).float()


def _profile(spots: Spots) -> Tensor:
    """Mean of the spot and its neighbors, scaled to one total, log1p."""
    counts = torch.expm1((spots.center + spots.neighbor_sum) / (spots.degree + 1))
    return torch.log1p(TOTAL * counts / counts.sum(1, keepdim=True).clamp(min=1e-6))


def _sample(corpus: Corpus, seed: int) -> dict[str, Floats32]:
    """Profiles of some spots of each training section."""
    rng = np.random.default_rng(seed)
    share = N_SAMPLED / corpus.sections.loc[corpus.names(TRAIN), "n_spots"].sum()
    parts: dict[str, list[Floats32]] = {}
    for section, spots in Stream(corpus, TRAIN, batch_size=1024, mask_fraction=0.0, shuffle=False):
        picked = torch.from_numpy(rng.random(len(spots.center)) < share)
        parts.setdefault(section, []).append(_profile(spots)[picked].numpy())
    return {section: np.concatenate(blocks) for section, blocks in parts.items()}
