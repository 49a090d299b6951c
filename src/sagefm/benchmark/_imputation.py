"""Masked-central-spot evaluation of a model on whole sections, beside the plain baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from sagefm import _keys, models
from sagefm._anndata import get_anndata
from sagefm._depth import Attainable, DepthSpline, attainable_by_fold
from sagefm._docs import fill_docstring
from sagefm._io.scratch import Scratch
from sagefm._settings import ROWS_AT_A_TIME
from sagefm._slides import find_libraries
from sagefm._types import Ints
from sagefm._utils import check_choice, check_whole, get_device, progress
from sagefm.models import _baselines
from sagefm.models._masks import RandomMasks
from sagefm.models._scores import MaskSums, RunningScores, Summary
from sagefm.models._spots import Spots, predict, read_spots
from sagefm.pp._counts import Counts
from sagefm.pp._diffusion import Diffusion
from sagefm.pp._genes import get_alignment
from sagefm.pp._graph import get_graph
from sagefm.tl._impute.request import N_FOLDS, gene_folds

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model
    from sagefm.models._canonical import Canonical

BATCH_SIZE = 256  # dense in all genes
Masks = Callable[[Ints], Tensor]
"""Genes that are masked at some spots, by their numbers."""


@dataclass(frozen=True)
class MaskedSlide:
    """One slide in the model's genes, some of which are masked and predicted.

    Attributes
    ----------
    model, canonical, device
        The model, and where it computes.
    log_counts
        log1p counts, shape (spots, genes).
    graph
        Row i holds the neighbors of spot i.
    rows
        The spots of the slide, where the object holds several slides.
    best
        What a perfect predictor could reach.
    """

    model: Model
    canonical: Canonical
    device: torch.device
    log_counts: csr_matrix
    graph: csr_matrix
    rows: Ints
    best: Attainable

    @property
    def n_genes(self) -> int:
        """Number of the model's genes."""
        return self.log_counts.shape[1]

    def score(self, masks: Masks, *, everywhere: bool = False) -> dict[str, RunningScores]:
        """Scores of every predictor.

        Parameters
        ----------
        masks
            What is masked.
        everywhere
            Whether neighbors and similar spots hide what is masked at them too.
        """
        visible, n_visible = self._hide(masks)
        shown = visible if everywhere else self.log_counts
        of_slide = visible[self.rows]
        slide_mean = np.asarray(of_slide.sum(axis=0), dtype=float).ravel() / np.maximum(n_visible, 1)
        depth = np.asarray(of_slide.expm1().sum(axis=1), dtype=float).ravel()
        spline = DepthSpline(depth)
        similar = Diffusion.of_slide(of_slide, self.graph[self.rows][:, self.rows])
        diffused = similar.fill(Scratch().empty(of_slide.shape), shown[self.rows])
        mean = torch.from_numpy(slide_mean.astype(np.float32)).to(self.device)
        unseen = torch.from_numpy(n_visible == 0) if everywhere else None
        masked, scores = MaskSums(self.n_genes), dict[str, RunningScores]()
        for start in range(0, len(self.rows), BATCH_SIZE):
            block = slice(start, start + BATCH_SIZE)
            rows = self.rows[block]
            like = torch.from_numpy(diffused[block])
            spots = read_spots(self.log_counts, self.graph, rows, masks(rows), shown=shown, similar=like)
            spots = spots._replace(unseen=unseen).to(self.device)
            basis = torch.from_numpy(spline(depth[block])).to(self.device)
            masked.add(spots.center, spots.mask, basis)
            for name, prediction in self._predictions(spots, mean).items():
                part = scores.setdefault(name, RunningScores(self.n_genes, masked))
                part.add(prediction, spots.center, spots.mask, basis)
        return scores

    def _predictions(self, spots: Spots, slide_mean: Tensor) -> dict[str, Tensor]:
        """Return what each predictor says of some spots."""
        assert spots.similar is not None
        center, mean = spots.masked_center, spots.neighbor_mean
        found = {self.model.name: predict(self.canonical, spots), _baselines.ZEROS: torch.zeros_like(center)}
        if self.model.gene_mean is not None:
            found[_baselines.GENE_MEAN] = torch.from_numpy(self.model.gene_mean).to(center).expand_as(center)
        found[_baselines.SLIDE_MEAN] = slide_mean.expand_as(center)
        found[_baselines.DEPTH] = _baselines.depth_scaled(center, slide_mean.expand_as(center), spots.mask)
        found[_baselines.NEIGHBOR_MEAN] = mean
        found[_baselines.DEPTH_SCALED] = _baselines.depth_scaled(center, mean, spots.mask)
        found[_baselines.DIFFUSION] = spots.similar
        return found

    def _hide(self, masks: Masks) -> tuple[csr_matrix, Ints]:
        """log1p counts with 0 for what is masked; and at how many of the slide's spots each gene is not."""
        visible, n_visible = csr_matrix(self.log_counts, copy=True), np.zeros(self.n_genes, dtype=np.int64)
        for start in range(0, len(self.rows), BATCH_SIZE):
            rows = self.rows[start : start + BATCH_SIZE]
            mask = masks(rows).numpy()
            n_visible += (~mask).sum(axis=0)
            for row, hidden in zip(rows, mask, strict=True):
                entries = slice(visible.indptr[row], visible.indptr[row + 1])
                visible.data[entries][hidden[visible.indices[entries]]] = 0
        visible.eliminate_zeros()
        return visible, n_visible


def read_slides(
    sections: AnnData | SpatialData | Iterable[AnnData | SpatialData],
    model: Model,
    desc: str,
    table_key: str,
    layer: str | None,
    library_key: str | None,
    connectivity_key: str,
    device: str,
) -> Iterator[MaskedSlide]:
    """Slides to evaluate a model on, one object in memory at a time; at least one."""
    slide, found_device = None, get_device(device)
    canonical = model.canonical().to(found_device, torch.float32)
    fold_of = gene_folds(len(model.vocabulary), N_FOLDS)
    for data in progress(as_list(sections), desc, unit="section"):
        adata = get_anndata(data, table_key)
        counts = Counts(adata, get_alignment(adata, model.vocabulary)[0].index, layer)
        log_counts = counts.log1p(np.arange(len(model.vocabulary)), ROWS_AT_A_TIME)
        graph = get_graph(adata, connectivity_key)
        for _, rows in find_libraries(adata, library_key, connectivity_key).rows():
            best = attainable_by_fold(log_counts[rows], fold_of)
            slide = MaskedSlide(model, canonical, found_device, log_counts, graph, rows, best)
            yield slide
    if slide is None:
        raise ValueError("no section was given.")


@fill_docstring
@torch.inference_mode()
def evaluate_imputation(
    sections: AnnData | SpatialData | Iterable[AnnData | SpatialData],
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    mask_fraction: float = 0.3,
    layer: str | None = None,
    library_key: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    table_key: str = "table",
    rng: int = 0,
    device: str = "auto",
    by: Literal["gene", "detection"] | None = None,
) -> pd.DataFrame:
    """Mask random genes of every central spot and compare the model's predictions with the plain baselines'.

    The paper's pretraining evaluation: at each spot a share of the 14,558 genes is set to 0 in the center (not in
    the neighbors), and predicted. Genes that a section lacks count as zeros, as in the paper.

    Parameters
    ----------
    {sections}
    {model}
    mask_fraction
        Share of the center's genes to mask; 0.3 in the paper.
    {layer}
    {library_key}
    {connectivity_key}
    {table_key}
    {seed}
    {device}
    by
        Give the metrics of every ``"gene"``, or their means over genes that a like share of the spots shows
        (``"detection"``: up to 5, 10, 30, 60 and 100 %), instead of the metrics of all.

    Returns
    -------
    Table of metrics, as :func:`imputation_metrics` names them, one row for each predictor:

    - the model;
    - ``zeros``, the paper's baseline;
    - ``gene mean``, the mean of each gene in training (where the model records it);
    - ``slide mean``, its mean over the slide where it isn't masked;
    - ``depth alone``, that mean times the depth of the spot;
    - ``neighbor mean``, and ``depth-scaled neighbor mean``;
    - ``depth-scaled diffusion``, the mean of similar spots anywhere on the slide, see :func:`compare_imputation`.

    Here the depth of a spot is the sum of its unmasked log1p counts over that of the mean, within 0.2 to 5. With ``by``
    a second level of the index names the gene or the share, and the columns are ``detection`` or ``n_genes``,
    ``r_within``, ``attainable_r_within``, ``r_beyond_depth``, ``attainable_r`` and ``share_attained``, averaged over
    sections.

    Raises
    ------
    KeyError
        If there is no graph, layer or column of that name.
    ValueError
        If the counts are not raw or too few genes match.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> table = sg.benchmark.evaluate_imputation(adata, "sagefm-mini")
    >>> list(table.index)[-2:]
    ['depth-scaled neighbor mean', 'depth-scaled diffusion']
    """
    if not 0 < mask_fraction < 1:
        raise ValueError(f"mask_fraction={mask_fraction!r} has to lie between 0 and 1.")
    if by is not None:
        check_choice("by", by, ("gene", "detection"))
    seed = check_whole("rng", rng, 0)
    loaded = models.load(model)
    found: dict[str, Summary] = {}
    slides = read_slides(sections, loaded, "Evaluating", table_key, layer, library_key, connectivity_key, device)
    for slide in slides:
        masks = RandomMasks(slide.n_genes, mask_fraction, (seed, slide.log_counts.shape[0]))
        for name, scores in slide.score(masks).items():
            found.setdefault(name, Summary(slide.n_genes)).add(scores, slide.best)
    return tabulate(found, loaded.vocabulary.symbols, by)


def tabulate(
    found: Mapping[str, Summary], symbols: Sequence[str], by: Literal["gene", "detection"] | None = None
) -> pd.DataFrame:
    """Table of the metrics of every predictor, see :func:`evaluate_imputation`."""
    if by is None:
        table = pd.DataFrame({name: summary.metrics() for name, summary in found.items()}).T
        return table.rename_axis("predictor")
    parts = {name: summary.genes(symbols) if by == "gene" else summary.classes() for name, summary in found.items()}
    return pd.concat(parts, names=["predictor", by])


def as_list(sections: AnnData | SpatialData | Iterable[AnnData | SpatialData]) -> Iterable[AnnData | SpatialData]:
    """One section is as good as several."""
    if isinstance(sections, Iterable) and not hasattr(sections, "obs"):
        return sections
    return [sections]
