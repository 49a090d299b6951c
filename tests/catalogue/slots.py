"""Slots of a slide, and whether what lies in them is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse


def get(adata: Any, slot: str) -> Any:
    name, *keys = slot.split("/")
    found = getattr(adata, name)
    for key in keys:
        found = found[key]
    return found


def remove(adata: Any, slot: str) -> None:
    """Forget what an earlier call wrote; the change may have done so already."""
    name, *keys = slot.split("/")
    found = getattr(adata, name)
    for key in keys[:-1]:
        found = found.get(key, {})
    if isinstance(found, str) or keys[-1] not in found:
        return
    del found[keys[-1]]


def state(adata: Any) -> dict[str, str]:
    """Digest of everything in a slide, by slot and key."""
    found = {"X": _digest(adata.X), "names": _digest([list(adata.obs_names), list(adata.var_names)])}
    for slot in ("obs", "var", "obsm", "varm", "layers", "obsp", "varp", "uns"):
        mapping = getattr(adata, slot)
        for key in list(mapping.keys()):
            found[f"{slot}/{key}"] = _digest(mapping[key])
    if adata.raw is not None:
        found["raw"] = _digest(adata.raw.X)
    return found


def _digest(value: Any) -> str:
    """Text that says all of a value."""
    if hasattr(value, "dask"):
        value = value.compute()
    if hasattr(value, "to_memory"):  # on disk
        value = value.to_memory()
    if sparse.issparse(value):
        parts = [_digest(getattr(value, name)) for name in ("data", "indices", "indptr")]
        return f"{value.format} {value.shape} {parts}"
    if isinstance(value, np.ndarray):
        content = value.tolist() if value.dtype == object else hashlib.sha256(value.tobytes()).hexdigest()
        return f"{value.shape} {value.dtype} {content}"
    if isinstance(value, pd.DataFrame):
        dtypes = [str(dtype) for dtype in value.dtypes]
        return f"{_digest(value.index)} {value.columns.tolist()} {dtypes} {value.to_numpy().tolist()}"
    if isinstance(value, pd.Series | pd.Index):
        return f"{value.dtype} {value.tolist()}"
    if isinstance(value, Mapping):
        return str([(key, _digest(part)) for key, part in value.items()])
    return repr(value)


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))


def _plain(value: Any) -> Any:
    """As an array where it is one in any form."""
    if hasattr(value, "dask"):
        value = value.compute()
    return value.toarray() if sparse.issparse(value) else value


def equal(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    """Whether two results are the same, floats within a share of the largest value."""
    a, b = _plain(a), _plain(b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(equal(a[key], b[key], tolerance) for key in a)
    if isinstance(a, pd.DataFrame):
        return (
            isinstance(b, pd.DataFrame)
            and list(a.columns) == list(b.columns)
            and all(equal(a[key].to_numpy(), b[key].to_numpy(), tolerance) for key in a)
        )
    if isinstance(a, pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        return equal(np.asarray(a), np.asarray(b), tolerance)
    if isinstance(a, ad.AnnData):
        return equal(a.X, b.X) and equal(a.obs, b.obs) and equal(dict(a.obsm), dict(b.obsm))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(one, other, tolerance) for one, other in zip(a, b, strict=True))
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    if a.dtype.kind == "f" and b.dtype.kind == "f":
        largest = np.abs(a[np.isfinite(a)]).max(initial=0)
        return bool(np.allclose(a, b, rtol=0, atol=tolerance * max(largest, 1e-30), equal_nan=True))
    if a.dtype == object or b.dtype == object:
        return all(x is y or x == y or (x != x and y != y) for x, y in zip(a.ravel(), b.ravel(), strict=True))
    return bool(np.array_equal(a, b))


def gaps(value: Any) -> str:
    """What is wrong with the numbers of a result: infinite ones, or an embedding with gaps."""
    value = _plain(value)
    if isinstance(value, Mapping):
        return next((f"{key}: {gap}" for key, part in value.items() if (gap := gaps(part))), "")
    if isinstance(value, pd.DataFrame):
        return next((f"{key}: {gap}" for key in value if (gap := gaps(value[key].to_numpy()))), "")
    if isinstance(value, ad.AnnData):
        return gaps(value.X)
    array = np.asarray(value) if isinstance(value, np.ndarray | float | np.floating) else np.empty(0)
    if array.dtype.kind == "f" and np.isinf(array).any():
        return "holds infinite values"
    return "is all NaN" if array.dtype.kind == "f" and array.ndim == 2 and array.size and np.isnan(array).all() else ""
