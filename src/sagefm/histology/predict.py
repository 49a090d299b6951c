"""Expression predicted from histology."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sagefm import _keys
from sagefm._anndata import check_free, get_anndata, recorded_params
from sagefm._io.scratch import Scratch
from sagefm._settings import logger
from sagefm._utils import check_choice, check_positive, check_whole, progress
from sagefm.histology.embed import TEXTURE, check_size
from sagefm.histology.expression import (
    Fitted,
    Floats,
    Learner,
    Ridge,
    Target,
    check_genes,
    fit_folds,
    read_target,
    score_genes,
)
from sagefm.histology.locate import get_params, open_patches
from sagefm.models import Encoder, load_encoder
from sagefm.tl._labels import classifiers
from sagefm.tl._labels.held_out import check_same_model
from sagefm.tl._points import get_column, get_points, standardize

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

FUNCTION = "tl.predict_expression"
METHODS = ("ridge", "finetune")
AT_A_TIME = 2048  # spots to predict


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
    use_rep
        Features in ``obsm``, of both objects and from the same model.
    reference
        Slides with counts to learn from; by default those of ``adata``, two groups or more.
    method
        ``"ridge"``, a regression of the features; or ``"finetune"``, the encoder trained along with a layer norm and
        a linear layer on top, which wants a GPU and the patches of :func:`sagefm.pp.histology_patches`.
    scale
        Of ``"ridge"``: ``"slide"`` standardises the features within each slide, which takes differences in staining;
        ``"none"`` leaves them; ``"auto"`` takes what predicts held-out groups better (``"slide"`` where there is one
        group).
    model
        Encoder to fine-tune; by default what made the features. The rest is of fine-tuning too:
    n_epochs, learning_rate, batch_size
        Of Adam; patches are turned and mirrored at random. The defaults are SpaFoundation's, for its pretrained
        ViT-B; an encoder of :func:`sagefm.train.pretrain_histology`'s preset ``"small"`` learns next to nothing at
        ``1e-5`` and wants ``1e-4``.
    device
        ``"auto"`` takes cuda, then mps, then cpu.
    rng
        Seed or generator.
    layer
        Layer with the raw counts; ``X`` by default.
    library_key
        Column of ``obs`` with the slide of each spot; each object is one slide by default.
    group_key
        Column of ``obs`` with what is held out together, best the donor; ``library_key`` by default.
    key_added
        Where the prediction goes.
    table_key
        Table to use where ``adata`` or ``reference`` is a ``SpatialData``.
    copy
        Return a copy instead of writing in place.

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
    from anndata import AnnData

    check_choice("scale", scale, classifiers.SCALES)
    check_choice("method", method, METHODS)
    sdata = None if isinstance(adata, AnnData) else adata
    reference_sdata = None if reference is None or isinstance(reference, AnnData) else reference
    adata = get_anndata(adata, table_key, copy=copy)
    column = _keys.HISTOLOGY_RELIABILITY.format(key_added)
    check_free(adata, key_added, _keys.HISTOLOGY_EXPRESSION, ["obsm"], FUNCTION, [("var", column)])
    source = adata if reference is None else get_anndata(reference, table_key)
    target = read_target(source, check_genes(source, genes), layer)
    groups = get_column(source, "group_key", group_key or library_key)
    inputs: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}  # of what is learned from and of what is predicted
    if method == "ridge":
        learner: Learner = Ridge()
        for name in ("none", "slide") if scale == "auto" else (scale,):
            of_source = features(source, name, use_rep, library_key)
            inputs[name] = (of_source, of_source if source is adata else features(adata, name, use_rep, library_key))
        if source is not adata:
            check_same_model(source, adata, use_rep)
    else:
        made_by = recorded_params(adata, use_rep)
        learner, encoder = _fine_tune(model or made_by.get("model"), n_epochs, learning_rate, batch_size, device, rng)
        histology_key = made_by.get("histology_key", _keys.HISTOLOGY)
        own = read_pixels(adata, sdata, histology_key, encoder)
        of_source = own if source is adata else read_pixels(source, reference_sdata, histology_key, encoder)
        inputs["none"] = (of_source, own)
    regressions = {name: Regression(of_source, target, groups, learner) for name, (of_source, _) in inputs.items()}
    held_out: dict[str, Floats] = {}
    if source is adata or len(regressions) > 1:  # a fit for each group is costly where nothing hangs on it
        held_out = _held_out(regressions)
    if source is adata and not held_out:
        raise ValueError(
            "all spots are of one group, and a section is never predicted by a fit that has seen it. Set library_key "
            "or group_key to a column with two groups or more (sections, best donors), or pass a reference."
        )
    if held_out:
        chosen = min(held_out, key=lambda name: _error(target, held_out[name]))
    else:
        chosen = list(regressions)[-1]
    regression = regressions[chosen]
    if source is adata:
        predicted = held_out[chosen]
    else:
        predicted = regression.fit()(inputs[chosen][1])
    scored_on, scores = "", None
    if source is not adata:
        scores = _score_query(adata, target, predicted, layer, group_key or library_key, groups)
        scored_on = "adata"
    if scores is None and (held_out := held_out or _held_out(regressions)):
        known = target.known
        mean = _means_elsewhere(target, groups)[known]
        scores = score_genes(target.values[known], held_out[chosen][known], groups[known], target.genes, mean)
        scored_on = "adata" if source is adata else "reference"
    params: dict[str, Any] = {
        "function": FUNCTION,
        "method": method,
        "use_rep": use_rep,
        "scale": chosen,
        "depth": target.depth,
        "reference": source is not adata,
    }
    options = {"layer": layer, "library_key": library_key, "group_key": group_key}
    params |= {name: value for name, value in options.items() if value is not None}
    recorded: dict[str, Any] = {"params": params}
    quality = ""
    reliability = pd.Series(np.nan, index=adata.var_names)
    if scores is None:
        logger.warning(
            "Nothing is held out: the reference is of one group and adata has no counts of its own, so how good the "
            "prediction is can't be told."
        )
    else:
        recorded["scores"], params["scored_on"] = scores, scored_on
        r = scores["r"]
        reliability = r.reindex(adata.var_names)
        quality = (
            f" (median r {r.median():.2f}, {(scores['r2'] > 0).sum()} of {len(r)} better than their mean, where groups "
            f"of {scored_on} are held out)"
        )
    adata.obsm[key_added] = pd.DataFrame(predicted, index=adata.obs_names, columns=target.genes)
    adata.var[column] = reliability.to_numpy(dtype=np.float64)
    adata.uns[key_added] = recorded
    logger.info("Predicted %d genes from histology%s; wrote obsm['%s'].", len(target.genes), quality, key_added)
    return adata if copy else None


@dataclass(frozen=True)
class Regression:
    """Features and expression of the slides that are learned from."""

    inputs: NDArray[Any]
    target: Target
    groups: NDArray[np.str_]
    learner: Learner

    def folds(self) -> Iterable[tuple[NDArray[np.int64], Fitted]]:
        """Spots of some groups, and a fit to the others."""
        return fit_folds(self.inputs, self.target, self.groups, self.learner)

    def held_out(self) -> Floats | None:
        """Every spot from a fit that hasn't seen its group; None where all are of one."""
        found = np.full((len(self.inputs), len(self.target.genes)), np.nan, dtype=np.float32)
        for test, fitted in self.folds():
            for part in np.split(test, range(AT_A_TIME, len(test), AT_A_TIME)):  # of pixels, some hundred MB
                found[part] = fitted(self.inputs[part])
        return None if np.isnan(found).any() else found

    def fit(self) -> Fitted:
        """Fit to all."""
        return self.learner.fit(self.inputs, self.target.values, self.groups, np.flatnonzero(self.target.known))


def _held_out(regressions: dict[str, Regression]) -> dict[str, Floats]:
    """Every spot from a fit that hasn't seen its group, for each kind of features; none where there is one group."""
    found = {name: regression.held_out() for name, regression in regressions.items()}
    return {name: predicted for name, predicted in found.items() if predicted is not None}


def features(adata: AnnData, scale: str, use_rep: str, library_key: str | None) -> NDArray[Any]:
    """Features of every spot, standardised within its slide or as they are."""
    if use_rep == _keys.HISTOLOGY_EMBEDDING and use_rep not in adata.obsm:
        raise KeyError(f"{use_rep!r} not in adata.obsm. Run sg.tl.histology_embed(adata) first.")
    points = get_points(adata, use_rep)
    return standardize(points, get_column(adata, "library_key", library_key)) if scale == "slide" else points


def read_pixels(adata: AnnData, sdata: SpatialData | None, key: str, encoder: Encoder) -> NDArray[np.uint8]:
    """Patches of all spots, shape (spots, size, size, 3); beyond the memory limit they lie in a file."""
    check_size(encoder, get_params(adata, key)["size"])
    found: NDArray[np.uint8] = Scratch().empty((adata.n_obs, encoder.size, encoder.size, 3), np.uint8)
    for rows, patches in open_patches(adata, sdata, key):
        for numbers, pixels in progress(patches.blocks(), "Reading", unit="batch"):
            found[rows[numbers]] = pixels
    return found


def _fine_tune(
    model: Any, n_epochs: int, learning_rate: float, batch_size: int, device: str, rng: int | np.random.Generator
) -> tuple[Learner, Encoder]:
    try:
        from sagefm.histology.finetune import FineTune
    except ModuleNotFoundError as error:
        if error.name != "lightning":
            raise
        raise ModuleNotFoundError("fine-tuning needs Lightning: pip install 'sagefm[histology]'.") from error
    n_epochs, batch_size = check_whole("n_epochs", n_epochs, 1), check_whole("batch_size", batch_size, 1)
    learning_rate = check_positive("learning_rate", learning_rate)
    if model is None or model == TEXTURE:
        raise ValueError("texture can't be fine-tuned: pass model, a vision transformer as 'spafoundation' or a path.")
    encoder = load_encoder(model)
    seed = int(np.random.default_rng(rng).integers(2**31))
    return FineTune(encoder, n_epochs, learning_rate, batch_size, device, seed), encoder


def _error(target: Target, predicted: Floats) -> float:
    """Mean squared error of the spots that have counts."""
    return float(((target.values - predicted)[target.known].astype(np.float64) ** 2).mean())


def _means_elsewhere(target: Target, groups: NDArray[np.str_]) -> Floats:
    """What the mean predictor says of each spot: each gene's mean over the spots of the other folds."""
    found = np.zeros_like(target.values)
    for train, test in classifiers.folds(groups):
        found[test] = target.values[train[target.known[train]]].mean(axis=0)
    return found


def _score_query(
    adata: AnnData,
    target: Target,
    predicted: Floats,
    layer: str | None,
    key: str | None,
    reference_groups: NDArray[np.str_],
) -> pd.DataFrame | None:
    """Scores on the slides that were predicted, if they have counts of these genes and groups of their own."""
    if adata.X is None and layer is None:
        return None
    if not set(target.genes) <= set(adata.var_names):
        return None
    own = read_target(adata, target.genes, layer, target.depth)
    groups = get_column(adata, "group_key", key if key is not None and key in adata.obs else None)
    seen = np.isin(groups, reference_groups) & (key is not None)
    if seen.any():
        logger.warning(
            "%d spots are of groups that the reference has too (%s): the fit has seen these, so they aren't scored.",
            seen.sum(),
            ", ".join(np.unique(groups[seen])[:5]),
        )
    rows = own.known & ~seen
    if not rows.any():
        return None
    mean = np.broadcast_to(target.values[target.known].mean(axis=0), predicted.shape)
    return score_genes(own.values[rows], predicted[rows], groups[rows], target.genes, mean[rows])
