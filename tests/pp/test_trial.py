"""The trust card's trial: genes hidden on the slide itself, and predicted by the model and by plain baselines."""

import anndata as ad
import literal
import numpy as np
import pandas as pd
import pytest
import torch
from references import SYMBOLS
from scipy import sparse
from sklearn.preprocessing import SplineTransformer

import sagefm as sg
from sagefm.models._canonical import Canonical
from sagefm.pp._assess.trial import N_FOLDS, judge, try_slide


def residual(values, depth):
    knots = np.unique(np.quantile(np.log(depth), np.linspace(0, 1, 6)).round(6))
    basis = SplineTransformer(degree=3, knots=knots[:, None], extrapolation="constant").fit_transform(
        np.log(depth)[:, None]
    )
    return values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0]


def test_scores_are_those_of_a_dense_computation(slide, sage):
    """The baselines written out, the model by the literal protocol with the genes masked."""
    x = literal.dense_log1p(slide, SYMBOLS)
    graph = sparse.csr_matrix(slide.obsp["sage_connectivities"])
    measured = np.flatnonzero(pd.Index(SYMBOLS).isin(slide.var_names))
    rows = np.arange(0, slide.n_obs, 2)
    canonical: Canonical = sage.canonical().to(torch.device("cpu"), torch.float32)
    found = try_slide(canonical, sparse.csr_matrix(x), graph, rows, measured)
    fold = np.random.default_rng(0).permutation(len(SYMBOLS)) % N_FOLDS
    hidden = measured[fold[measured] == 0]
    shown = np.setdiff1d(np.arange(len(SYMBOLS)), hidden)
    truth, depth = x[np.ix_(rows, hidden)], np.expm1(x[np.ix_(rows, shown)]).sum(axis=1)
    around = (graph[rows] @ x) / np.diff(graph[rows].indptr)[:, None]
    own = x[np.ix_(rows, shown)].sum(axis=1)
    predicted = {
        "depth alone": truth.mean(axis=0) * np.clip(own / own.mean(), 0.2, 5)[:, None],
        "neighbors × depth": around[:, hidden] * np.clip(own / around[:, shown].sum(axis=1), 0.2, 5)[:, None],
    }
    neighborhoods = [literal.neighborhoods_of(graph)[row] for row in rows]
    similar = literal.similar_mean(x[rows], hidden, [[i] for i in range(len(rows))])  # among the spots of the trial
    predicted["diffusion × depth"] = similar[:, hidden]
    predicted["model"] = literal.perturbed(sage.network, x, neighborhoods, {}, hidden, similar=similar)[:, hidden]
    frequent = (truth > 0).mean(axis=0) > 0.3
    for name, prediction in predicted.items():
        assert found.loc[name, "rmse"] == pytest.approx(np.sqrt(((prediction - truth) ** 2).mean()), rel=1e-4)
        a, b = residual(prediction[:, frequent], depth), residual(truth[:, frequent], depth)
        # 0 where the prediction is constant.
        r = (a * b).sum(axis=0) / np.sqrt(np.maximum((a**2).sum(axis=0), 1e-12) * (b**2).sum(axis=0))
        assert found.loc[name, "r_beyond_depth"] == pytest.approx(r.mean(), abs=2e-3)
    assert (found["n_genes"] == frequent.sum()).all()


def tried(r=0.2, rmse=0.2, n_genes=100, attainable=0.4):
    names = ["model", "depth alone", "neighbors × depth", "diffusion × depth"]
    table = pd.DataFrame({"rmse": [rmse, 0.25, 0.24, 0.22], "r_beyond_depth": [r, 0.01, 0.08, 0.12]}, index=names)
    return table.assign(n_genes=n_genes, attainable_r=attainable)


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        (tried(), "fine"),
        (tried(rmse=0.23), "with care"),  # similar spots are nearer
        (tried(r=0.1), "with care"),
        (tried(r=0.02), "outside what the model knows"),
        (tried(n_genes=5), "unknown"),
        (tried(attainable=0.01), "unknown"),
        (tried(attainable=np.nan), "unknown"),
    ],
)
def test_fine_is_ahead_of_every_baseline_in_both_respects(table, verdict):
    assert judge(table) == verdict


def permuted(adata):
    """Each gene among the spots by itself: counts, and what is attainable, stay; nothing can be predicted."""
    columns, rng = adata.X.tocsc(), np.random.default_rng(0)
    adata.X = sparse.hstack([columns[:, i][rng.permutation(adata.n_obs)] for i in range(adata.n_vars)]).tocsr()
    return adata


def alike(adata):
    adata.X = sparse.csr_matrix(np.repeat(adata.X[5].toarray(), adata.n_obs, axis=0))
    return adata


def merged(adata):
    """Two sections in one coordinate system, a little apart, and no key that tells them apart."""
    other = adata[::-1].copy()
    other.obsm["spatial"] = adata.obsm["spatial"] + 31
    both = ad.concat([adata, other], index_unique="-")
    both.obs = both.obs.drop(columns=["array_row", "array_col"])
    sg.pp.neighborhood_graph(both)
    return both


@pytest.mark.sections
@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "verdicts"),
    [
        (lambda adata: adata, {"fine"}),
        (permuted, {"outside what the model knows"}),
        (alike, {"with care", "outside what the model knows"}),
        (merged, {"with care", "outside what the model knows"}),
    ],
)
def test_a_real_section_and_what_was_made_of_it(section, change, verdicts):
    """sagefm-mini was trained on this section, so it is ahead there."""
    adata = section("her2st_G2")
    sg.pp.neighborhood_graph(adata)
    adata = change(adata)
    sg.pp.assess(adata, "sagefm-mini")
    assert adata.uns["sage_assessment"]["verdict"] in verdicts
