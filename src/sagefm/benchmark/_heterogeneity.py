"""How well a representation keeps the distances between samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._settings import ROWS_AT_A_TIME
from sagefm._types import Floats, Strings
from sagefm.benchmark._clustering import as_names
from sagefm.pp._counts import Counts
from sagefm.tl._points import get_column, get_points

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

EXPRESSION = "expression"


@fill_docstring
def centroid_distances(
    adata: AnnData | SpatialData,
    use_reps: str | Sequence[str],
    groupby: str,
    *,
    kind_key: str | None = None,
    base_rep: str | None = None,
    layer: str | None = None,
    table_key: str = "table",
) -> pd.DataFrame:
    """Compare the distances between samples in representations with those in expression.

    A sample is the mean of its spots, and two samples lie apart by the cosine distance. As distances of different
    spaces have different sizes, each representation's are scaled to [0, 1] before they are compared.

    Parameters
    ----------
    adata
        Samples with the representations, side by side, with raw counts.
    {use_reps}
    groupby
        Column of ``obs`` with the sample (or the tissue) of each spot.
    kind_key
        Column of ``obs`` with the tissue of each sample, for the ranks.
    base_rep
        Representation in ``obsm`` to compare with; by default log1p counts of all genes.
    {layer}
    {table_key}

    Returns
    -------
    Table with a row for each representation, then ``base_rep`` (or ``"expression"``), and ordered pair of samples.
    Columns are ``representation``, ``sample``,
    ``other``, ``kind``, ``other_kind``, ``distance``, ``scaled``, ``base_scaled`` (the same of ``base_rep``), ``error``
    (absolute difference of the two), and ``rank``, that of ``other`` among all others by distance from ``sample``, from
    1, ties averaged.

    Raises
    ------
    KeyError
        If a representation or a column is missing.
    ValueError
        If there are fewer than three samples, or a sample has two kinds.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 2b, c and Table S3.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> pairs = sg.benchmark.centroid_distances(adata, "X_sage", "domain")
    >>> len(pairs)
    24
    """
    adata = get_anndata(adata, table_key)
    samples = get_column(adata, "groupby", groupby)
    names = np.unique(samples)
    if len(names) < 3:
        raise ValueError(f"obs[{groupby!r}] has {len(names)} samples; distances need three or more.")
    kinds = pd.Series(get_column(adata, "kind_key", kind_key)).groupby(samples)
    if (n_kinds := kinds.nunique()).max() > 1:
        name = n_kinds.idxmax()
        raise ValueError(f"{name!r} of obs[{groupby!r}] has {n_kinds[name]} values in obs[{kind_key!r}].")
    kind_of = kinds.first().to_numpy(dtype=str)
    base_name = base_rep or EXPRESSION
    if base_rep is None:
        if not adata.n_vars:
            raise ValueError("adata has no genes to compare with. Pass base_rep=..., a key of obsm.")
        columns = np.arange(adata.n_vars)
        points: Any = Counts(adata, columns, layer).log1p(columns, ROWS_AT_A_TIME)
    else:
        points = get_points(adata, base_rep)
    base_found = distances(points, samples, names)
    base = scale(base_found)
    off = ~np.eye(len(names), dtype=bool)
    first, second = np.nonzero(off)
    tables = []
    for rep in dict.fromkeys([*as_names(use_reps), base_name]):
        found = base_found if rep == base_name else distances(get_points(adata, rep), samples, names)
        scaled = scale(found)
        tables.append(
            pd.DataFrame(
                {
                    "representation": rep,
                    "sample": names[first],
                    "other": names[second],
                    "kind": kind_of[first],
                    "other_kind": kind_of[second],
                    "distance": found[off],
                    "scaled": scaled[off],
                    "base_scaled": base[off],
                    "error": np.abs(scaled - base)[off],
                    "rank": pd.DataFrame(np.where(off, found, np.nan)).rank(axis=1).to_numpy()[off],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def summarize_distances(pairs: pd.DataFrame) -> pd.DataFrame:
    """Sum up :func:`centroid_distances` by representation.

    Parameters
    ----------
    pairs
        What :func:`centroid_distances` returned.

    Returns
    -------
    Table by representation: ``error_mean`` and ``error_median`` against the base representation; ``spearman``
    correlation with it; ``same_kind_rank``, the mean rank of other samples of the same kind, and ``chance_rank``, what
    it would be if ranks were drawn at random (both NaN where no kind has two samples).

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> pairs = sg.benchmark.centroid_distances(adata, "X_sage", "domain")
    >>> sg.benchmark.summarize_distances(pairs).columns[:2].tolist()
    ['error_mean', 'error_median']
    """
    rows = {}
    for name, part in pairs.groupby("representation", sort=False):
        same = part[(part["kind"] == part["other_kind"])] if part["kind"].nunique() > 1 else part[:0]
        rows[name] = {
            "error_mean": part["error"].mean(),
            "error_median": part["error"].median(),
            "spearman": part["distance"].corr(part["base_scaled"], method="spearman"),
            "same_kind_rank": same["rank"].mean(),
            "chance_rank": part["sample"].nunique() / 2 if len(same) else np.nan,
        }
    return pd.DataFrame(rows).T.rename_axis("representation")


def distances(points: Any, samples: Strings, names: Strings) -> Floats:
    """Cosine distances between the mean spots of samples."""
    from sklearn.metrics.pairwise import cosine_distances

    means = np.stack([np.asarray(points[np.flatnonzero(samples == name)].mean(axis=0)).ravel() for name in names])
    return np.asarray(cosine_distances(means.astype(np.float64)))


def scale(found: Floats) -> Floats:
    """Between the smallest and the largest distance of two samples."""
    off = found[~np.eye(len(found), dtype=bool)]
    low, high = off.min(), off.max()
    return (found - low) / (high - low) if high > low else np.zeros_like(found)
