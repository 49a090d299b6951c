"""Masked-central-spot evaluation of a model on whole sections, beside the plain baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sagefm import _keys, models
from sagefm._anndata import get_anndata
from sagefm._utils import check_whole, get_device, progress
from sagefm.benchmark._metrics import Sums, summarize
from sagefm.models import _baselines
from sagefm.models._masks import RandomMasks
from sagefm.models._spots import Spots
from sagefm.pp._counts import Counts
from sagefm.pp._genes import get_alignment
from sagefm.pp._graph import get_graph

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model
    from sagefm.models._canonical import Canonical

BATCH_SIZE = 256


class Slide:
    """One slide in the model's genes, with what is masked.

    Attributes
    ----------
    log_counts
        log1p counts, shape (spots, genes).
    shown
        What the neighbours of a spot show of them.
    masks
        Genes that are masked at some spots, by their numbers.
    """

    def __init__(
        self,
        adata: AnnData,
        model: Model,
        layer: str | None,
        connectivity_key: str,
        library_key: str | None,
        masks: Callable[[NDArray[np.int64]], Tensor],
    ) -> None:
        counts = Counts(adata, get_alignment(adata, model.vocabulary)[0].index, layer)
        self.log_counts = self.shown = counts.log1p(np.arange(len(model.vocabulary)), BATCH_SIZE)
        self.graph = get_graph(adata, connectivity_key)
        self.graph.data[:] = 1
        self.libraries = _libraries(adata, library_key)
        self.masks = masks

    def blocks(self, device: torch.device) -> Iterator[tuple[slice, Spots]]:
        n = self.log_counts.shape[0]
        for start in range(0, n, BATCH_SIZE):
            rows = slice(start, min(start + BATCH_SIZE, n))
            graph = self.graph[rows]
            center = self.log_counts[rows].toarray()
            neighbor_sum = (graph @ self.shown).toarray().astype(np.float32)
            degree = np.diff(graph.indptr)[:, None].astype(np.float32)
            yield (
                rows,
                Spots(
                    center=torch.from_numpy(center).to(device),
                    neighbor_sum=torch.from_numpy(neighbor_sum).to(device),
                    degree=torch.from_numpy(degree).to(device),
                    mask=self.masks(np.arange(rows.start, rows.stop)).to(device),
                ),
            )

    def unmasked_mean(self) -> Tensor:
        """Mean of each gene over the spots where it isn't masked."""
        total, n = np.zeros(self.log_counts.shape[1]), np.zeros(self.log_counts.shape[1])
        for _, spots in self.blocks(torch.device("cpu")):
            total += spots.masked_center.sum(0, dtype=torch.float64).numpy()
            n += (~spots.mask).sum(0).numpy()
        return torch.from_numpy((total / np.maximum(n, 1)).astype(np.float32))

    def evaluate(self, model: Model, canonical: Canonical, device: torch.device) -> dict[str, list[Sums]]:
        """Sums of every predictor, one for each library."""
        slide_mean = self.unmasked_mean().to(device)
        found: dict[tuple[str, int], Sums] = {}
        for rows, spots in self.blocks(device):
            center, mean = spots.masked_center, spots.neighbor_mean
            predictions = {
                model.name: canonical.forward(center, spots.neighbor_sum, spots.degree, spots.mask),
                _baselines.ZEROS: torch.zeros_like(center),
            }
            if model.gene_mean is not None:
                predictions[_baselines.GENE_MEAN] = torch.from_numpy(model.gene_mean).to(center).expand_as(center)
            predictions[_baselines.SLIDE_MEAN] = slide_mean.expand_as(center)
            predictions[_baselines.NEIGHBOR_MEAN] = mean
            predictions[_baselines.DEPTH_SCALED] = _baselines.depth_scaled(center, mean, spots.mask)
            for library in np.unique(self.libraries[rows]):
                picked = torch.from_numpy(np.flatnonzero(self.libraries[rows] == library)).to(device)
                truth, mask = spots.center[picked], spots.mask[picked]
                for name, prediction in predictions.items():
                    part = found.setdefault((name, library), Sums(truth.shape[1]))
                    part.add(prediction[picked], truth, mask)
        sums: dict[str, list[Sums]] = {}
        for (name, _), part in found.items():
            sums.setdefault(name, []).append(part)
        return sums


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
    seed: int = 0,
    device: str = "auto",
) -> pd.DataFrame:
    """Mask random genes of every central spot and compare the model's predictions with the plain baselines'.

    The paper's pretraining evaluation: at each spot a share of the 14,558 genes is set to 0 in the centre (not in
    the neighbours), and predicted. Genes that a section lacks count as zeros, as in the paper.

    Parameters
    ----------
    sections
        One or several slides, each with its graph (:func:`sagefm.pp.neighborhood_graph`) and raw counts.
        They are left as they are.
    model
        Name, path, or loaded model.
    mask_fraction
        Share of the centre's genes to mask; 0.3 in the paper.
    layer
        Layer with the raw counts; ``X`` by default.
    library_key
        Column of ``obs`` with the slide of each spot, where one object holds several.
    connectivity_key
        Which graph to use.
    table_key
        Table to use of a ``SpatialData``.
    seed
        Seed of the masks.
    device
        ``"auto"`` takes cuda, then mps, then cpu.

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
        If the counts are no raw counts or too few genes match.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> table = sg.benchmark.evaluate_imputation(adata, "sagefm-mini")
    >>> list(table.index)[-2:]
    ['neighbour mean', 'depth-scaled neighbour mean']
    """
    if not 0 < mask_fraction < 1:
        raise ValueError(f"mask_fraction={mask_fraction!r} has to lie between 0 and 1.")
    check_whole("seed", seed, 0)
    loaded, found_device = models.load(model), get_device(device)
    canonical = loaded.canonical().to(found_device, torch.float32)
    sums: dict[str, list[Sums]] = {}
    for data in progress(as_list(sections), "Evaluating", unit="section"):
        adata = get_anndata(data, table_key)
        masks = RandomMasks(len(loaded.vocabulary), mask_fraction, (seed, adata.n_obs))
        slide = Slide(adata, loaded, layer, connectivity_key, library_key, masks)
        for name, parts in slide.evaluate(loaded, canonical, found_device).items():
            sums.setdefault(name, []).extend(parts)
    if not sums:
        raise ValueError("no section was given.")
    return pd.DataFrame({name: summarize(parts) for name, parts in sums.items()}).T.rename_axis("predictor")


def as_list(sections: AnnData | SpatialData | Iterable[AnnData | SpatialData]) -> Iterable[AnnData | SpatialData]:
    """One section is as good as several."""
    if isinstance(sections, Iterable) and not hasattr(sections, "obs"):
        return sections
    return [sections]


def _libraries(adata: AnnData, library_key: str | None) -> np.ndarray:
    """Number of each spot's slide."""
    if library_key is None:
        return np.zeros(adata.n_obs, dtype=int)
    if library_key not in adata.obs:
        raise KeyError(f"library_key={library_key!r} not in adata.obs; it has {sorted(adata.obs)}.")
    return pd.factorize(adata.obs[library_key])[0]
