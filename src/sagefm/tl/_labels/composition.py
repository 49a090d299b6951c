"""Shares of classes in spots, by regression of their likelihoods."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from sagefm import _keys
from sagefm._anndata import check_free, get_anndata
from sagefm._settings import logger
from sagefm._utils import check_choice, check_key, check_whole, get_device, progress
from sagefm.tl._labels import classifiers
from sagefm.tl._labels.held_out import check_same_model, in_query, in_reference
from sagefm.tl._labels.labels import check_classes, score_labels
from sagefm.tl._points import get_column, get_points

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData
    from torch import nn

    Floats = NDArray[np.float64]

WIDTH, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 128, 128, 1e-3, 1e-4


def composition(
    adata: AnnData | SpatialData,
    target_key: str,
    *,
    use_rep: str = _keys.EMBEDDING,
    reference: AnnData | SpatialData | None = None,
    n_layers: int = 2,
    scale: classifiers.Scale = "auto",
    n_epochs: int = 30,
    library_key: str | None = None,
    group_key: str | None = None,
    device: str = "auto",
    rng: int | np.random.Generator = 0,
    key_added: str = _keys.COMPOSITION,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Predict how likely each class is in a spot, by a small network fitted to known likelihoods.

    Parameters
    ----------
    adata
        Slide or slides to predict.
    target_key
        Likelihoods in ``obsm``, between 0 and 1, shape (spots, classes), a ``DataFrame`` or an array; rows that are
        missing (NaN) are predicted, not learned from.
    use_rep
        Representation in ``obsm``, of both objects and from the same model.
    reference
        Slides to learn from. By default the spots of ``adata`` whose likelihoods are known.
    n_layers
        Layers of the network, 2 or 3.
    scale
        ``"slide"`` standardises the representation within each slide, ``"none"`` over all; ``"auto"`` takes what
        predicts held-out groups better (``"slide"`` where there is one group).
    n_epochs
        Passes over the spots.
    library_key
        Column of ``obs`` with the slide of each spot; each object is one slide by default.
    group_key
        Column of ``obs`` with what is held out together, best the donor; ``library_key`` by default.
    device
        ``"auto"`` takes cuda, then mps, then cpu.
    rng
        Seed or generator.
    key_added
        Where the predictions go.
    table_key
        Table to use where ``adata`` or ``reference`` is a ``SpatialData``.
    copy
        Return a copy instead of writing in place.

    Returns
    -------
    ``None``, or the copy. Writes

    ``obsm["sage_composition"]``
        Likelihoods, a ``DataFrame`` of shape (spots, classes); they needn't add up to 1. Spots of ``adata`` whose
        likelihoods are known get those of a network that their group was held out from.
    ``uns["sage_composition"]``
        ``params``; ``scores``, as of :func:`sagefm.tl.annotate`: by held-out group and over all, binary cross-entropy
        (``bce``), Pearson and Spearman correlation of each class over spots (``pearson_mean``, ``pearson_median``, …)
        and of each spot over classes (``pearson_spot_mean``, …), and how well the likeliest class is found
        (``accuracy``, ``f1_macro``, …).

    Raises
    ------
    KeyError
        If the likelihoods, the representation, or a column is missing.
    ValueError
        If likelihoods are no numbers between 0 and 1, or the representations don't fit together.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 4b: networks of two and three layers with sigmoid outputs, binary cross-entropy.

    Examples
    --------
    >>> import pandas as pd
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> domains = pd.get_dummies(adata.obs["domain"], dtype=float)
    >>> adata.obsm["share"] = adata.obsp["sage_connectivities"] @ domains / 14
    >>> adata.obs["half"] = (adata.obs["array_row"] < 6).astype(str)
    >>> sg.tl.composition(adata, "share", group_key="half", n_epochs=5)
    >>> adata.obsm["sage_composition"].shape
    (144, 4)
    """
    check_choice("scale", scale, classifiers.SCALES)
    if check_whole("n_layers", n_layers, 2) > 3:
        raise ValueError(f"n_layers={n_layers} has to be 2 or 3.")
    n_epochs = check_whole("n_epochs", n_epochs, 1)
    adata = get_anndata(adata, table_key, copy=copy)
    check_free(adata, key_added, _keys.COMPOSITION, ["obsm"], "tl.composition")
    if key_added == target_key:
        raise ValueError(f"key_added={key_added!r} would overwrite the likelihoods. Choose another one.")
    source = adata if reference is None else get_anndata(reference, table_key)
    targets = get_targets(source, target_key)
    known = targets.notna().all(axis=1).to_numpy()
    if known.sum() < 2:
        raise ValueError(f"obsm[{target_key!r}] is known for {int(known.sum())} spots, too few to learn from.")
    views = classifiers.views(get_points(source, use_rep), get_column(source, "library_key", library_key), scale)
    check_classes(targets.columns, "in that table")
    key = group_key or library_key
    groups = get_column(source, "group_key", key, known)
    query = views
    if source is not adata:
        check_same_model(source, adata, use_rep)
        query = classifiers.views(get_points(adata, use_rep), get_column(adata, "library_key", library_key), scale)
    known_views = {name: points[known] for name, points in views.items()}
    target = targets[known].to_numpy()
    seed = int(np.random.default_rng(rng).integers(2**31))
    learn = Learner(n_layers, n_epochs, device, seed)

    held_out = predict_held_out(known_views, target, groups, learn)
    chosen = best_scale(target, held_out) if held_out else list(views)[-1]
    predicted = learn.fit(known_views[chosen], target)(query[chosen])
    scored = None
    if source is adata:
        if held_out:
            predicted[known] = held_out[chosen]
        scored = in_reference(target, held_out.get(chosen), groups, "adata")
    else:
        if target_key in adata.obsm:
            own = get_targets(adata, target_key)
            if list(own.columns) != list(targets.columns):
                raise ValueError(f"obsm[{target_key!r}] of adata and of the reference have other classes.")
            rows = own.notna().all(axis=1).to_numpy()
            scored = in_query(adata, rows, own.to_numpy(), predicted, key, groups)
        scored = scored or in_reference(target, held_out.get(chosen), groups, "reference")
    params = {
        "function": "tl.composition",
        "target_key": target_key,
        "use_rep": use_rep,
        "n_layers": n_layers,
        "scale": chosen,
        "n_epochs": n_epochs,
        "reference": source is not adata,
        "seed": seed,
    }
    adata.obsm[key_added] = pd.DataFrame(predicted, index=adata.obs_names, columns=targets.columns)
    adata.uns[key_added] = {"params": params}
    entropy = ""
    if scored is None:
        logger.warning("Nothing is held out: all likelihoods come from one group, so no score can be given.")
    else:
        names, parts = zip(*scored.parts(), strict=True)
        rows_of = [score_composition(scored.truth[part], scored.predicted[part]) for part in parts]
        scores = pd.DataFrame(rows_of, index=pd.Index(names, name="group"))
        params["scored_on"], adata.uns[key_added]["scores"] = scored.of, scores
        entropy = f" (cross-entropy {scores['bce'].iloc[0]:.3f} where groups of {scored.of} are held out)"
    logger.info(
        "Predicted %d classes of %d spots%s; wrote obsm['%s'].",
        *(targets.shape[1], adata.n_obs),
        entropy,
        key_added,
    )
    return adata if copy else None


def get_targets(adata: AnnData, target_key: str) -> pd.DataFrame:
    """Likelihoods of every spot, checked; NaN where they aren't known."""
    check_key("target_key", target_key)
    if target_key not in adata.obsm:
        raise KeyError(f"target_key={target_key!r} not in adata.obsm. Put the likelihoods of the classes there.")
    found = adata.obsm[target_key]
    if not isinstance(found, pd.DataFrame):
        found = pd.DataFrame(found.toarray() if sparse.issparse(found) else np.asarray(found), index=adata.obs_names)
    found = found.set_axis([str(name) for name in found.columns], axis=1)
    if not found.columns.is_unique:
        raise ValueError(f"obsm[{target_key!r}] has several columns of one name.")
    try:
        found = found.astype(float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"obsm[{target_key!r}] has to hold numbers.") from error
    if found.shape[1] < 2 or (found < 0).any(axis=None) or (found > 1).any(axis=None):
        raise ValueError(f"obsm[{target_key!r}] has to hold likelihoods of two classes or more, between 0 and 1.")
    return found


def predict_held_out(
    views: dict[str, NDArray[Any]], target: Floats, groups: NDArray[np.str_], learn: Learner
) -> dict[str, Floats]:
    """Likelihoods of every spot from a network that hasn't seen its group, by scaling; none of a single group."""
    found = {name: np.zeros_like(target) for name in views}
    splits = classifiers.folds(groups)
    tasks = [(name, *split) for name in views for split in splits]
    for name, train, test in progress(tasks, "Held out", unit="fit"):
        found[name][test] = learn.fit(views[name][train], target[train])(views[name][test])
    return found if splits else {}


def best_scale(target: Floats, held_out: dict[str, Floats]) -> str:
    """Scaling with the lowest cross-entropy where groups are held out."""
    return min(held_out, key=lambda name: cross_entropy(target, held_out[name]))


def cross_entropy(truth: Floats, predicted: Floats) -> float:
    """Mean binary cross-entropy over spots and classes."""
    p = np.clip(predicted, 1e-7, 1 - 1e-7)
    return float(-(truth * np.log(p) + (1 - truth) * np.log1p(-p)).mean())


def score_composition(truth: Floats, predicted: Floats) -> dict[str, float]:
    """Agreement of likelihoods; a correlation with something constant counts 0."""
    from scipy.stats import rankdata

    scores: dict[str, float] = {"n_spots": len(truth), "bce": cross_entropy(truth, predicted)}
    ranked = {axis: (rankdata(truth, axis=axis), rankdata(predicted, axis=axis)) for axis in (0, 1)}
    for axis, of in ((0, ""), (1, "_spot")):
        for name, (a, b) in (("pearson", (truth, predicted)), ("spearman", ranked[axis])):
            r = _correlate(a, b, axis)
            scores[f"{name}{of}_mean"], scores[f"{name}{of}_median"] = float(r.mean()), float(np.median(r))
    return {**scores, **score_labels(truth.argmax(axis=1), predicted.argmax(axis=1))}


def _correlate(a: Floats, b: Floats, axis: int) -> Floats:
    varies = (np.ptp(a, axis=axis) > 1e-9) & (np.ptp(b, axis=axis) > 1e-9)
    a, b = (part - part.mean(axis=axis, keepdims=True) for part in (a, b))
    norm = np.sqrt((a * a).sum(axis=axis) * (b * b).sum(axis=axis))
    return np.divide((a * b).sum(axis=axis), norm, out=np.zeros_like(norm), where=varies)


class Learner:
    """Fits the network; the fit is a function from points to likelihoods."""

    def __init__(self, n_layers: int, n_epochs: int, device: str, seed: int) -> None:
        self.n_layers, self.n_epochs, self.device, self.seed = n_layers, n_epochs, get_device(device), seed

    def fit(self, points: NDArray[Any], target: Floats) -> Fitted:
        import torch
        from torch import nn

        center, spread = points.mean(axis=0), points.std(axis=0)
        spread = np.where(spread > 0, spread, 1)
        x = torch.as_tensor((points - center) / spread, dtype=torch.float32, device=self.device)
        y = torch.tensor(target, dtype=torch.float32, device=self.device)  # a copy: pandas' arrays may be read-only
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            widths = [points.shape[1], *[WIDTH] * (self.n_layers - 1)]
            layers: list[nn.Module] = []
            for width, following in pairwise(widths):
                layers += [nn.Linear(width, following), nn.ReLU()]
            network = nn.Sequential(*layers, nn.Linear(widths[-1], target.shape[1])).to(self.device)
        order = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for _ in range(self.n_epochs):
            for rows in torch.randperm(len(x), generator=order).to(self.device).split(BATCH_SIZE):
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(network(x[rows]), y[rows]).backward()
                optimizer.step()
        return Fitted(network, center, spread)


class Fitted:
    """A fitted network with the scaling of its input."""

    def __init__(self, network: nn.Module, center: NDArray[Any], spread: NDArray[Any]) -> None:
        self.network, self.center, self.spread = network, center, spread

    def __call__(self, points: NDArray[Any]) -> Floats:
        import torch

        device = next(self.network.parameters()).device
        with torch.no_grad():
            x = torch.as_tensor((points - self.center) / self.spread, dtype=torch.float32, device=device)
            return np.asarray(torch.sigmoid(self.network(x)).cpu().numpy(), dtype=float)
