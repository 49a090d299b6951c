"""Exact derivatives of predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sagefm import _keys
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._types import Floats, Floats32, Ints
from sagefm._utils import check_choice

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData
    from torch import Tensor

    from sagefm._anndata import Slot
    from sagefm.models import Model
    from sagefm.models._canonical import Canonical
    from sagefm.tl._compute import Rows
    from sagefm.tl._engine import Engine


@fill_docstring
def gene_sensitivity(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str],
    targets: str | Sequence[str] | None = None,
    *,
    model: str | Path | Model = "sage-fm-hest1k",
    wrt: Literal["neighbors", "center"] = "neighbors",
    mask: Literal["all", "none"] = "all",
    similar: bool = True,
    store_spots: bool = False,
    key_added: str = _keys.SENSITIVITY,
    layer: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    device: str = "auto",
    batch_size: int | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Differentiate predicted genes by genes in the neighbors, or in the spot itself.

    The network is piecewise linear, so the derivative is a product of weight matrices, exact within the piece that
    a spot lies in: where :func:`perturb_lr` takes a gene from its lowest to its highest count, this is the slope
    at what was measured.

    Parameters
    ----------
    {adata}
    genes
        Genes to differentiate by.
    targets
        Predicted genes; by default ``genes``.
    {model}
    wrt
        Which log1p count of a gene is meant: its mean over the neighbors (all of them rise together), or the
        spot's own.
    mask
        Whether all targets are masked in the center, as in training. A gene that is masked there has no
        derivative with respect to the center: 0.
    {similar}
    store_spots
        Keep the derivatives at every spot.
    {key_added}
    {layer}
    {connectivity_key}
    {device}
    {batch_size}
    {table_key}
    {copy}

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
        If the counts are not raw, too few genes are known, or an argument is wrong.

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

    from sagefm.tl._run import check_names, open_slide  # brings torch, which takes seconds to import

    check_choice("wrt", wrt, ("neighbors", "center"))
    check_choice("mask", mask, ("all", "none"))
    sources, read = (
        list(dict.fromkeys(check_names(*side)))
        for side in (("genes", genes), ("targets", genes if targets is None else targets))
    )
    run = open_slide(
        *(adata, model, "tl.gene_sensitivity", key_added, _keys.SENSITIVITY, ["obsm"]),
        layer=layer,
        connectivity_key=connectivity_key,
        similar=similar,
        device=device,
        batch_size=batch_size,
        table_key=table_key,
        copy=copy,
    )
    by, of = run.find_genes("genes", sources), run.find_genes("targets", read)
    total = np.zeros((len(by), len(of)))
    per_spot = np.empty((run.adata.n_obs, *total.shape), dtype=np.float32) if store_spots else None
    for rows, (summed, spots) in _derivatives(run.engine, by, of, wrt, hide=mask == "all", keep=store_spots):
        total += summed
        if per_spot is not None:
            per_spot[rows] = spots
    table = pd.DataFrame(total / run.adata.n_obs, index=sources, columns=read)
    written: dict[Slot, Any] = {}
    if per_spot is not None:
        columns = [f"{gene}|{target}" for gene in sources for target in read]
        flat = per_spot.reshape(run.adata.n_obs, -1)
        written["obsm", key_added] = pd.DataFrame(flat, index=run.adata.obs_names, columns=columns)
    logger.info(
        "Differentiated %d targets by %d genes with %s; wrote uns['%s'].",
        *(len(read), len(sources), run.model.name, key_added),
    )
    return run.commit(written, {"wrt": wrt, "mask": mask, "similar": similar}, results=table)


def _derivatives(
    engine: Engine, by: Ints, of: Ints, wrt: Literal["neighbors", "center"], *, hide: bool, keep: bool
) -> Iterator[tuple[Rows, tuple[Floats, Floats32 | None]]]:
    """Derivative of each target by each gene, block by block: its sum over the spots, and that of every spot (if kept).

    By the chain rule: from the target back through the trunk to the first layer, times the gene's weights there; and
    straight through the decoder's own term, where the gene is the target itself.
    """
    import torch

    masks = [np.unique(of)] if hide else []
    projection, model = engine.project(masks), engine.canonical
    device = engine.compute.device
    # Only a decoder with a gain reads the neighbors' mean of its targets.
    shown_genes, place = np.unique(of, return_inverse=True)
    target = engine.target(shown_genes, np.concatenate([np.empty(0, dtype=np.int64), *masks]))
    targets, genes = torch.from_numpy(of).to(device), torch.from_numpy(by).to(device)
    of_neighbors = wrt == "neighbors"
    weights = (model.neighbors if of_neighbors else model.center)[genes]
    same = torch.from_numpy(by[:, None] == of).to(device)
    hidden_in_center = torch.from_numpy(np.isin(by, masks[0] if masks else [])).to(device)

    @torch.inference_mode()
    def differentiate(rows: Rows) -> tuple[Floats, Floats32 | None]:
        state = projection.state(rows, "center" if masks else None, range(len(masks)))
        scaled, similar = (mean if mean is None else mean[:, place] for mean in projection.means(state, target))
        slopes, gates = _slopes(model, state.hidden, targets, scaled, similar)
        share = (model.neighbors_share if of_neighbors else model.center_share)(state.degree)
        summed = np.zeros((len(by), len(of)))
        spots = np.empty((len(state.degree), *summed.shape), dtype=np.float32) if keep else None
        for column in range(len(of)):
            back = gates[:, column, None] * _pull_back(model, slopes, targets[column])
            part = share * back @ weights.T  # (spots, genes)
            if of_neighbors and model.gain is not None:
                # What stands for the mean of a gene that no spot shows doesn't come from the neighbors.
                seen = ~target.unseen[place[column]]
                direct = model.gain[targets[column]] * state.depth * (state.degree > 0) * seen
                part[:, same[:, column]] += gates[:, column, None] * direct
            if not of_neighbors:
                part[:, hidden_in_center] = 0  # a gene that is hidden there is no input
            summed[:, column] = part.sum(0).cpu().numpy()
            if spots is not None:
                spots[:, :, column] = part.cpu().numpy()
        return summed, spots

    return projection.map(differentiate, "Differentiating")


def _slopes(
    model: Canonical, h: Tensor, read: Tensor, scaled: Tensor | None, similar: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Slope of each activation of the trunk, and which targets are above zero, shape (spots, targets)."""
    import torch
    from torch.nn import functional as F

    slopes = []
    for weight, bias in model.trunk:
        slopes.append(torch.where(h > 0, 1.0, model.negative_slope))
        h = torch.addmm(bias, F.leaky_relu(h, model.negative_slope), weight)
    return slopes, (model.decode(h, read, scaled, similar) > 0).to(h.dtype)


def _pull_back(model: Canonical, slopes: list[Tensor], target: Tensor) -> Tensor:
    """Derivative of a target before its ReLU by the first layer's output, shape (spots, width), or (1, width)."""
    back = model.decoder[0][:, target][None]
    for (weight, _), slope in zip(reversed(model.trunk), reversed(slopes), strict=True):
        back = back @ weight.T * slope
    return back
