"""Changes that make a slide bad or odd."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse


def counts(make: Callable[[sparse.csr_matrix], Any]) -> Callable[[ad.AnnData], None]:
    """Other counts in X."""

    def change(adata: ad.AnnData) -> None:
        adata.X = make(adata.X.copy())

    return change


def dense(make: Callable[[np.ndarray], Any]) -> Callable[[ad.AnnData], None]:
    return counts(lambda X: make(X.toarray()))


def with_value(matrix: Any, value: float, row: int = 5) -> Any:
    """Set one stored value."""
    matrix.data[matrix.indptr[row]] = value
    return matrix


def unsorted(X: sparse.csr_matrix) -> sparse.csr_matrix:
    for start, stop in zip(X.indptr[:-1], X.indptr[1:], strict=True):
        X.indices[start:stop], X.data[start:stop] = X.indices[start:stop][::-1].copy(), X.data[start:stop][::-1].copy()
    X.has_sorted_indices = False
    return X


def twice(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """Every entry in two parts."""
    data = np.stack([X.data - 1, np.ones_like(X.data)], axis=1).ravel()
    made = sparse.csr_matrix(X.shape, dtype=X.dtype)
    made.data, made.indices, made.indptr = data, np.repeat(X.indices, 2), X.indptr * 2
    made.has_canonical_format = False
    return made


def explicit_zeros(X: sparse.csr_matrix) -> sparse.csr_matrix:
    full = sparse.csr_matrix(np.ones(X.shape, dtype=X.dtype))
    full.data[:] = X.toarray().ravel()
    return full


def long_indices(X: sparse.csr_matrix) -> sparse.csr_matrix:
    X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    return X


def read_only(X: Any) -> Any:
    for array in (X.data, X.indices, X.indptr) if sparse.issparse(X) else (X,):
        array.setflags(write=False)
    return X


def all_read_only(adata: ad.AnnData) -> None:
    read_only(adata.X)
    for slot in (adata.obsm, adata.obsp):
        for value in slot.values():
            if isinstance(value, np.ndarray) or sparse.issparse(value):
                read_only(value)


def hidden(adata: ad.AnnData) -> None:
    """Counts in a layer or in raw, something else in X."""
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()


def into_raw(adata: ad.AnnData) -> None:
    adata.raw = adata.copy()
    adata.X = adata.X.log1p()


def scaled(X: np.ndarray) -> np.ndarray:
    return (X - X.mean(axis=0)) / np.where(X.std(axis=0) > 0, X.std(axis=0), 1)


def view(adata: ad.AnnData) -> ad.AnnData:
    twice = ad.concat(
        {"this": adata, "other": adata}, index_unique="-", pairwise=True, uns_merge="first", merge="first"
    )
    view = twice[:110]
    assert view.is_view
    return view


@functools.cache
def _folder() -> Path:
    """For files of the prepared slide, which are written once."""
    return Path(tempfile.mkdtemp(prefix="catalogue-"))


def backed(mode: str) -> Callable[[ad.AnnData], ad.AnnData]:
    def change(adata: ad.AnnData) -> ad.AnnData:
        path = _folder() / f"backed_{mode}.h5ad"
        if not path.exists():
            adata.write_h5ad(path)
        return ad.read_h5ad(path, backed=mode)

    return change


def round_trip(suffix: str) -> Callable[[ad.AnnData], ad.AnnData]:
    @functools.cache
    def read() -> ad.AnnData:
        path = _folder() / f"slide{suffix}"
        return ad.read_zarr(path) if suffix == ".zarr" else ad.read_h5ad(path)

    def change(adata: ad.AnnData) -> ad.AnnData:
        path = _folder() / f"slide{suffix}"
        if not path.exists():
            adata.write_zarr(path) if suffix == ".zarr" else adata.write_h5ad(path)
        return read().copy()

    return change


def replaced(slot: str, key: str, make: Callable[[Any], Any]) -> Callable[[ad.AnnData], None]:
    """Change one entry of a slot, made from what is there."""

    def change(adata: ad.AnnData) -> None:
        old = getattr(adata, slot).get(key)
        getattr(adata, slot)[key] = make(old.copy() if hasattr(old, "copy") else old)

    return change


def drop(slot: str, *keys: str) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        for key in keys:
            del getattr(adata, slot)[key]

    return change


def put(array: Any, where: Any, value: Any) -> Any:
    array[where] = value
    return array


def column(key: str, make: Callable[[pd.Series], Any], slot: str = "obs") -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        frame = getattr(adata, slot)
        frame[key] = make(frame[key].copy())

    return change


def series(where: Any, value: Any) -> Callable[[pd.Series], pd.Series]:
    def make(column: pd.Series) -> pd.Series:
        column = column.astype(object)
        column.iloc[where] = value
        return column

    return make


def names(make: Callable[[list[str]], Any], slot: str = "var_names") -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setattr(adata, slot, make(list(getattr(adata, slot))))

    return change


def genes(make: Callable[[list[str], list[str]], list[str]]) -> Callable[[ad.AnnData], None]:
    """Other gene names, made from symbols and Ensembl ids; without what else tells the genes."""

    def change(adata: ad.AnnData) -> None:
        symbols, ids = list(adata.var_names), list(adata.var["gene_ids"])
        del adata.var["gene_ids"], adata.var["sage_gene"], adata.uns["sage_genes"]
        adata.var_names = make(symbols, ids)

    return change


def doubled_gene(adata: ad.AnnData) -> ad.AnnData:
    """The counts of a gene in two columns of one name."""
    half = adata[:, ["KRT8"]].copy()
    adata.X = adata.X.tolil()
    column = adata.var_names.get_loc("KRT8")
    rest = np.floor(half.X.toarray() / 2)
    adata.X[:, column] = half.X.toarray() - rest
    adata.X = adata.X.tocsr()
    half.X = sparse.csr_matrix(rest)
    for key in list(adata.layers):
        del adata.layers[key]
    made = ad.concat([adata, half], axis=1, merge="first", uns_merge="first", pairwise=True)
    made.obs = adata.obs
    for key in ("sage_genes",):
        made.uns.pop(key, None)
    return made


def spots(keep: Any) -> Callable[[ad.AnnData], ad.AnnData]:
    return lambda adata: adata[keep].copy()


def exchange(adata: ad.AnnData) -> None:
    adata.obs["array_row"], adata.obs["array_col"] = adata.obs["array_col"].copy(), adata.obs["array_row"].copy()


def both_columns(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        for key in ("array_row", "array_col"):
            adata.obs[key] = make(adata.obs[key].to_numpy().astype(np.int64))

    return change


def lonely(graph: sparse.csr_matrix) -> sparse.csr_matrix:
    """Without the neighbors of two spots."""
    graph = graph.tolil()
    graph[[0, 50]] = 0
    return graph.tocsr()


def tabulate(adata: ad.AnnData, key: str) -> None:
    adata.obsm[key] = pd.DataFrame(adata.obsm[key], index=adata.obs_names).rename(columns=str)


def level(column: pd.Series) -> pd.Series:
    return column.astype("category").cat.add_categories(["none"])


def gap(frame: pd.DataFrame) -> pd.DataFrame:
    frame.iloc[:5] = np.nan
    return frame


RESULTS = ("perturb_lr", "perturb_targets", "gene_sensitivity", "sage_cluster_markers", "sage_cluster_proportions")


def texts(adata: ad.AnnData) -> None:
    for key in (*RESULTS, "sage_assessment", "sage_imputed"):
        adata.uns[key] = "text"


def empties(adata: ad.AnnData) -> None:
    for key in (*RESULTS, "sage_assessment", "sage_imputed"):
        adata.uns[key] = {}


def _change_tables(adata: ad.AnnData, make: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change them at any depth."""

    def changed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: changed(part) for name, part in value.items()}
        return make(value) if isinstance(value, pd.DataFrame) else value

    for key in (*RESULTS, "sage_assessment", "sage_imputed"):
        adata.uns[key] = changed(adata.uns[key])


def without_columns(adata: ad.AnnData) -> None:
    _change_tables(adata, lambda table: table.iloc[:, :0])


def without_rows(adata: ad.AnnData) -> None:
    _change_tables(adata, lambda table: table.iloc[:0])


def forget(adata: ad.AnnData) -> None:
    for slot, keys in {
        "obs": ["sage_annotation"],
        "obsm": ["sage_annotation", "sage_composition", "sage_imputed"],
        "layers": ["sage_imputed"],
        "uns": ["sage_annotation", "sage_composition", "sage_imputed"],
        "var": ["sage_reliability"],
    }.items():
        for key in keys:
            del getattr(adata, slot)[key]
