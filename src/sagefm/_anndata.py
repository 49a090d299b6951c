"""The object that a function works on: found, read, and written once everything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sagefm import _keys
from sagefm._settings import logger
from sagefm._utils import check_key, shorten

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

Slot = tuple[str, str]
"""Attribute of an ``AnnData`` and key in there, such as ``("obsm", "X_sage")``."""


def get_anndata(data: AnnData | SpatialData, table_key: str, *, copy: bool = False) -> AnnData:
    """Return the ``AnnData`` to work on: ``data`` itself, a table of a ``SpatialData``, or a copy of either."""
    from anndata import AnnData

    if not isinstance(data, AnnData):
        tables = getattr(data, "tables", None)
        if hasattr(data, "mod"):
            raise TypeError(f"expected an AnnData, got a MuData. Pass one of its modalities, {shorten(data.mod)}.")
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


@dataclass(frozen=True)
class Run:
    """One call of a function that writes to an ``AnnData``.

    A function opens a run, which checks that it overwrites nothing of the user's; computes; and commits. So bad input
    leaves the object as it was.

    Attributes
    ----------
    adata
        Object to read from and, at the end, to write to.
    function
        Name of the function, which ``uns`` records.
    key
        What the user calls the result; ``uns[key]`` holds its parameters.
    slots
        Everything that the function may write besides. One key holds one result: what an earlier call left in a slot
        that this one doesn't write is removed, since it would carry this call's parameters.
    copy
        Whether the object is a copy, to be returned.
    """

    adata: AnnData
    function: str
    key: str
    slots: tuple[Slot, ...]
    copy: bool

    def commit(self, written: Mapping[Slot, Any], params: Mapping[str, Any], **recorded: Any) -> AnnData | None:
        """Write results, and return the copy if one was asked for.

        Parameters
        ----------
        written
            Value of each slot.
        params
            What ``uns[key]["params"]`` records; entries that are None are left out, as h5ad has none.
        recorded
            What else ``uns[key]`` holds.
        """
        for slot, key in self.slots:
            if (slot, key) not in written and key in (found := getattr(self.adata, slot)):
                if slot in ("obs", "var"):
                    setattr(self.adata, slot, found.drop(columns=key))
                else:
                    del found[key]
        for (slot, key), value in written.items():
            getattr(self.adata, slot)[key] = value
        earlier, now = recorded_params(self.adata, self.key), self.describe(params)
        self.adata.uns[self.key] = {"params": now, **recorded}
        if earlier and dict(earlier) != now and (stale := self._stale()):
            logger.warning("%s came from the earlier %r. Compute them again.", shorten(stale), self.key)
        return self.adata if self.copy else None

    def _stale(self) -> list[str]:
        """Keys of results that were computed from an earlier result under this key, or from such a result."""
        params = {key: recorded_params(self.adata, key) for key in self.adata.uns if key != self.key}
        stale, sources = [], [self.key.removesuffix(_keys.NEIGHBORS.format(""))]  # graphs go by their name
        while sources:
            source = sources.pop()
            for key, made in params.items():
                made_of = [made.get(name) for name in ("connectivity_key", "use_rep", "key")]
                if source in (*made_of, *made.get("use_reps", ())) and key not in stale:
                    stale.append(key)
                    sources.append(key)
        return [key for key in params if key in stale]

    def describe(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What is recorded of the call."""
        return {"function": self.function} | {name: value for name, value in params.items() if value is not None}


def open_run(
    data: AnnData | SpatialData,
    function: str,
    key_added: str,
    default: str,
    slots: Iterable[str] = (),
    more: Iterable[Slot] = (),
    *,
    table_key: str,
    copy: bool,
) -> Run:
    """Find the object to work on, and refuse to overwrite what the user put there.

    Parameters
    ----------
    data
        What the user passed.
    function
        Name of the function that is called.
    key_added, default
        Key that the user chose, and the function's own, which may always be written.
    slots
        Attributes that get an entry of that key, besides ``uns``.
    more
        Other entries that are written.
    table_key, copy
        As the user passed them.

    Raises
    ------
    ValueError
        If the key is in use, and not for a result of this function.
    """
    adata = get_anndata(data, table_key, copy=copy)
    check_key("key_added", key_added)
    owned = (*((slot, key_added) for slot in slots), *more)
    is_ours = key_added == default or recorded_params(adata, key_added).get("function") == function
    for slot, key in () if is_ours else (*owned, ("uns", key_added)):
        if key in getattr(adata, slot):
            raise ValueError(
                f"adata.{slot}[{key!r}] exists and wasn't written by this function. Choose another key_added, "
                "or delete it first."
            )
    return Run(adata, function, key_added, owned, copy)


def recorded_params(adata: AnnData, key: str) -> Mapping[str, Any]:
    """What ``uns[key]`` tells of how a result was made; nothing if others made it."""
    recorded = adata.uns.get(key)
    params = recorded.get("params") if isinstance(recorded, Mapping) else None
    return params if isinstance(params, Mapping) else {}


def get_result(
    adata: AnnData, path: Iterable[str], kind: type[Any], names: Iterable[str], run: str, *, may_be_empty: bool = False
) -> Any:
    """Return what ``run`` wrote at ``path`` in ``uns``: a table with these columns, or a mapping with these keys."""
    found: Any = adata.uns
    slot = "adata.uns"
    path = tuple(path)
    run = _keys.advise(run, path[0])
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
