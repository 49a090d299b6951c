"""Embedding of spots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sagefm import _keys
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._slides import find_libraries, find_library_key
from sagefm._types import Precision
from sagefm._utils import check_choice
from sagefm.tl._points import standardize_like

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model


@fill_docstring
def sage_embed(
    adata: AnnData | SpatialData,
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    scale: Literal["none", "slide"] = "none",
    library_key: str | None = None,
    key_added: str = _keys.EMBEDDING,
    layer: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    device: str = "auto",
    batch_size: int | None = None,
    dtype: Precision = "float32",
    store: str | Path | None = None,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Embed every spot with its neighborhood.

    Parameters
    ----------
    {adata}
    {model}
    scale
        ``"slide"`` gives every dimension mean 0 and standard deviation 1 within each slide. This removes what only
        distinguishes slides, such as depth, so that clusters can be found in several slides together.
    {library_key}
    {key_added}
    {layer}
    {connectivity_key}
    {device}
    {batch_size}
    {dtype}
    {store}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obsm["X_sage"]``
        Embedding, float32, shape (spots, width of the model's last hidden layer; 1,024 as published). With
        ``store`` a dask array.
    ``uns["X_sage"]``
        ``params``: the model and what it read; ``n_spots``, the size of the largest neighborhood, the spot included.
    ``var["sage_gene"]``, ``uns["sage_genes"]``
        As :func:`sagefm.pp.align_genes`, if it hasn't run on these genes.

    Raises
    ------
    KeyError
        If the graph or the layer is missing.
    ValueError
        If the counts are not raw, too few genes are known, or an argument is wrong.
    FileExistsError
        If there is something at ``store``.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Methods: output of the fifth graph convolution at the central spot, nothing
    masked.

    The graph of a spot with d neighbors is complete: d + 1 spots that are all connected.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> adata.obsm["X_sage"].dtype
    dtype('float32')
    """
    from sagefm.tl._run import open_slide  # brings torch, which takes seconds to import

    check_choice("scale", scale, ("none", "slide"))
    run = open_slide(
        adata,
        model,
        "tl.sage_embed",
        key_added,
        _keys.EMBEDDING,
        ["obsm"],
        layer=layer,
        connectivity_key=connectivity_key,
        device=device,
        batch_size=batch_size,
        dtype=dtype,
        store=store,
        table_key=table_key,
        copy=copy,
    )
    shape = (run.adata.n_obs, run.engine.canonical.embedding_dim)
    slides = find_libraries(run.adata, library_key, connectivity_key).rows() if scale == "slide" else ()
    params: dict[str, Any] = {"n_spots": int(np.diff(run.engine.graph.indptr).max()) + 1, "scale": scale}
    params["library_key"] = find_library_key(run.adata, library_key, connectivity_key)
    with run.writing() as sink:
        embedding = sink.empty("obsm", key_added, shape)
        projection = run.engine.project()
        for rows, found in projection.map(lambda rows: projection.embed(projection.state(rows)), "Embedding"):
            embedding[rows] = found
        for _, spots in slides:
            part = embedding[spots, :]
            embedding[spots, :] = standardize_like(part, part)
        result = run.commit({("obsm", key_added): embedding}, params)
    logger.info(
        "Embedded %d spots with %s; wrote obsm['%s'] %s%s.",
        *(run.adata.n_obs, run.model.name, key_added, shape),
        f" to {sink.name}" if sink.name else "",
    )
    return result
