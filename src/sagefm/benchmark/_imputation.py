"""Masked-central-spot evaluation of a model on whole sections, beside the plain baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sagefm import _keys, models
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._settings import ROWS_AT_A_TIME
from sagefm._slides import split_libraries
from sagefm._types import Ints
from sagefm._utils import check_whole, get_device, progress
from sagefm.models import _baselines
from sagefm.models._masks import RandomMasks
from sagefm.models._scores import RunningScores, summarize
from sagefm.models._spots import Spots, predict, read_spots
from sagefm.pp._counts import Counts
from sagefm.pp._genes import get_alignment
from sagefm.pp._graph import get_graph

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

    from sagefm.models import Model

BATCH_SIZE = 256  # dense in all genes


class MaskedSlide:
    """One slide in the model's genes, some of which are masked and predicted.

    Attributes
    ----------
    log_counts
        log1p counts, shape (spots, genes).
    """

    def __init__(
        self,
        adata: AnnData,
        model: Model,
        layer: str | None,
        library_key: str | None,
        connectivity_key: str,
        device: torch.device,
    ) -> None:
        counts = Counts(adata, get_alignment(adata, model.vocabulary)[0].index, layer)
        self.log_counts = counts.log1p(np.arange(len(model.vocabulary)), ROWS_AT_A_TIME)
        self.n_obs, self.n_genes = self.log_counts.shape
        self._graph = get_graph(adata, connectivity_key)
        self._libraries = split_libraries(adata, library_key).codes
        self._model, self._canonical, self._device = model, model.canonical().to(device, torch.float32), device

    def predictions(self, spots: Spots, slide_mean: Tensor) -> dict[str, Tensor]:
        """What each predictor says of some spots."""
        center, mean = spots.masked_center, spots.neighbor_mean
        found = {self._model.name: predict(self._canonical, spots), _baselines.ZEROS: torch.zeros_like(center)}
        if self._model.gene_mean is not None:
            found[_baselines.GENE_MEAN] = torch.from_numpy(self._model.gene_mean).to(center).expand_as(center)
        found[_baselines.SLIDE_MEAN] = slide_mean.expand_as(center)
        found[_baselines.NEIGHBOR_MEAN] = mean
        found[_baselines.DEPTH_SCALED] = _baselines.depth_scaled(center, mean, spots.mask)
        return found

    def score(self, masks: Callable[[Ints], Tensor], shown: csr_matrix | None = None) -> dict[str, list[RunningScores]]:
        """Scores of every predictor, one for each library.

        Parameters
        ----------
        masks
            Genes that are masked at some spots, by their numbers.
        shown
            What the neighbours of a spot show of their log1p counts; all of them by default.
        """

        def blocks() -> Iterator[tuple[Ints, Spots]]:
            for start in range(0, self.n_obs, BATCH_SIZE):
                rows = np.arange(start, min(start + BATCH_SIZE, self.n_obs))
                yield rows, read_spots(self.log_counts, self._graph, rows, masks(rows), shown=shown)

        # Of each gene over the spots where it isn't masked.
        total, n = torch.zeros(2, self.n_genes, dtype=torch.float64)
        for _, spots in blocks():
            total += spots.masked_center.sum(0, dtype=torch.float64)
            n += (~spots.mask).sum(0)
        slide_mean = (total / n.clamp(min=1)).float().to(self._device)
        scores: dict[str, dict[int, RunningScores]] = {}
        for rows, spots in blocks():
            spots = spots.to(self._device)
            libraries = self._libraries[rows]
            for name, prediction in self.predictions(spots, slide_mean).items():
                for library in np.unique(libraries):
                    picked = torch.from_numpy(np.flatnonzero(libraries == library)).to(self._device)
                    part = scores.setdefault(name, {}).setdefault(int(library), RunningScores(self.n_genes))
                    part.add(prediction[picked], spots.center[picked], spots.mask[picked])
        return {name: list(parts.values()) for name, parts in scores.items()}


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
    """Slides to evaluate a model on, one in memory at a time; at least one."""
    slide, found_device = None, get_device(device)
    for data in progress(as_list(sections), desc, unit="section"):
        slide = MaskedSlide(get_anndata(data, table_key), model, layer, library_key, connectivity_key, found_device)
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
) -> pd.DataFrame:
    """Mask random genes of every central spot and compare the model's predictions with the plain baselines'.

    The paper's pretraining evaluation: at each spot a share of the 14,558 genes is set to 0 in the centre (not in
    the neighbours), and predicted. Genes that a section lacks count as zeros, as in the paper.

    Parameters
    ----------
    {sections}
    {model}
    mask_fraction
        Share of the centre's genes to mask; 0.3 in the paper.
    {layer}
    {library_key}
    {connectivity_key}
    {table_key}
    {seed}
    {device}

    Returns
    -------
    Table of metrics, as :func:`imputation_metrics` names them, one row for each predictor: the model, zeros
    (the paper's baseline), the mean of each gene in training (where the model records it), its mean over the
    slide where it isn't masked, the mean of the neighbours, and the same scaled by the spot's depth. A spot's
    depth is the sum of its unmasked log1p counts over that of the neighbours' mean, within 0.2 to 5.

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
    ['neighbor mean', 'depth-scaled neighbor mean']
    """
    if not 0 < mask_fraction < 1:
        raise ValueError(f"mask_fraction={mask_fraction!r} has to lie between 0 and 1.")
    seed = check_whole("rng", rng, 0)
    loaded = models.load(model)
    scores: dict[str, list[RunningScores]] = {}
    slides = read_slides(sections, loaded, "Evaluating", table_key, layer, library_key, connectivity_key, device)
    for slide in slides:
        masks = RandomMasks(slide.n_genes, mask_fraction, (seed, slide.n_obs))
        for name, parts in slide.score(masks).items():
            scores.setdefault(name, []).extend(parts)
    return pd.DataFrame({name: summarize(parts) for name, parts in scores.items()}).T.rename_axis("predictor")


def as_list(sections: AnnData | SpatialData | Iterable[AnnData | SpatialData]) -> Iterable[AnnData | SpatialData]:
    """One section is as good as several."""
    if isinstance(sections, Iterable) and not hasattr(sections, "obs"):
        return sections
    return [sections]
