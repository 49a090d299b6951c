"""Composition: planted likelihoods are found."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import sagefm as sg
from sagefm.tl._labels.composition import score_composition
from sagefm.tl._labels.labels import score_labels


def compositions(seed=0, n=150):
    generator = np.random.default_rng(seed)
    adata = ad.AnnData(np.ones((2 * n, 2), dtype=np.float32))
    points = generator.normal(0, 1, (2 * n, 5)).astype(np.float32)
    adata.obsm["X_sage"] = points
    adata.obsm["share"] = pd.DataFrame(
        1 / (1 + np.exp(-2 * points[:, :3])), index=adata.obs_names, columns=["p", "q", "r"]
    )
    adata.obs["donor"] = np.repeat(["A", "B"], n)
    return adata


@pytest.mark.slow
@pytest.mark.parametrize("n_layers", [2, 3])
def test_planted_likelihoods_are_found(n_layers):
    adata = compositions()
    adata.obsm["share"].iloc[::10] = np.nan
    sg.tl.composition(adata, "share", group_key="donor", n_layers=n_layers)
    found, truth = adata.obsm["sage_composition"], adata.obsm["share"]
    known = truth.notna().all(axis=1)
    assert found.columns.tolist() == ["p", "q", "r"]
    assert ((found >= 0) & (found <= 1)).all(axis=None)
    scores = adata.uns["sage_composition"]["scores"].loc["overall"]
    by_class = [stats.pearsonr(found.loc[known, name], truth.loc[known, name])[0] for name in truth]
    by_rank = [stats.spearmanr(found.loc[known, name], truth.loc[known, name])[0] for name in truth]
    assert min(by_class) > 0.9
    assert scores["pearson_mean"] == pytest.approx(np.mean(by_class))
    assert scores["spearman_median"] == pytest.approx(np.median(by_rank))
    p, t = found[known].to_numpy(), truth[known].to_numpy()
    assert scores["bce"] == pytest.approx(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(), rel=1e-5)
    best = score_labels(t.argmax(axis=1), p.argmax(axis=1))
    assert scores["f1_macro"] == pytest.approx(best["f1_macro"])


def test_nothing_held_out_says_so_and_takes_what_tells_no_slides_apart(log):
    adata = compositions()
    adata.obs["donor"] = "A"
    sg.tl.composition(adata, "share", group_key="donor", n_epochs=1)
    assert adata.uns["sage_composition"]["params"]["scale"] == "slide"
    assert "scores" not in adata.uns["sage_composition"]
    assert "no score can be given" in log.text


@pytest.mark.slow
def test_composition_repeats_itself_and_leaves_torch_as_it_was():
    import torch

    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, again = compositions(), compositions()
    for adata in (first, again):
        sg.tl.composition(adata, "share", group_key="donor", n_epochs=3)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first.obsm["sage_composition"], again.obsm["sage_composition"])


def test_constant_likelihoods_correlate_with_nothing():
    truth = np.full((10, 3), 0.2)
    scores = score_composition(truth, np.random.default_rng(0).random((10, 3)))
    assert scores["pearson_mean"] == 0
    assert scores["spearman_spot_mean"] == 0


@pytest.mark.slow
def test_composition_from_a_reference():
    reference, query = compositions(), compositions(seed=1)
    truth = query.obsm.pop("share")
    sg.tl.composition(query, "share", reference=reference, group_key="donor", scale="none")
    assert np.corrcoef(query.obsm["sage_composition"]["p"], truth["p"])[0, 1] > 0.9
    assert query.uns["sage_composition"]["params"]["scored_on"] == "reference"


@pytest.mark.parametrize("bad", [-0.1, 1.2])
def test_no_likelihoods_are_refused(bad):
    adata = compositions()
    adata.obsm["share"].iloc[0, 0] = bad
    with pytest.raises(ValueError, match="between 0 and 1"):
        sg.tl.composition(adata, "share")
    assert "sage_composition" not in adata.obsm
