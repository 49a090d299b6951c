"""Embedding of histology patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sagefm import _keys
from sagefm._anndata import check_free, get_anndata
from sagefm._settings import logger
from sagefm._utils import check_whole, get_device, progress
from sagefm.histology import texture as _texture
from sagefm.histology.locate import get_params, open_patches
from sagefm.histology.patches import Patches
from sagefm.models import Encoder, load_encoder

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

TEXTURE = "texture"


def histology_embed(
    adata: AnnData | SpatialData,
    model: str | Path | Encoder = TEXTURE,
    *,
    device: str = "auto",
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
        ``"texture"``: 87 features of colour and texture, which need no weights. ``"spafoundation"``: the published
        vision transformer, downloaded once; or a path or :class:`sagefm.models.Encoder`, as
        :func:`sagefm.models.load_encoder` takes them. Features of any other encoder can simply be put into ``obsm``.
    device
        ``"auto"`` takes cuda, then mps, then cpu; texture is always computed on the CPU.
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
        Features, float32, shape (spots, features): 87 of texture, 768 of ``"spafoundation"`` (the class token after
        the last norm).
    ``uns["X_histology"]``
        ``params``; of texture ``features``, what each is called.

    Raises
    ------
    KeyError
        If there are no patches.
    FileNotFoundError
        If the image or the weights are gone.
    ImportError
        If a vision transformer is asked for without the extra: ``pip install 'sagefm[histology]'``.
    ValueError
        If the model is unknown, or wants patches of another size.
    RuntimeError
        If the weights can't be downloaded, or changed since the first download.

    Notes
    -----
    Stains are separated as by Ruifrok and Johnston (2001), texture is that of local binary patterns (Ojala 2002), both
    from scikit-image. SpaFoundation: a ViT-B/16 pretrained by self-distillation on a million patches.

    Features differ in scale: tools of sagefm standardise them. Differences in staining between slides are in them, so
    compare slides with the features standardised within each (``library_key`` and ``scale="slide"``).

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

    check_whole("batch_size", batch_size, 1)
    describe = Describe(model, device)
    sdata = None if isinstance(adata, AnnData) else adata
    adata = get_anndata(adata, table_key, copy=copy)
    check_free(adata, key_added, _keys.HISTOLOGY_EMBEDDING, ["obsm"], "tl.histology_embed")
    describe.check(get_params(adata, histology_key)["size"])
    features = np.empty((adata.n_obs, describe.width), dtype=np.float32)
    for rows, patches in open_patches(adata, sdata, histology_key):
        features[rows] = describe(patches, batch_size)
    params = {"function": "tl.histology_embed", "model": describe.name, "histology_key": histology_key}
    adata.obsm[key_added] = features
    adata.uns[key_added] = {"params": params}
    if describe.encoder is None:
        adata.uns[key_added]["features"] = np.array(_texture.names())
    logger.info("Described the histology of %d spots; wrote obsm['%s'].", adata.n_obs, key_added)
    return adata if copy else None


class Describe:
    """Features of patches by one model; ``name`` is what :func:`histology_embed` takes to get it again."""

    def __init__(self, model: str | Path | Encoder, device: str = "auto") -> None:
        self.encoder = None if isinstance(model, str) and model == TEXTURE else load_encoder(model)
        self.device = str(get_device(device))
        self.width = len(_texture.names()) if self.encoder is None else self.encoder.width
        # A path as given, for a name may be that of several files.
        is_path = isinstance(model, str | Path) and self.encoder is not None and str(model) != self.encoder.name
        self.name = str(Path(str(model)).expanduser().resolve()) if is_path else getattr(self.encoder, "name", TEXTURE)

    def check(self, size: int) -> None:
        """Refuse patches of another size than the encoder's."""
        if self.encoder is not None:
            check_size(self.encoder, size)

    def __call__(self, patches: Patches, batch_size: int = 64) -> NDArray[np.float32]:
        """Features of all, in their order."""
        encoder, device = self.encoder, self.device
        found = np.empty((len(patches), self.width), dtype=np.float32)
        for numbers, pixels in progress(patches.blocks(batch_size), "Describing", unit="batch"):
            found[numbers] = _texture.describe(pixels) if encoder is None else encoder.embed(pixels, device)
        return found


def check_size(encoder: Encoder, size: int) -> None:
    """Refuse patches of another size than the encoder's."""
    if size != encoder.size:
        raise ValueError(
            f"the patches are of {size} pixels, {encoder.name} takes {encoder.size}. Run "
            f"sg.pp.histology_patches(adata, image, size={encoder.size}) again."
        )
