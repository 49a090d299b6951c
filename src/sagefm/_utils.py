"""Small helpers that every namespace needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

from sagefm._settings import settings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

T = TypeVar("T")


def get_table(data: AnnData | SpatialData, table_key: str, *, copy: bool = False) -> AnnData:
    """Return the ``AnnData`` to work on: ``data`` itself, a table of a ``SpatialData``, or a copy of either."""
    from anndata import AnnData

    if not isinstance(data, AnnData):
        tables = getattr(data, "tables", None)
        if tables is None:
            raise TypeError(f"expected an AnnData or a SpatialData, got {type(data).__name__}.")
        if table_key not in tables:
            raise KeyError(f"table {table_key!r} not in the SpatialData; it has {sorted(tables)}. Set table_key.")
        data = tables[table_key]
    if not data.n_obs:
        raise ValueError("adata has no spots: was it filtered to nothing?")
    _load_annotation(data)
    if copy and data.isbacked:
        raise ValueError("copy=True needs the data in memory: call adata = adata.to_memory() first.")
    return data.copy() if copy else data


def _load_annotation(adata: AnnData) -> None:
    """Read what anndata.experimental.read_lazy left on disk, but for matrices: tables, and all of ``uns``."""
    if not hasattr(adata.obs, "to_memory"):
        return
    for slot in ("obs", "var"):
        setattr(adata, slot, getattr(adata, slot).to_memory())
    for key, value in adata.obsm.items():
        if hasattr(value, "to_memory"):
            adata.obsm[key] = value.to_memory()
    for key, value in adata.uns.items():
        adata.uns[key] = _loaded(value)


def _loaded(value: Any) -> Any:
    if isinstance(value, Mapping) and not hasattr(value, "to_memory"):
        return {key: _loaded(part) for key, part in value.items()}
    for method in ("to_memory", "compute"):
        if hasattr(value, method):
            return getattr(value, method)()
    return value


def get_device(device: str) -> torch.device:
    """Resolve ``"auto"`` to cuda, then mps, then cpu; check that a named device is there."""
    import torch

    if not isinstance(device, str) or device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"device {device!r} is none of 'auto', 'cpu', 'cuda', 'mps'.")
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not known to torch.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but torch finds no CUDA GPU here; use device='auto' or 'cpu'.")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r}, but torch finds no Apple GPU here; use device='auto' or 'cpu'.")
    return found


def check_key(name: str, key: object) -> None:
    """Refuse what can't name a slot: anything but text, nothing, or a name that h5ad and zarr can't store."""
    if not isinstance(key, str):
        raise TypeError(f"{name} has to be a string, got {key!r}.")
    if not key or "/" in key:
        raise ValueError(f"{name}={key!r} can't name a slot: it is empty or has a '/'.")


def check_whole(name: str, value: object, least: int) -> int:
    """Return a whole number, whatever integer type it has."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name}={value!r} has to be a whole number.")
    number = index(value)
    if number < least:
        raise ValueError(f"{name}={value!r} has to be at least {least}.")
    return number


def check_free(
    adata: AnnData,
    key_added: str,
    default: str,
    slots: Iterable[str],
    function: str,
    more: Iterable[tuple[str, str]] = (),
) -> None:
    """Refuse to overwrite what the user put under a key of their choice, or in ``more`` slots and keys.

    The default key is the function's own, and so is what an earlier call of it recorded in ``uns``.
    """
    check_key("key_added", key_added)
    recorded = adata.uns.get(key_added)
    params = recorded.get("params") if isinstance(recorded, Mapping) else None
    if key_added == default or (isinstance(params, Mapping) and params.get("function") == function):
        return
    for slot, key in [*((slot, key_added) for slot in (*slots, "uns")), *more]:
        if key in getattr(adata, slot):
            raise ValueError(
                f"adata.{slot}[{key!r}] exists and wasn't written by this function. Choose another key_added, "
                "or delete it first."
            )


def progress(items: Iterable[T], desc: str, total: int | None = None, unit: str = "block") -> Iterable[T]:
    """Iterate with a progress bar that appears once the loop has taken a second."""
    from tqdm.auto import tqdm

    return tqdm(items, desc=desc, total=total, unit=unit, delay=1, leave=False, disable=not settings.progress_bars)


def shorten(names: Iterable[object], n: int = 5) -> str:
    """First few names for an error or log message: ``'A', 'B' and 7 more``."""
    listed = list(names)
    text = ", ".join(repr(str(name)) for name in listed[:n])
    return f"{text} and {len(listed) - n} more" if len(listed) > n else text


def adjust_pvalues(pval: NDArray[np.float64]) -> NDArray[np.float64]:
    """Benjamini-Hochberg; NaN stays NaN and counts for nothing."""
    import numpy as np
    from scipy.stats import false_discovery_control

    adjusted = np.full(len(pval), np.nan)
    known = np.isfinite(pval)
    if known.any():
        adjusted[known] = false_discovery_control(pval[known])
    return adjusted


def get_stored(
    adata: AnnData, path: Iterable[str], kind: type[Any], names: Iterable[str], run: str, *, may_be_empty: bool = False
) -> Any:
    """Return what ``run`` wrote at ``path`` in ``uns``: a table with these columns, or a mapping with these keys."""
    found: Any = adata.uns
    slot = "adata.uns"
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
        slot += f"[{key!r}]"
    if not isinstance(found, kind):
        raise KeyError(f"no {'mapping' if kind is Mapping else 'table'} in {slot}. Run {run} first.")
    if missing := [name for name in names if name not in found]:
        raise KeyError(f"{slot} lacks {shorten(missing)}. Run {run} again.")
    if getattr(found, "empty", False) and not may_be_empty:  # tables alone say so
        raise KeyError(f"{slot} is empty. Run {run} again.")
    return found
