"""Imputation against smoothers that look for similar spots anywhere on the slide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from sagefm import _keys, models
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._settings import ROWS_AT_A_TIME
from sagefm._types import Floats, Floats32, Ints
from sagefm._utils import check_whole, progress
from sagefm.benchmark._imputation import as_list
from sagefm.models import _baselines
from sagefm.models._canonical import depth_ratio
from sagefm.models._scores import RunningScores, spot_r2, summarize
from sagefm.pp._counts import Counts
from sagefm.pp._genes import get_alignment
from sagefm.pp._graph import get_graph
from sagefm.pp._normalize import check_variety, normalize_total
from sagefm.tl._impute.predict import impute
from sagefm.tl._impute.request import gene_folds

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model

KNN, DIFFUSION, SCALED = "kNN in PCA", "diffusion", "depth-scaled "


@fill_docstring
def compare_imputation(
    sections: AnnData | SpatialData | Iterable[AnnData | SpatialData],
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    n_folds: int = 4,
    n_components: int = 50,
    n_neighbors: int = 15,
    n_steps: int = 3,
    layer: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    table_key: str = "table",
    rng: int = 0,
    device: str = "auto",
) -> pd.DataFrame:
    """Compare the model's imputation with neighbours in space and with smoothers over similar spots.

    The folds of :func:`sagefm.tl.impute`: a fold of the genes is hidden at a spot and predicted. Smoothers see the
    other genes of all spots, to find those most alike, and average the fold's genes over
    these, the spot itself left out.

    Parameters
    ----------
    {sections}
    {model}
    n_folds
        Number of folds.
    n_components
        Principal components that similarity is measured in, of counts scaled to a common depth and log1p.
    n_neighbors
        Most similar spots to average; and neighbours of the diffusion's graph.
    n_steps
        Steps of the diffusion.
    {layer}
    {connectivity_key}
    {table_key}
    {seed}
    {device}

    Returns
    -------
    Table of metrics over all measured genes, as :func:`imputation_metrics` names them, one row for each predictor: the
    model; zeros; gene mean (of training, where the model carries it); slide mean; mean of the spatial neighbours;
    ``kNN in PCA``; ``diffusion``, ``n_steps`` steps on scanpy's graph of the same components, in the manner of MAGIC
    (van Dijk et al. 2018); and the last three scaled by the spot's depth.

    Raises
    ------
    KeyError
        If there is no graph or layer of that name.
    ValueError
        If a slide has too few spots or genes for so many components or neighbours, or its counts are not raw.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> table = sg.benchmark.compare_imputation(adata, "sagefm-mini", n_components=10)
    >>> bool(table.loc["sagefm-mini", "rmse"] < table.loc["zeros", "rmse"])
    True
    """
    for name, value in (("n_folds", n_folds), ("n_components", n_components), ("n_neighbors", n_neighbors)):
        check_whole(name, value, 2)
    check_whole("n_steps", n_steps, 1)
    loaded = models.load(model)
    fold_of = gene_folds(len(loaded.vocabulary), n_folds)
    similarity = {"n_components": n_components, "n_neighbors": n_neighbors, "n_steps": n_steps, "seed": rng}
    parts: dict[str, list[RunningScores]] = {}
    for data in progress(as_list(sections), "Comparing", unit="section"):
        adata = get_anndata(data, table_key)
        if adata.n_obs <= max(n_components, n_neighbors + 1):
            raise ValueError(
                f"a slide has {adata.n_obs} spots, too few for n_components={n_components} and "
                f"n_neighbors={n_neighbors}. Set smaller ones."
            )
        alignment, _ = get_alignment(adata, loaded.vocabulary)
        genes = alignment.measured
        log_counts = Counts(adata, alignment.index, layer).log1p(genes, ROWS_AT_A_TIME)
        if not log_counts.count_nonzero():
            raise ValueError("a slide holds no counts of the model's genes.")
        slim = _like(adata, layer)
        where: dict[str, Any] = {"layer": layer, "connectivity_key": connectivity_key, "device": device}
        impute(slim, None, loaded, n_folds=n_folds, reliability=False, **where)
        column = np.array([np.flatnonzero(alignment.index == gene)[0] for gene in genes])
        imputed = slim.layers[_keys.IMPUTED][:, column]
        spatial = get_graph(adata, connectivity_key)
        found: dict[str, tuple[RunningScores, Floats]] = {}
        for fold in range(n_folds):
            hidden = fold_of[genes] == fold
            truth = log_counts[:, hidden].toarray()
            predictions = {loaded.name: imputed[:, hidden], _baselines.ZEROS: np.zeros_like(truth)}
            if loaded.gene_mean is not None:
                predictions[_baselines.GENE_MEAN] = np.broadcast_to(loaded.gene_mean[genes[hidden]], truth.shape)
            predictions |= _smoothed(truth, log_counts[:, ~hidden], spatial, **similarity)
            for name, prediction in predictions.items():
                start = RunningScores(len(loaded.vocabulary)), np.zeros((4, len(truth)))
                _add(*found.setdefault(name, start), prediction, truth, genes[hidden])
        for name, (scores, per_spot) in found.items():
            scores.r2.append(spot_r2(per_spot, len(genes)))
            parts.setdefault(name, []).append(scores)
    if not parts:
        raise ValueError("no section was given.")
    table = pd.DataFrame({name: summarize(scores) for name, scores in parts.items()}).T
    return table.astype({"n_spots": int, "n_genes": int})


def _like(adata: AnnData, layer: str | None) -> AnnData:
    """The same counts and graph, in an object to write to."""
    from anndata import AnnData

    return AnnData(
        adata.X,
        obs=adata.obs[[]].copy(),
        var=adata.var.copy(),
        obsp=dict(adata.obsp),
        layers={} if layer is None else {layer: adata.layers[layer]},
        uns={_keys.GENES: adata.uns[_keys.GENES]} if _keys.GENES in adata.uns else {},
    )


def _smoothed(
    truth: Floats32, shown: sparse.csr_matrix, spatial: sparse.csr_matrix, **similarity: int
) -> dict[str, Floats32]:
    """Means of hidden genes over the slide, over neighbours and over similar spots; the latter two by depth as well."""
    found = {_baselines.SLIDE_MEAN: np.broadcast_to(truth.mean(axis=0), truth.shape)}
    total = np.asarray(shown.sum(axis=1), dtype=float)
    for name, weights in ((_baselines.NEIGHBOR_MEAN, spatial), *_similar(shown, **similarity)):
        rows = sparse.csr_matrix(weights.multiply(1 / np.maximum(weights.sum(axis=1), 1e-12)))
        found[name] = np.asarray(rows @ truth, dtype=np.float32)
        ratio = depth_ratio(torch.from_numpy(total), torch.from_numpy(rows @ total)).numpy()
        scaled = _baselines.DEPTH_SCALED if name == _baselines.NEIGHBOR_MEAN else SCALED + name
        found[scaled] = found[name] * ratio.astype(np.float32)
    return found


def _similar(
    shown: sparse.csr_matrix, n_components: int, n_neighbors: int, n_steps: int, seed: int
) -> Iterator[tuple[str, sparse.csr_matrix]]:
    """Weights of other spots by how similar they are in the genes that are shown."""
    import scanpy as sc
    from anndata import AnnData
    from sklearn.neighbors import kneighbors_graph

    if min(shown.shape) <= n_components:
        raise ValueError(f"{shown.shape[1]} genes are too few for n_components={n_components}. Set a smaller one.")
    slide = AnnData(shown.expm1())
    normalize_total(slide)
    sc.pp.log1p(slide)
    check_variety(slide, n_components, "n_components")
    sc.pp.pca(slide, n_comps=n_components, random_state=seed)
    yield KNN, sparse.csr_matrix(kneighbors_graph(slide.obsm["X_pca"], n_neighbors, include_self=False))
    with np.errstate(invalid="ignore"):  # between spots that are the same
        sc.pp.neighbors(slide, n_neighbors=n_neighbors, use_rep="X_pca", method="gauss", random_state=seed)
    kernel = sparse.csr_matrix(slide.obsp["connectivities"])
    kernel.data[~np.isfinite(kernel.data)] = 1
    # A spot is at least as near to itself as to any other.
    kernel = kernel + sparse.diags(kernel.max(axis=1).toarray().ravel() - kernel.diagonal())
    step = sparse.csr_matrix(kernel.multiply(1 / kernel.sum(axis=1)))
    spread = step
    for _ in range(n_steps - 1):
        spread = spread @ step
    spread.setdiag(0)  # or the hidden value would be seen
    yield DIFFUSION, sparse.csr_matrix(spread)


def _add(scores: RunningScores, per_spot: Floats, prediction: Floats32, truth: Floats32, genes: Ints) -> None:
    """Add all spots of some genes, by gene and by spot."""
    p, t = prediction.astype(float), truth.astype(float)
    scores.n[genes] += len(t)
    scores.moments[:, genes] += np.stack([part.sum(axis=0) for part in (p, t, p * p, t * t, p * t)])
    per_spot += np.stack([part.sum(axis=1) for part in (t - p, (t - p) ** 2, t, t * t)])
