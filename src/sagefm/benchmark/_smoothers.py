"""Imputation against smoothers that look for similar spots anywhere on the slide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn.neighbors import kneighbors_graph

from sagefm import _keys, models
from sagefm._anndata import get_anndata
from sagefm._depth import DepthSpline, attainable_by_fold
from sagefm._docs import fill_docstring
from sagefm._settings import ROWS_AT_A_TIME
from sagefm._slides import find_libraries
from sagefm._types import Array, Floats, Floats32
from sagefm._utils import check_whole, progress
from sagefm.benchmark._imputation import as_list, tabulate
from sagefm.models import _baselines
from sagefm.models._scores import MaskSums, RunningScores, Summary, spot_r2
from sagefm.pp._counts import Counts
from sagefm.pp._diffusion import N_COMPONENTS, N_NEIGHBORS, N_STEPS, Diffusion, similar_components
from sagefm.pp._genes import get_alignment
from sagefm.pp._graph import get_graph
from sagefm.pp._normalize import check_variety
from sagefm.tl._impute.predict import impute
from sagefm.tl._impute.request import N_FOLDS, gene_folds

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sagefm.models import Model

KNN, DIFFUSION, SCALED = "kNN in PCA", "diffusion", "depth-scaled "


@fill_docstring
def compare_imputation(
    sections: AnnData | SpatialData | Iterable[AnnData | SpatialData],
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    n_folds: int = N_FOLDS,
    n_components: int = N_COMPONENTS,
    n_neighbors: int = N_NEIGHBORS,
    n_steps: int = N_STEPS,
    layer: str | None = None,
    library_key: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    table_key: str = "table",
    rng: int = 0,
    device: str = "auto",
) -> pd.DataFrame:
    """Compare the model's imputation with neighbors in space and with smoothers over similar spots.

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
        Most similar spots to average; and neighbors of the diffusion's graph.
    n_steps
        Steps of the diffusion.
    {layer}
    {library_key}
    {connectivity_key}
    {table_key}
    {seed}
    {device}

    Returns
    -------
    Table of metrics over all measured genes, as :func:`imputation_metrics` names them, one row for each predictor: the
    model; zeros; gene mean (of training, where the model carries it); slide mean; mean of the spatial neighbors;
    ``kNN in PCA``; ``diffusion``, ``n_steps`` steps on scanpy's graph of the same components, in the manner of MAGIC
    (van Dijk et al. 2018); and the last four scaled by the spot's depth (``depth alone`` is the scaled slide mean).

    Raises
    ------
    KeyError
        If there is no graph or layer of that name.
    ValueError
        If a slide has too few spots or genes for so many components or neighbors, or its counts are not raw.

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
    similarity = {"n_components": n_components, "n_neighbors": n_neighbors, "n_steps": n_steps, "rng": rng}
    found: dict[str, Summary] = {}
    for adata in _split(sections, library_key, connectivity_key, table_key):
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
        masked, scores = MaskSums(len(loaded.vocabulary)), dict[str, RunningScores]()
        per_spot: dict[str, Floats] = {}
        for fold in range(n_folds):
            hidden = fold_of[genes] == fold
            truth, shown = log_counts[:, hidden].toarray(), log_counts[:, ~hidden]
            depth = np.asarray(shown.expm1().sum(axis=1), dtype=float).ravel()
            basis = DepthSpline(depth)(depth)
            masked.add_genes(genes[hidden], truth, basis)
            predictions = {loaded.name: imputed[:, hidden], _baselines.ZEROS: np.zeros_like(truth)}
            if loaded.gene_mean is not None:
                predictions[_baselines.GENE_MEAN] = np.broadcast_to(loaded.gene_mean[genes[hidden]], truth.shape)
            predictions |= _smoothed(truth, shown, spatial, **similarity)
            for name, prediction in predictions.items():
                part = scores.setdefault(name, RunningScores(len(loaded.vocabulary), masked))
                part.add_genes(genes[hidden], prediction, truth, basis)
                error = truth - prediction
                sums = np.stack([v.sum(axis=1, dtype=float) for v in (error, error**2, truth, truth**2)])
                per_spot[name] = per_spot.get(name, 0) + sums
        best = attainable_by_fold(log_counts, fold_of[genes]).spread(genes, len(loaded.vocabulary))
        for name, part in scores.items():
            part.r2.append(spot_r2(per_spot[name], len(genes)))
            found.setdefault(name, Summary(len(loaded.vocabulary))).add(part, best)
    if not found:
        raise ValueError("no section was given.")
    return tabulate(found, loaded.vocabulary.symbols).astype({"n_spots": int, "n_genes": int})


def _split(
    sections: AnnData | SpatialData | Iterable[AnnData | SpatialData],
    library_key: str | None,
    connectivity_key: str,
    table_key: str,
) -> Iterator[AnnData]:
    """Every slide as an object of its own."""
    for data in progress(as_list(sections), "Comparing", unit="section"):
        adata = get_anndata(data, table_key)
        libraries = find_libraries(adata, library_key, connectivity_key)
        for _, rows in libraries.rows():
            yield adata if len(libraries) == 1 else adata[rows].copy()


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
    truth: Floats32, shown: csr_matrix, spatial: csr_matrix, n_components: int, n_neighbors: int, n_steps: int, rng: int
) -> dict[str, Floats32]:
    """Means of hidden genes over the slide, neighbors and similar spots; all but plain kNN by depth as well."""
    if min(shown.shape) <= n_components:
        raise ValueError(f"{shown.shape[1]} genes are too few for n_components={n_components}. Set a smaller one.")
    check_variety(AnnData(shown.expm1()), n_components, "n_components")
    components = similar_components(shown, n_components, rng)
    similar = csr_matrix(kneighbors_graph(components, n_neighbors, include_self=False))
    means: dict[str, Callable[[Array], Array]] = {
        _baselines.SLIDE_MEAN: lambda values: np.broadcast_to(values.mean(axis=0), values.shape),
        _baselines.NEIGHBOR_MEAN: partial(_mean_over, spatial),
        KNN: partial(_mean_over, similar),
        DIFFUSION: Diffusion.over_similar(components, n_neighbors, n_steps).mean,
    }
    total = np.asarray(shown.sum(axis=1), dtype=float)
    found: dict[str, Floats32] = {}
    for name, mean in means.items():
        found[name] = np.asarray(mean(truth), dtype=np.float32)
        ratio = _baselines.relative_depth(total, np.array(mean(total)))
        scaled = _baselines.DEPTH if name == _baselines.SLIDE_MEAN else SCALED + name
        found[scaled] = found[name] * ratio
    return found


def _mean_over(graph: csr_matrix, values: Array) -> Array:
    """Mean of values over the spots in each row of a graph."""
    return np.asarray(graph @ values) / np.maximum(np.diff(graph.indptr), 1)[:, None]
