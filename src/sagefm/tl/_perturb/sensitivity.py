"""Exact derivatives of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from sagefm import _keys
from sagefm._anndata import check_free, get_anndata
from sagefm._settings import logger
from sagefm._utils import check_choice, shorten

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData
    from torch import Tensor

    from sagefm.models import Model
    from sagefm.models._canonical import Canonical


def gene_sensitivity(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str],
    targets: str | Sequence[str] | None = None,
    *,
    model: str | Path | Model = "sage-fm-hest1k",
    wrt: Literal["neighbors", "center"] = "neighbors",
    mask: Literal["all", "none"] = "all",
    store_spots: bool = False,
    key_added: str = _keys.SENSITIVITY,
    layer: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    device: str = "auto",
    batch_size: int | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Differentiate predicted genes by genes in the neighbours, or in the spot itself.

    The network is piecewise linear, so the derivative is a product of weight matrices, exact within the piece that
    a spot lies in: where :func:`perturb_lr` takes a gene from its lowest to its highest count, this is the slope
    at what was measured.

    Parameters
    ----------
    adata
        Slide with raw counts and the graph of :func:`sagefm.pp.neighborhood_graph`.
    genes
        Genes to differentiate by.
    targets
        Predicted genes; by default ``genes``.
    model
        Name, path or loaded model, see :func:`sagefm.models.load`.
    wrt
        Which log1p count of a gene is meant: its mean over the neighbours (all of them rise together), or the
        spot's own.
    mask
        Whether all targets are masked in the centre, as in training. A gene that is masked there has no
        derivative with respect to the centre: 0.
    store_spots
        Keep the derivatives at every spot.
    key_added
        Where results go.
    layer
        Layer with the raw counts; ``X`` by default.
    connectivity_key
        Graph in ``obsp``, as in :func:`sage_embed`.
    device
        ``"cuda"``, ``"mps"``, ``"cpu"``, or the first of them there is (``"auto"``).
    batch_size
        Spots at a time; it changes memory and speed only. By default 2,048.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    copy
        Return a copy instead of writing in place.

    Returns
    -------
    ``None``, or the copy. Writes

    ``uns["gene_sensitivity"]["results"]``
        Mean derivative over spots, ``DataFrame`` of shape (genes, targets), in log1p counts per log1p count.
        A spot's depth is held fixed.
    ``uns["gene_sensitivity"]["params"]``
        What was asked.
    ``obsm["gene_sensitivity"]``
        With ``store_spots``: ``DataFrame`` with a column ``GENE|TARGET`` for each of them.
    ``var["sage_gene"]``, ``uns["sage_genes"]``
        As :func:`sagefm.pp.align_genes`, if it hasn't run on these genes.

    Raises
    ------
    KeyError
        If the graph or the layer is missing, or a gene is unknown to the model.
    ValueError
        If the counts are no raw counts, too few genes are known, or an argument is wrong.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.gene_sensitivity(adata, ["COL1A1", "CD74"], ["COL3A1"], model="sagefm-mini")
    >>> adata.uns["gene_sensitivity"]["results"].shape
    (2, 1)
    """
    import pandas as pd
    import torch

    from sagefm.tl import _engine

    check_choice("wrt", wrt, ("neighbors", "center"))
    check_choice("mask", mask, ("all", "none"))
    adata = get_anndata(adata, table_key, copy=copy)
    check_free(adata, key_added, _keys.SENSITIVITY, ["obsm"], "tl.gene_sensitivity")
    names = [_names("genes", genes), _names("targets", genes if targets is None else targets)]
    engine, loaded, alignment, is_new = _engine.prepare(
        adata,
        model,
        layer=layer,
        connectivity_key=connectivity_key,
        device=device,
        batch_size=batch_size,
        dtype="float32",
    )
    found = [alignment.find(adata, loaded.vocabulary, side) for side in names]
    for side, index in zip(names, found, strict=True):
        if unknown := [name for name, gene in zip(side, index, strict=True) if gene < 0]:
            raise KeyError(f"not in the vocabulary of the model ({loaded.vocabulary.name}): {shorten(unknown)}.")
    gene_index, target_index = found
    masks = [np.unique(target_index)] if mask == "all" else []
    engine.project(masks)
    canonical = engine.canonical
    # Only a decoder with a gain reads the neighbours' mean of its targets.
    shown_genes, place = np.unique(target_index, return_inverse=True)
    shown = engine.target(shown_genes).log_counts
    read = torch.from_numpy(target_index).to(engine.device)
    by = torch.from_numpy(gene_index).to(engine.device)
    weights = (canonical.neighbors if wrt == "neighbors" else canonical.center)[by]
    own = torch.from_numpy(gene_index[:, None] == target_index).to(engine.device)
    hidden_in_center = torch.from_numpy(np.isin(gene_index, masks[0] if masks else [])).to(engine.device)
    total = np.zeros(own.shape)
    per_spot = np.empty((adata.n_obs, *own.shape), dtype=np.float32) if store_spots else None
    with torch.inference_mode():
        for rows in engine.blocks("Differentiating"):
            with engine.computing(rows):
                block = np.zeros(own.shape)
                state = next(engine.states(rows, "center" if masks else None))
                scaled = None
                if shown is not None:
                    scaled = state.depth * engine.neighbor_mean(rows, shown)[:, place]
                slopes, gates = _slopes(canonical, state.hidden, read, scaled)
                share = (canonical.neighbors_share if wrt == "neighbors" else canonical.center_share)(state.degree)
                for column in range(len(target_index)):
                    # From the target back to the first layer, at every spot.
                    back = gates[:, column, None] * _pull_back(canonical, slopes, read[column])
                    part = share * back @ weights.T  # (spots, genes)
                    if wrt == "neighbors" and canonical.gain is not None:
                        direct = canonical.gain[read[column]] * state.depth * (state.degree > 0)
                        part[:, own[:, column]] += gates[:, column, None] * direct
                    if wrt == "center":
                        part[:, hidden_in_center] = 0
                    block[:, column] = part.sum(0).cpu().numpy()
                    if per_spot is not None:
                        per_spot[rows, :, column] = part.cpu().numpy()
                total += block

    table = pd.DataFrame(total / adata.n_obs, index=names[0], columns=names[1])
    params: dict[str, object] = {"function": "tl.gene_sensitivity", "model": loaded.name, "wrt": wrt, "mask": mask}
    params["connectivity_key"] = connectivity_key
    if layer is not None:
        params["layer"] = layer
    if is_new:
        alignment.write(adata)
    adata.obsm.pop(key_added, None)
    if per_spot is not None:
        columns = [f"{gene}|{target}" for gene in names[0] for target in names[1]]
        adata.obsm[key_added] = pd.DataFrame(per_spot.reshape(adata.n_obs, -1), index=adata.obs_names, columns=columns)
    adata.uns[key_added] = {"params": params, "results": table}
    logger.info(
        "Differentiated %d targets by %d genes with %s; wrote uns['%s'].", *reversed(own.shape), loaded.name, key_added
    )
    return adata if copy else None


def _names(argument: str, genes: str | Sequence[str]) -> list[str]:
    names = [genes] if isinstance(genes, str) else list(genes)
    if bad := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"{argument} has to hold names, got {bad[0]!r}.")
    if not names:
        raise ValueError(f"{argument} is empty.")
    return list(dict.fromkeys(names))


def _slopes(model: Canonical, h: Tensor, read: Tensor, scaled: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Slope of each activation of the trunk, and which targets are above zero, shape (spots, targets)."""
    import torch
    from torch.nn import functional as F

    slopes = []
    for weight, bias in model.trunk:
        slopes.append(torch.where(h > 0, 1.0, model.negative_slope))
        h = torch.addmm(bias, F.leaky_relu(h, model.negative_slope), weight)
    return slopes, (model.decode(h, read, scaled) > 0).to(h.dtype)


def _pull_back(model: Canonical, slopes: list[Tensor], target: Tensor) -> Tensor:
    """Derivative of a target before its ReLU by the first layer's output, shape (spots, width), or (1, width)."""
    back = model.decoder[0][:, target][None]
    for (weight, _), slope in zip(reversed(model.trunk), reversed(slopes), strict=True):
        back = back @ weight.T * slope
    return back
