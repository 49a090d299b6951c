"""The published pipeline, literally: one complete graph of 15 nodes per spot, dense, GCNConv on every node.

Independent truth for the parity tests and the slow side of the benchmarks. Shares nothing with the package
but the module of GCNConv layers that it runs.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from sklearn.neighbors import BallTree
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader


def dense_log1p(adata, symbols, index=None):
    """log1p counts of the vocabulary, dense; genes that the slide lacks are 0.

    Columns are found by symbol, or given as vocabulary indices (-1 for none), to be added up per gene.
    """
    counts = adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)
    if index is None:
        position = {symbol: gene for gene, symbol in enumerate(symbols)}
        index = np.array([position.get(name, -1) for name in adata.var_names])
    dense = np.zeros((adata.n_obs, len(symbols)), dtype=np.float32)
    known, first = np.unique(index[index >= 0], return_index=True)
    columns = np.flatnonzero(index >= 0)
    dense[:, known] = counts[:, columns[first]]
    for column in np.setdiff1d(columns, columns[first]):
        dense[:, index[column]] += counts[:, column]
    return np.log1p(dense)


def nearest_spots(coordinates, n_spots=15):
    """Each spot and its nearest ones, as the published notebook finds them."""
    found = BallTree(coordinates).query(coordinates, k=n_spots)[1]
    return [[i, *[j for j in row if j != i][: n_spots - 1]] for i, row in enumerate(found)]


def neighborhoods_of(graph):
    """Each spot and its neighbors, from a connectivity matrix."""
    return [[i, *graph.indices[graph.indptr[i] : graph.indptr[i + 1]]] for i in range(graph.shape[0])]


def complete_edges(n):
    """Edges of the complete directed graph on n nodes, without loops: GCNConv adds those."""
    source, target = np.nonzero(~np.eye(n, dtype=bool))
    return torch.from_numpy(np.stack([source, target]))


def ego_graphs(dense, neighborhoods, center_mask=None, everywhere_mask=None):
    """One PyG graph per spot; masked genes are set to 0 at the center or on all 15 nodes."""
    for spots in neighborhoods:
        x = dense[spots].copy()
        if center_mask is not None:
            x[0, center_mask] = 0
        if everywhere_mask is not None:
            x[:, everywhere_mask] = 0
        yield Data(x=torch.from_numpy(x), edge_index=complete_edges(len(spots)))


def diffusion_weights(visible):
    """Weight of every spot (column) in the mean of each (row): three steps over similar spots, the spot left out."""
    import scanpy as sc

    counts = np.expm1(visible.astype(float))
    depth = counts.sum(axis=1, keepdims=True)
    values = np.log1p(counts * np.median(depth[depth > 0]) / np.maximum(depth, 1e-12))
    left, scale, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    slide = AnnData(obsm={"X_pca": (left * scale)[:, :50].astype(np.float32)})
    sc.pp.neighbors(slide, n_neighbors=15, use_rep="X_pca", method="gauss")
    kernel = slide.obsp["connectivities"].toarray()
    np.fill_diagonal(kernel, kernel.max(axis=1))
    weights = np.linalg.matrix_power(kernel / kernel.sum(axis=1, keepdims=True), 3)
    np.fill_diagonal(weights, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def similar_mean(dense, masked, neighborhoods):
    """Diffusion × depth at the central spots, dense: the mean of all genes over similar spots, at the spot's depth.

    Similar by the genes that aren't masked; on slides of fewer than 50 spots the neighbors stand for them.
    """
    centers = [spots[0] for spots in neighborhoods]
    shown = dense.copy()
    shown[:, masked] = 0
    if len(dense) < 50:
        weights = np.zeros((len(centers), len(dense)))
        for row, spots in zip(weights, neighborhoods, strict=True):
            row[spots[1:]] = 1 / max(len(spots) - 1, 1)
    else:
        weights = diffusion_weights(shown)[centers]
    total = shown.sum(axis=1, dtype=float)
    around = weights @ total
    ratio = np.where(around > 0, np.clip(total[centers] / np.maximum(around, 1e-12), 0.2, 5), 1)
    return (ratio[:, None] * (weights @ dense)).astype(dense.dtype)


@torch.no_grad()
def run(network, dense, neighborhoods, *, what="embed", batch_size=64, similar=None, **masks):
    """Output at the central spots: the embedding (``"embed"``) or all genes (``"predict"``)."""
    graphs = list(ego_graphs(dense, neighborhoods, **masks))
    extra = {}
    masked = masks.get("center_mask")
    if network.architecture == "sage" and what == "predict" and masked is not None:
        # What is masked at the center doesn't count for its depth.
        extra["masked"] = torch.from_numpy(masked)
        similar = similar_mean(dense, masked, neighborhoods) if similar is None else similar
        for graph, row in zip(graphs, similar, strict=True):
            graph.similar = torch.from_numpy(np.vstack([row, np.zeros_like(graph.x[1:])]))
    results = []
    for batch in DataLoader(graphs, batch_size=batch_size):
        if "similar" in batch:
            extra["similar"] = batch.similar
        forward = network.embed if what == "embed" else partial(network, **extra)
        nodes = forward(batch.x, batch.edge_index)
        results.append(nodes[batch.ptr[:-1]])
    return torch.cat(results).numpy()


@torch.no_grad()
def of_unseen(network, dense, neighborhoods, unseen, typical):
    """Genes that no spot shows (``unseen``, boolean) at the central spots.

    Their mean in training, at the depth of the spot, stands for the means over neighbors and similar spots.
    """
    shown = np.where(unseen, 0, dense)
    z = torch.from_numpy(run(network, shown, neighborhoods))
    total = shown[[spots[0] for spots in neighborhoods]].sum(axis=1, dtype=float)
    ratio = np.clip(total / typical[~unseen].sum(dtype=float), 0.2, 5)
    own = torch.from_numpy((ratio[:, None] * typical).astype(np.float32)) * (network.gain + network.similar_gain)
    return torch.relu(network.fc_gene(z) + own)[:, unseen].numpy()


@torch.no_grad()
def perturbed(network, dense, neighborhoods, clamped, masked, batch_size=64, similar=None):
    """All genes predicted at the central spots, with genes set to values on all other nodes (``clamped``) and masked
    at the center."""
    predictions = []
    if network.architecture == "sage" and similar is None:
        similar = similar_mean(dense, masked, neighborhoods)
    for start in range(0, len(neighborhoods), batch_size):
        graphs, extra = [], {}
        for spots in neighborhoods[start : start + batch_size]:
            x = dense[spots].copy()
            x[0, masked] = 0
            for gene, value in clamped.items():
                x[1:, gene] = value
            graphs.append(Data(x=torch.from_numpy(x), edge_index=complete_edges(len(spots))))
        batch = next(iter(DataLoader(graphs, batch_size=batch_size)))
        if network.architecture == "sage":
            # The depth is that of the counts as observed, whatever is clamped.
            observed = [dense[spots] for spots in neighborhoods[start : start + batch_size]]
            extra = {"depth": torch.tensor([_depth(x, masked) for x in observed])}
            extra["similar"] = torch.from_numpy(similar[start : start + batch_size])
        predictions.append(predict_center(network, batch, **extra))
    return torch.cat(predictions).numpy()


def predict_center(network, batch, depth=None, similar=None):
    """Prediction at the central nodes, with a given depth and means over similar spots where the decoder takes them."""
    center = batch.ptr[:-1]
    if depth is None:
        return network(batch.x, batch.edge_index)[center]
    z = network.embed(batch.x, batch.edge_index)[center]
    neighbors = torch.stack([part[1:].mean(0) for part in batch.x.split(batch.ptr.diff().tolist())])
    own = network.gain * depth[:, None].sqrt() * neighbors + network.similar_gain * similar
    return torch.relu(network.fc_gene(z) + own)


def _depth(x, masked):
    """Depth of a spot relative to its neighbors without the masked genes, within 0.2 to 5."""
    kept = np.ones(x.shape[1], dtype=bool)
    kept[masked] = False
    mean = x[1:, kept].mean(0).sum()
    return float(np.clip(x[0, kept].sum() / mean, 0.2, 5)) if mean > 0 else 1.0
