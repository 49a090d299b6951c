"""Expression predicted from histology."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, open_run, recorded_params
from sagefm._docs import fill_docstring
from sagefm._io.scratch import Scratch
from sagefm._settings import logger
from sagefm._slides import find_library_key
from sagefm._types import Array
from sagefm._utils import check_choice, check_positive, check_whole, progress
from sagefm.histology.embed import TEXTURE, check_size
from sagefm.histology.expression import ExpressionRegressor, RidgeRegressor, read_expression
from sagefm.histology.prediction import Regression, predict_each_other, predict_from_reference
from sagefm.histology.spot_patches import as_spatialdata, get_params, open_patches
from sagefm.models import Encoder, load_encoder
from sagefm.tl._labels import classifiers
from sagefm.tl._labels.held_out import check_same_model
from sagefm.tl._points import get_column, get_points, standardize

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

FUNCTION = "tl.predict_expression"
METHODS = ("ridge", "finetune")


@fill_docstring
def predict_expression(
    adata: AnnData | SpatialData,
    genes: int | Iterable[str] = 250,
    *,
    use_rep: str = _keys.HISTOLOGY_EMBEDDING,
    reference: AnnData | SpatialData | None = None,
    method: Literal["ridge", "finetune"] = "ridge",
    scale: classifiers.Scale = "auto",
    model: str | Path | Encoder | None = None,
    n_epochs: int = 20,
    learning_rate: float = 1e-5,
    batch_size: int = 64,
    device: str = "auto",
    rng: int | np.random.Generator = 0,
    layer: str | None = None,
    library_key: str | None = None,
    group_key: str | None = None,
    key_added: str = _keys.HISTOLOGY_EXPRESSION,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Predict expression from what the histology looks like.

    Without a ``reference``, no spot is predicted by a fit that has seen its group: spots of ``adata`` are learned from
    only where other groups are predicted. A reference should be of other sections, best of other donors: groups that
    both have are predicted, but not scored.

    Parameters
    ----------
    adata
        Slides to predict. With a ``reference`` they need no counts.
    genes
        How many of the most expressed genes, or the names of some.
    {use_rep}
    reference
        Slides with counts to learn from; by default those of ``adata``, two groups or more.
    method
        ``"ridge"``, a regression of the features; or ``"finetune"``, the encoder trained along with a layer norm and
        a linear layer on top, which wants a GPU and the patches of :func:`sagefm.pp.histology_patches`.
    scale
        For ``"ridge"``: ``"slide"`` standardizes the features within each slide, which removes differences in staining.
        ``"none"`` does not. ``"auto"`` chooses the option that predicts held-out groups better, and ``"slide"`` if
        there is only one group.
    model
        Encoder to fine-tune. By default, the one that computed the features.
    n_epochs, learning_rate, batch_size
        Settings of fine-tuning by Adam. Patches are turned and mirrored at random. The defaults are SpaFoundation's,
        for its pretrained ViT-B. An encoder of :func:`sagefm.train.pretrain_histology`'s preset ``"small"`` learns next
        to nothing at ``1e-5`` and needs ``1e-4``.
    {device}
    {rng}
    {layer}
    {library_key}
    {group_key}
    {key_added}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obsm["histology_expression"]``
        Predicted ``log1p`` of counts at a common depth (``params["depth"]``, the median of what was learned from),
        a ``DataFrame`` of shape (spots, genes).
    ``var["histology_expression_reliability"]``
        Pearson r of each gene over the spots of a held-out group, mean over groups; NaN for genes that weren't
        predicted.
    ``uns["histology_expression"]``
        ``params``; ``scores``, a row per gene: ``r`` as above, ``r_<group>`` of each group, and ``r2``: the squared
        error less than that of the gene's mean in what was learned from, as a share (0 or less: no better). With a
        reference, scores are of ``adata`` if it has counts of these genes and groups that the reference lacks, else
        of the reference's groups, each held out; ``params["scored_on"]`` says which.

    Raises
    ------
    KeyError
        If the features, a gene, or a column is missing.
    ValueError
        If nothing can be held out, there are no counts to learn from, or the features don't fit together.

    Notes
    -----
    Fine-tuning is SpaFoundation's, with its defaults; its published figure is the median of the genes' r on the 250
    most expressed genes. The penalty of the ridge regression is chosen within what is learned from, where whole groups
    are held out; ``scale`` on the same held-out groups that are scored, of two settings. At most five folds of groups
    are held out.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12, n_genes=1000, image=True)
    >>> sg.pp.histology_patches(adata, size=64)
    >>> sg.tl.histology_embed(adata)
    >>> adata.obs["half"] = (adata.obs["array_row"] < 6).astype(str)
    >>> sg.tl.predict_expression(adata, 50, group_key="half")
    >>> adata.obsm["histology_expression"].shape
    (144, 50)
    """
    check_choice("scale", scale, classifiers.SCALES)
    check_choice("method", method, METHODS)
    column = ("var", _keys.HISTOLOGY_RELIABILITY.format(key_added))
    default = _keys.HISTOLOGY_EXPRESSION
    run = open_run(adata, FUNCTION, key_added, default, ["obsm"], [column], table_key=table_key, copy=copy)
    query = run.adata
    source = query if reference is None else get_anndata(reference, table_key)
    expression = read_expression(source, genes, layer)
    group_column = group_key or find_library_key(source, library_key)
    groups = get_column(source, "group_key", group_column)
    if method == "ridge":
        regressor: ExpressionRegressor = RidgeRegressor()
        scales = ("none", "slide") if scale == "auto" else (scale,)
    else:
        made_by = recorded_params(query, use_rep)
        encoder, key = _load_trainable(model or made_by.get("model")), made_by.get("histology_key", _keys.HISTOLOGY)
        regressor = _finetuning(encoder, n_epochs, learning_rate, batch_size, device, rng)

    def read(part: AnnData, data: AnnData | SpatialData | None) -> dict[str, Array]:
        if method == "ridge":
            return {name: read_features(part, name, use_rep, library_key) for name in scales}
        return {"none": _read_pixels(part, as_spatialdata(data), key, encoder)}

    inputs = read(source, adata if reference is None else reference)
    regressions = {name: Regression(values, expression, groups, regressor) for name, values in inputs.items()}
    if source is query:
        prediction = predict_each_other(regressions)
    else:
        inputs = read(query, adata)
        if method == "ridge":
            check_same_model(source, query, use_rep)
        prediction = predict_from_reference(regressions, query, inputs, layer, group_column)
    scores = prediction.scores
    written = {
        ("obsm", key_added): pd.DataFrame(prediction.values, index=query.obs_names, columns=expression.genes),
        column: np.full(query.n_vars, np.nan) if scores is None else scores["r"].reindex(query.var_names).to_numpy(),
    }
    params = {
        "method": method,
        "use_rep": use_rep,
        "scale": prediction.scale,
        "depth": expression.depth,
        "reference": source is not query,
        "layer": layer,
        "library_key": find_library_key(query, library_key),
        "group_key": group_key,
        "scored_on": None if scores is None else prediction.scored_on,
    }
    if scores is None:
        logger.warning(
            "Nothing is held out: the reference is of one group and adata has no counts of its own, so how good the "
            "prediction is can't be told."
        )
    n_genes, quality = len(expression.genes), prediction.quality
    logger.info("Predicted %d genes from histology%s; wrote obsm['%s'].", n_genes, quality, key_added)
    return run.commit(written, params, **({} if scores is None else {"scores": scores}))


def read_features(adata: AnnData, scale: str, use_rep: str, library_key: str | None) -> Array:
    """Features of every spot, standardized within its slide or as they are."""
    if use_rep == _keys.HISTOLOGY_EMBEDDING and use_rep not in adata.obsm:
        raise KeyError(f"{use_rep!r} not in adata.obsm. Run sg.tl.histology_embed(adata) first.")
    points = get_points(adata, use_rep)
    key = find_library_key(adata, library_key)
    return standardize(points, get_column(adata, "library_key", key)) if scale == "slide" else points


def _load_trainable(model: str | Path | Encoder | None) -> Encoder:
    """Encoder to fine-tune."""
    if model is None or model == TEXTURE:
        raise ValueError("texture can't be fine-tuned: pass model, a vision transformer as 'spafoundation' or a path.")
    return load_encoder(model)


def _finetuning(
    encoder: Encoder, n_epochs: int, learning_rate: float, batch_size: int, device: str, rng: int | np.random.Generator
) -> ExpressionRegressor:
    try:
        from sagefm.histology.finetune import FineTunedRegressor
    except ModuleNotFoundError as error:
        if error.name != "lightning":
            raise
        raise ModuleNotFoundError("fine-tuning needs Lightning: pip install lightning.") from error
    return FineTunedRegressor(
        encoder,
        n_epochs=check_whole("n_epochs", n_epochs, 1),
        learning_rate=check_positive("learning_rate", learning_rate),
        batch_size=check_whole("batch_size", batch_size, 1),
        device=device,
        seed=int(np.random.default_rng(rng).integers(2**31)),
    )


def _read_pixels(adata: AnnData, sdata: SpatialData | None, key: str, encoder: Encoder) -> Array:
    """Patches of all spots, shape (spots, size, size, 3); beyond the memory limit they lie in a file."""
    check_size(encoder, get_params(adata, key)["size"])
    found: Array = Scratch().empty((adata.n_obs, encoder.size, encoder.size, 3), np.uint8)
    for rows, patches in open_patches(adata, sdata, key):
        for numbers, pixels in progress(patches.blocks(), "Reading", unit="batch"):
            found[rows[numbers]] = pixels
    return found
