"""Slides of bins."""

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse


def make_bins(n=60, size=8.0, n_genes=7, rng=0, shuffled=True):
    """Square bins, ``n`` a side, in µm."""
    generator = np.random.default_rng(rng)
    counts = generator.poisson(0.6, (n * n, n_genes)).astype(np.float32)
    xy = size * np.argwhere(np.ones((n, n)))[:, ::-1] + [500.0, 80.0]
    if shuffled:
        xy = generator.permutation(xy)
    var = pd.DataFrame({"id": range(n_genes)}, index=[f"g{i}" for i in range(n_genes)])
    obs = pd.DataFrame(index=[f"b{i}" for i in range(n * n)])
    return AnnData(sparse.csr_matrix(counts), obs=obs, var=var, obsm={"spatial": xy})


def two_slides():
    one, two = make_bins(), make_bins(40, rng=1)
    both = ad.concat({"b": one, "a": two}, label="slide", index_unique="-")
    order = np.random.default_rng(2).permutation(both.n_obs)
    return one, two, both[order].copy()
