"""What was measured of pairs: the source's mean in the neighbors against the target in the center."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from sagefm._stats import pearson_from_moments, pearson_pvalue
from sagefm._types import Floats, Ints

if TYPE_CHECKING:
    from sagefm._slides import Libraries
    from sagefm.tl._perturb.plan import Genes, Pair
    from sagefm.tl._perturb.responses import Responder


@dataclass(frozen=True)
class ObservedMoments:
    """Sums of sources in the neighbors (x), targets in the center (y) and their products, shape (libraries, pairs)."""

    n: Floats
    x: Floats
    y: Floats
    xx: Floats
    yy: Floats
    xy: Floats

    def total(self) -> ObservedMoments:
        """Over all libraries, kept as an axis of length 1."""
        return ObservedMoments(*(getattr(self, field.name).sum(axis=0, keepdims=True) for field in fields(self)))

    def correlation(self) -> tuple[Floats, Floats]:
        """Pearson r and its p-value; NaN where a side doesn't vary, or for fewer than three spots."""
        means = (part / self.n for part in (self.x, self.y, self.xx, self.yy, self.xy))
        r = np.where(self.n > 2, pearson_from_moments(*means, constant_x=np.nan), np.nan)
        return r, pearson_pvalue(r, self.n)


def observed_moments(responder: Responder, pairs: Sequence[Pair], libraries: Libraries) -> ObservedMoments:
    """Add up over the slide."""
    source_of, sources = _distinct([pair.source_genes for pair in pairs])
    target_of, targets = _distinct([pair.target_genes for pair in pairs])
    x_all, y_all = _columns(responder, sources), _columns(responder, targets)
    shape = (len(libraries), len(pairs))
    x, y, xx, yy, xy = (np.zeros(shape) for _ in range(5))
    projection = responder.projection
    for rows in projection.engine.compute.blocks(len(libraries.codes)):
        members = libraries.members(rows)
        near = projection.neighbor_mean(rows, x_all).cpu().numpy().astype(np.float64)
        own = y_all[rows].toarray().astype(np.float64)
        x += (members @ near)[:, source_of]
        y += (members @ own)[:, target_of]
        xx += (members @ near**2)[:, source_of]
        yy += (members @ own**2)[:, target_of]
        xy += members @ (near[:, source_of] * own[:, target_of])
    n = np.bincount(libraries.codes, minlength=len(libraries)).astype(float)
    return ObservedMoments(np.repeat(n[:, None], len(pairs), 1), x, y, xx, yy, xy)


def _columns(responder: Responder, complexes: Sequence[Genes]) -> sparse.csr_matrix:
    """Expression of genes and complexes on the whole slide, shape (spots, complexes)."""
    engine = responder.projection.engine
    blocks = engine.compute.blocks(engine.counts.n_obs)
    parts = (sparse.csr_matrix(responder.expression.of(complexes, rows)) for rows in blocks)
    return engine.scratch.csr(parts, len(complexes))


def _distinct(complexes: Sequence[Genes]) -> tuple[Ints, list[Genes]]:
    """Number of each among the distinct ones, and these."""
    number = {genes: i for i, genes in enumerate(dict.fromkeys(complexes))}
    return np.array([number[genes] for genes in complexes], dtype=np.int64), list(number)
