"""Small helpers that every namespace needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from sagefm._settings import settings

if TYPE_CHECKING:
    import torch
    from anndata import AnnData
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
    if copy and data.isbacked:
        raise ValueError("copy=True needs the data in memory: call adata = adata.to_memory() first.")
    return data.copy() if copy else data


def get_device(device: str) -> torch.device:
    """Resolve ``"auto"`` to cuda, then mps, then cpu; check that a named device is there."""
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not known to torch; use 'auto', 'cpu', 'cuda' or 'mps'.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but torch finds no CUDA GPU here; use device='auto' or 'cpu'.")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r}, but torch finds no Apple GPU here; use device='auto' or 'cpu'.")
    return found


def progress(items: Iterable[T], desc: str, total: int | None = None, unit: str = "block") -> Iterable[T]:
    """Iterate with a progress bar that appears once the loop has taken a second."""
    from tqdm.auto import tqdm

    return tqdm(items, desc=desc, total=total, unit=unit, delay=1, leave=False, disable=not settings.progress_bars)


def shorten(names: Iterable[object], n: int = 5) -> str:
    """First few names for an error or log message: ``'A', 'B' and 7 more``."""
    listed = list(names)
    text = ", ".join(repr(str(name)) for name in listed[:n])
    return f"{text} and {len(listed) - n} more" if len(listed) > n else text
