"""Embedding of histology patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._anndata import open_run
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._types import Floats32
from sagefm._utils import check_whole, get_device, progress
from sagefm.histology import texture as _texture
from sagefm.histology.patches import Patches
from sagefm.histology.spot_patches import as_spatialdata, get_params, open_patches
from sagefm.models import Encoder, load_encoder

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

FUNCTION = "tl.histology_embed"
TEXTURE = "texture"


@fill_docstring
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
        ``"texture"``: 87 features of color and texture, which need no weights and are computed on the CPU.
        ``"spafoundation"``: the published vision transformer, downloaded once; or a path or
        :class:`sagefm.models.Encoder`, as :func:`sagefm.models.load_encoder` takes them. Features of any other encoder
        can simply be put into ``obsm``.
    {device}
    {histology_key}
    {key_added}
    {n_patches}
    {table_key}
    {copy}

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
        If a vision transformer is asked for without the package transformers.
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
    check_whole("batch_size", batch_size, 1)
    extractor, sdata = FeatureExtractor(model, device), as_spatialdata(adata)
    run = open_run(adata, FUNCTION, key_added, _keys.HISTOLOGY_EMBEDDING, ["obsm"], table_key=table_key, copy=copy)
    check_size(extractor.encoder, get_params(run.adata, histology_key)["size"])
    features = np.empty((run.adata.n_obs, extractor.width), dtype=np.float32)
    for rows, patches in open_patches(run.adata, sdata, histology_key):
        features[rows] = extractor(patches, batch_size)
    recorded = {"features": np.array(_texture.FEATURES)} if extractor.encoder is None else {}
    logger.info("Described the histology of %d spots; wrote obsm['%s'].", len(features), key_added)
    params = {"model": extractor.name, "histology_key": histology_key}
    return run.commit({("obsm", key_added): features}, params, **recorded)


class FeatureExtractor:
    """Features of patches by one model; ``name`` is what :func:`histology_embed` takes to get it again."""

    def __init__(self, model: str | Path | Encoder, device: str = "auto") -> None:
        self.encoder = None if isinstance(model, str) and model == TEXTURE else load_encoder(model)
        self.device = str(get_device(device))
        self.width, self.name = len(_texture.FEATURES), TEXTURE
        if self.encoder is not None:
            self.width, self.name = self.encoder.width, self.encoder.name
            # A path as given, for a name may be that of several files.
            if isinstance(model, str | Path) and str(model) != self.name:
                self.name = str(Path(model).expanduser().resolve())

    def __call__(self, patches: Patches, batch_size: int = 64) -> Floats32:
        """Features of all, in their order."""
        found = np.empty((len(patches), self.width), dtype=np.float32)
        for numbers, pixels in progress(patches.blocks(batch_size), "Describing", unit="batch"):
            found[numbers] = (
                _texture.extract(pixels) if self.encoder is None else self.encoder.embed(pixels, self.device)
            )
        return found


def check_size(encoder: Encoder | None, size: int) -> None:
    """Refuse patches of another size than the encoder's; texture takes any."""
    if encoder is not None and size != encoder.size:
        raise ValueError(
            f"the patches are of {size} pixels, {encoder.name} takes {encoder.size}. Run "
            f"sg.pp.histology_patches(adata, image, size={encoder.size}) again."
        )
