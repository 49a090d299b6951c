"""References of a model's errors, for tests."""

import numpy as np
from scipy import sparse

import sagefm as sg
from sagefm.models._calibration import EDGES, Calibration
from sagefm.models._vocabulary import hest1k

SYMBOLS = hest1k().symbols


N = len(SYMBOLS)


def calibration(**changes):
    """A calibration whose every number is known."""
    rng = np.random.default_rng(0)
    quantile = np.sort(rng.random((2, len(EDGES) + 1, 50)), axis=2) * 3
    ranks = np.clip(rng.random((2, 2, N)), 0.8, 1)
    ranks[:, :, 7] = np.nan
    values = {
        "donors": ["a", "b", "c"],
        "lattices": ["hexagonal"],
        "lacking": [0.2, 0.6],
        "levels": [0.8, 0.9],
        "limits": {
            "lacking": {"care": 0.5, "outside": 0.8, "above": 1.0},
            "depth": {"care": 1000.0, "outside": 100.0, "above": 0.0},
            "deepest": {"care": 1e6, "above": 1.0},
            "distance": {"care": 0.2, "outside": 0.4, "above": 1.0},
            "far": {"care": 0.05, "outside": 0.5, "above": 1.0},
        },
        "prior_r": rng.random((2, N)),
        "prior_sd": rng.random(N),
        "prior_beyond_depth": rng.random((2, N)),
        "n_donors": np.full(N, 3.0),
        "errors": quantile,
        "ranks": ranks,
        "centroids": rng.random((4, N)),
        "count_share": np.full(N, 1 / N),
    }
    values |= changes
    return Calibration(**{k: v.astype(np.float32) if isinstance(v, np.ndarray) else v for k, v in values.items()})


def thinned(adata, share):
    adata.X = sparse.csr_matrix(adata.X)
    adata.X.data = np.random.default_rng(0).binomial(adata.X.data.astype(int), share).astype(np.float32)
    return adata


def irregular(adata):
    adata.obsm["spatial"] = np.random.default_rng(0).random((adata.n_obs, 2)) * 1000
    sg.pp.neighborhood_graph(adata, "knn")
    return adata
