"""Embedding of histology patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._settings import logger
from sagefm._utils import check_free, check_whole, get_table, progress
from sagefm.pp._histology import open_patches
from sagefm.tl import _texture

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

TEXTURE = "texture"


def histology_embed(
    adata: AnnData | SpatialData,
    model: str = TEXTURE,
    *,
    histology_key: str = _keys.HISTOLOGY,
    key_added: str = _keys.HISTOLOGY_EMBEDDING,
    batch_size: int = 64,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Describe the histology around every spot.

    Parameters
    ----------
    adata
        Slide with the patches of :func:`sagefm.pp.histology_patches`; the ``SpatialData`` where the image lies in one.
    model
        ``"texture"``: 87 features of colour and texture, which need no weights.
    histology_key
        Which patches.
    key_added
        Where the features go in ``obsm``.
    batch_size
        Patches at a time; it changes memory and speed only.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    copy
        Return a copy of the table instead of writing in place.

    Returns
    -------
    ``None``, or the copy. Writes

    ``obsm["X_histology"]``
        Features, float32, shape (spots, features).
    ``uns["X_histology"]``
        ``params``; ``features``, what each is called.

    Raises
    ------
    KeyError
        If there are no patches, or the image is gone.
    ValueError
        If the model is unknown.

    Notes
    -----
    Stains are separated as by Ruifrok and Johnston (2001), texture is that of local binary patterns (Ojala 2002), both
    from scikit-image. Features differ in scale: standardise them, as :func:`annotate` and :func:`cluster` want it.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=5, n_cols=5, n_genes=300, image=True)
    >>> sg.pp.histology_patches(adata, size=64)
    >>> sg.tl.histology_embed(adata)
    >>> adata.obsm["X_histology"].shape
    (25, 87)
    """
    from anndata import AnnData

    if model != TEXTURE:
        raise ValueError(f"model={model!r} is not known; {TEXTURE!r} is.")
    check_whole("batch_size", batch_size, 1)
    sdata = None if isinstance(adata, AnnData) else adata
    adata = get_table(adata, table_key, copy=copy)
    check_free(adata, key_added, _keys.HISTOLOGY_EMBEDDING, ["obsm"], "tl.histology_embed")
    slides = open_patches(adata, sdata, histology_key)
    features = np.empty((adata.n_obs, len(_texture.names())), dtype=np.float32)
    for rows, patches in slides:
        for numbers, pixels in progress(patches.blocks(batch_size), "Describing", unit="batch"):
            features[rows[numbers]] = _texture.describe(pixels)
    adata.obsm[key_added] = features
    params = {"function": "tl.histology_embed", "model": model, "histology_key": histology_key}
    adata.uns[key_added] = {"params": params, "features": np.array(_texture.names())}
    logger.info("Described the histology of %d spots; wrote obsm['%s'].", adata.n_obs, key_added)
    return adata if copy else None
