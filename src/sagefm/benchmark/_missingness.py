"""How predictions hold out while more and more genes are missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from sagefm import _keys, models
from sagefm._docs import fill_docstring
from sagefm._utils import check_choice, check_whole
from sagefm.benchmark._imputation import Masks, read_slides
from sagefm.models._masks import RandomMasks
from sagefm.models._scores import Summary

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CRITICAL_SHARE = 0.8
METRICS = ["rmse", "r_beyond_depth", "share_attained", "r2_spot", "r2_spot_median"]
METRICS += ["r_within", "r_pooled", "r_pooled_median"]


@fill_docstring
@torch.inference_mode()
def missingness_curve(
    sections: AnnData | SpatialData | Iterable[AnnData | SpatialData],
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    fractions: Sequence[float] = FRACTIONS,
    mask_by: Literal["slide", "spot"] = "slide",
    training_fraction: float = 0.3,
    layer: str | None = None,
    library_key: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    table_key: str = "table",
    rng: int = 0,
    device: str = "auto",
) -> pd.DataFrame:
    """Mask a growing share of the genes in all spots and see what predictions are still worth.

    The paper's second evaluation: what is masked is hidden in the spot and in its neighbors, as if it had not been
    measured. For comparison the task of pretraining, with genes hidden in the center alone, comes first.

    Parameters
    ----------
    {sections}
    {model}
    fractions
        Shares of the genes to mask.
    mask_by
        Whether genes are drawn once a slide, so that they are missing everywhere (``"slide"``), or anew for each
        spot (``"spot"``), as the published code does: then some neighbors still show them.
    training_fraction
        Share of the center's genes masked in the task of pretraining; 0.3 in the paper.
    {layer}
    {library_key}
    {connectivity_key}
    {table_key}
    {seed}
    {device}

    Returns
    -------
    Table with one row for every ``predictor`` (as :func:`evaluate_imputation` names them) and ``fraction``:

    - ``task``: ``"center"`` for pretraining's, with the neighbors whole; ``"everywhere"`` for the curve.
    - ``rmse``, ``r_beyond_depth``, ``share_attained``, ``r2_spot``, ``r2_spot_median``, ``r_within``, ``r_pooled``,
      ``r_pooled_median``: see :func:`imputation_metrics`.
    - ``critical_fraction``: where the predictor's mean R² of a spot falls under 80 % of what it has in
      pretraining's task, between two shares by a straight line; NaN if it doesn't, or if it is not above 0 there.
      If it is under from the first share on, that share.

    Raises
    ------
    KeyError
        If there is no graph, layer or column of that name.
    ValueError
        If a share doesn't lie between 0 and 1, the counts are not raw or too few genes match.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Methods: robustness to missing genes; Figure S2. With ``mask_by="slide"`` the
    neighbors' mean of a masked gene is 0, so it predicts what zeros do.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> curve = sg.benchmark.missingness_curve(adata, "sagefm-mini", fractions=[0.1, 0.5])
    >>> curve.loc[curve["predictor"] == "sagefm-mini", "fraction"].tolist()
    [0.3, 0.1, 0.5]
    """
    shares = [float(fraction) for fraction in fractions]
    if not shares:
        raise ValueError("fractions is empty.")
    for share in (training_fraction, *shares):
        if not 0 < share < 1:
            raise ValueError(f"a share of {share!r} genes can't be masked: it has to lie between 0 and 1.")
    check_choice("mask_by", mask_by, ("slide", "spot"))
    seed = check_whole("rng", rng, 0)
    loaded = models.load(model)
    tasks = [("center", training_fraction), *(("everywhere", share) for share in sorted(set(shares)))]
    found: dict[tuple[str, float], dict[str, Summary]] = {task: {} for task in tasks}
    slides = read_slides(sections, loaded, "Masking", table_key, layer, library_key, connectivity_key, device)
    for slide in slides:
        for task, share in tasks:
            masks: Masks = RandomMasks(slide.n_genes, share, (seed, slide.log_counts.shape[0]))
            everywhere = task == "everywhere"
            if everywhere and mask_by == "slide":
                masks = _one_for_all(masks)
            for name, scores in slide.score(masks, everywhere=everywhere).items():
                found[task, share].setdefault(name, Summary(slide.n_genes)).add(scores, slide.best)
    rows = []
    for name in found[tasks[0]]:
        for (task, share), by_name in found.items():
            metrics = by_name[name].metrics()
            rows.append({"predictor": name, "task": task, "fraction": share} | {key: metrics[key] for key in METRICS})
    table = pd.DataFrame(rows)
    critical = {name: _critical(part) for name, part in table.groupby("predictor")}
    table["critical_fraction"] = table["predictor"].map(critical).astype(float)
    return table


def _one_for_all(masks: Masks) -> Masks:
    """Mask of the first spot for all."""
    mask = masks(np.zeros(1, dtype=np.int64))
    return lambda spots: mask.expand(len(spots), -1)


def _critical(part: pd.DataFrame) -> float:
    """Share of masked genes where the mean R² of a spot falls under the critical one."""
    everywhere = part[part["task"] == "everywhere"]
    limit = CRITICAL_SHARE * part.loc[part["task"] == "center", "r2_spot"].iloc[0]
    share, r2 = everywhere["fraction"].to_numpy(), everywhere["r2_spot"].to_numpy()
    under = np.flatnonzero(r2 < limit)
    if not limit > 0 or not len(under):
        return float("nan")
    first = under[0]
    if first == 0:
        return float(share[0])
    return float(np.interp(limit, r2[[first, first - 1]], share[[first, first - 1]]))
