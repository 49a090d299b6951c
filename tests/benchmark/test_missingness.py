"""Predictions by the share of genes that is missing, against a plain loop."""

from dataclasses import replace

import literal
import numpy as np
import pandas as pd
import pytest
import torch

import sagefm as sg
from sagefm.benchmark._missingness import _critical
from sagefm.models._masks import RandomMasks


@pytest.mark.slow
@pytest.mark.parametrize(("family", "mask_by"), [("tiny", "slide"), ("tiny", "spot"), ("sage", "slide")])
def test_missingness_is_the_plain_loop(model, family, mask_by, request):
    """Genes hidden in a dense slide before anything reads it."""
    model = replace(request.getfixturevalue(family), gene_mean=model.gene_mean)
    adata = sg.datasets.simulated_visium(n_rows=9, n_cols=9, n_genes=6000)
    sg.pp.neighborhood_graph(adata)
    curve = sg.benchmark.missingness_curve(adata, model, fractions=[0.6, 0.2], mask_by=mask_by, rng=3)
    assert curve["fraction"].tolist() == [0.3, 0.2, 0.6] * 8
    sg.pp.align_genes(adata)
    x = np.zeros((adata.n_obs, 14558), dtype=np.float32)
    index = adata.var["sage_gene"].to_numpy()
    x[:, index[index >= 0]] = np.log1p(adata.X.toarray()[:, index >= 0])
    spots = np.arange(adata.n_obs) if mask_by == "spot" else np.zeros(adata.n_obs, dtype=int)
    degree = torch.full((adata.n_obs, 1), 14.0)
    for fraction in (0.2, 0.6):
        mask = RandomMasks(14558, fraction, (3, adata.n_obs))(spots).numpy()
        shown = x * ~mask
        around = (adata.obsp["sage_connectivities"] @ shown).astype(np.float32)
        if family == "sage":
            prediction, near = np.zeros_like(x), literal.neighborhoods_of(adata.obsp["sage_connectivities"])
            prediction[:, mask[0]] = literal.of_unseen(model.network, x, near, mask[0], model.gene_mean)
        else:
            parts = map(torch.from_numpy, (shown, around))
            prediction = model.canonical().forward(*parts, degree, torch.from_numpy(mask)).detach().numpy()
        here = curve[curve["fraction"] == fraction].set_index("predictor")
        for name, predicted in {model.name: prediction, "neighbor mean": around / 14}.items():
            plain = sg.benchmark.imputation_metrics(predicted, x, mask)
            found = here.loc[name, ["rmse", "r2_spot", "r_within"]].astype(float).to_dict()
            assert found == pytest.approx(plain[list(found)].to_dict(), rel=1e-3, abs=1e-5), name
        if mask_by == "slide":
            assert here.loc["neighbor mean", "rmse"] == pytest.approx(here.loc["zeros", "rmse"])
    center = sg.benchmark.evaluate_imputation(adata, model, rng=3)
    found = curve[curve["task"] == "center"].set_index("predictor")
    assert found["rmse"].to_dict() == pytest.approx(center["rmse"].to_dict())


@pytest.mark.parametrize(
    ("r2", "expected"),
    [
        ([0.5, 0.3, 0.1], 0.3),  # half-way between 0.1 and 0.5
        ([0.3, 0.2, 0.1], 0.1),
        ([0.5, 0.5, 0.41], np.nan),
        ([0.5, 0.4, 0.0], 0.5),  # at the limit is not under it
    ],
)
def test_critical_share(r2, expected):
    """Reference 0.5, so that the limit is 0.4."""
    table = pd.DataFrame({"task": ["center"] + ["everywhere"] * 3, "fraction": [0.3, 0.1, 0.5, 0.9]})
    table["r2_spot"] = [0.5, *r2]
    assert _critical(table) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fractions": []}, "empty"),
        ({"fractions": [0.5, 1.0]}, "between 0 and 1"),
        ({"mask_by": "gene"}, "mask_by"),
        ({"training_fraction": 0}, "between 0 and 1"),
    ],
)
def test_missingness_refusals(slide, model, options, match):
    with pytest.raises(ValueError, match=match):
        sg.benchmark.missingness_curve(slide, model, **options)
