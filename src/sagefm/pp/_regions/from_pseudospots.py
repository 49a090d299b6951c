"""What was found for pseudo-spots, given back to their bins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._types import Ints
from sagefm._utils import check_key, shorten
from sagefm.pp._regions.pseudospots import get_record

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


@fill_docstring
def from_pseudospots(
    adata: AnnData | SpatialData,
    spots: AnnData,
    *,
    obs: Iterable[str] = (),
    obsm: Iterable[str] | None = None,
    key: str = _keys.PSEUDOSPOT,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Give every bin what was found for its pseudo-spot.

    Nothing is interpolated: all bins of a hexagon get the same value, those that weren't counted too.

    Parameters
    ----------
    adata
        Bins that :func:`~sagefm.pp.pseudospots` was called with.
    spots
        Pseudo-spots that it returned, or some of them.
    obs
        Columns of ``spots.obs``.
    obsm
        Keys of ``spots.obsm``, arrays or data frames. By default ``"X_sage"``, where there is one.
    key
        Column of ``adata.obs`` with the pseudo-spot of each bin.
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obs``, ``obsm``
        What was asked for, under the same keys, missing (NaN) for bins in no pseudo-spot. Whole numbers and
        booleans become the nullable types of pandas, text becomes categorical; arrays become floats.
    ``uns["pseudospot"]["mapped"]``
        Their keys: a later call may overwrite these, and nothing else.

    Raises
    ------
    KeyError
        If the column of pseudo-spots, or something that was asked for, is missing.
    ValueError
        If nothing was asked for, ``spots`` aren't those of the bins, or a key is taken.

    Examples
    --------
    >>> import anndata, numpy as np
    >>> import sagefm as sg
    >>> counts = np.random.default_rng(0).poisson(0.1, (10_000, 20)).astype("float32")
    >>> bins = anndata.AnnData(counts, obsm={{"spatial": 8.0 * np.argwhere(np.ones((100, 100)))}})
    >>> spots = sg.pp.pseudospots(bins, microns_per_unit=1.0)
    >>> spots.obs["depth"] = np.asarray(spots.X.sum(axis=1)).ravel()
    >>> sg.pp.from_pseudospots(bins, spots, obs=["depth"])
    >>> bool(bins.obs["depth"].isna().eq(bins.obs["pseudospot"].isna()).all())
    True
    """
    import pandas as pd

    bins, spots = get_anndata(adata, table_key, copy=copy), get_anndata(spots, table_key)
    check_key("key", key)
    if key not in bins.obs:
        raise KeyError(f"{key!r} not in adata.obs. Run sg.pp.pseudospots(adata) first, or set key.")
    wanted = {"obs": _listed("obs", obs), "obsm": _listed("obsm", obsm)}
    if obsm is None:
        wanted["obsm"] = [_keys.EMBEDDING] if _keys.EMBEDDING in spots.obsm else []
    if not any(wanted.values()):
        raise ValueError("nothing to map: pass obs=[...], columns of spots.obs, or obsm=[...], keys of spots.obsm.")
    record = get_record(bins, key)
    mapped = {slot: list(map(str, record.get("mapped", {}).get(slot, []))) for slot in wanted}
    for slot, names in wanted.items():
        for name in names:
            if name not in getattr(spots, slot):
                raise KeyError(f"{name!r} not in spots.{slot}; it has {shorten(getattr(spots, slot))}.")
            if name in getattr(bins, slot) and name not in mapped[slot]:
                raise ValueError(
                    f"adata.{slot}[{name!r}] exists and wasn't written by this function. Rename it in one of the two."
                )
    _refuse_others(record, get_record(spots, key))
    # Row of each bin's pseudo-spot, -1 for none.
    index = spots.obs_names.get_indexer(pd.Index(bins.obs[key].to_numpy()))
    if not (index >= 0).any():
        raise ValueError(f"no bin lies in a pseudo-spot of spots: obs[{key!r}] has none of their names.")

    columns = {name: _take(spots.obs[name], index).set_axis(bins.obs_names) for name in wanted["obs"]}
    arrays = {name: _take_rows(spots.obsm[name], index, bins.obs_names, name) for name in wanted["obsm"]}
    for name, column in columns.items():
        bins.obs[name] = column.array
    for name, array in arrays.items():
        bins.obsm[name] = array
    mapped = {slot: sorted({*mapped[slot], *wanted[slot]}) for slot in wanted}
    bins.uns[key] = {**record, "mapped": mapped}
    logger.info(
        "Gave %d of %d bins the values of %d pseudo-spots; wrote %s.",
        (index >= 0).sum(),
        len(index),
        spots.n_obs,
        ", ".join(f"{slot}['{name}']" for slot, names in wanted.items() for name in names),
    )
    return bins if copy else None


def _refuse_others(record: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse pseudo-spots of another call: their names say other places."""
    if "params" not in record or "params" not in other:
        return
    for name in ("spacing", "microns_per_unit"):
        ours, theirs = (np.atleast_1d(found["params"].get(name, np.nan)) for found in (record, other))
        if not np.array_equal(ours, theirs):
            raise ValueError(
                f"spots are of another call of sg.pp.pseudospots than the bins' last one: their {name} is {theirs}, "
                f"not {ours}. Make them again, or give each call a key_added."
            )


def _listed(name: str, keys: Iterable[str] | None) -> list[str]:
    if isinstance(keys, str):
        raise TypeError(f"{name}={keys!r} has to be a list of keys.")
    return list(keys or ())


def _take(column: pd.Series, index: Ints) -> pd.Series:
    """Entries of a column, missing for -1, in a type that can be missing and be saved."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(column.dtype):
        column = column.astype("boolean")
    elif pd.api.types.is_integer_dtype(column.dtype):
        column = column.astype("UInt64" if pd.api.types.is_unsigned_integer_dtype(column.dtype) else "Int64")
    elif not isinstance(column.dtype, pd.CategoricalDtype) and not pd.api.types.is_numeric_dtype(column.dtype):
        column = column.astype("category")
    return pd.Series(column.array.take(index, allow_fill=True))


def _take_rows(found: Any, index: Ints, names: pd.Index, name: str) -> Any:
    """Rows of an array or a data frame, NaN for -1."""
    import pandas as pd

    if isinstance(found, pd.DataFrame):
        columns = {column: _take(found[column], index) for column in found}
        return pd.DataFrame(columns, columns=found.columns).set_axis(names)
    if hasattr(found, "compute"):  # on disk
        found = found.compute()
    if not isinstance(found, np.ndarray):
        raise TypeError(f"spots.obsm[{name!r}] is a {type(found).__name__}, neither array nor data frame.")
    taken = np.asarray(found)[index].astype(np.result_type(found.dtype, np.float32), copy=False)
    taken[index < 0] = np.nan
    return taken
