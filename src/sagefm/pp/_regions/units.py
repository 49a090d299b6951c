"""Lengths: numbers above 0, and the µm that a unit of the coordinates is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sagefm import _keys
from sagefm._utils import check_positive

if TYPE_CHECKING:
    from anndata import AnnData


def find_scales(adata: AnnData | None, labels: list[str | None], microns_per_unit: float | None) -> list[float]:
    """µm per unit of the coordinates of each library: as given, else as Space Ranger wrote it."""
    if microns_per_unit is not None:
        return [check_positive("microns_per_unit", microns_per_unit)] * len(labels)
    images = {} if adata is None else adata.uns.get(_keys.SPATIAL, {})
    scales = []
    for label in labels:
        entries = list(images.values()) if label is None else [images[label]] if label in images else []
        known = {float(found) for entry in entries if (found := _factor(entry)) is not None}
        if len(known) != 1:
            of = "" if label is None else f" of {label!r}"
            where = f"adata.uns[{_keys.SPATIAL!r}]"
            why = f"{where} has several" if known else f"{where} has no {_keys.MICRONS_PER_PIXEL!r} for them"
            raise ValueError(
                f"the unit of the coordinates{of} isn't known: {why}. Pass microns_per_unit, the µm per unit of the "
                "coordinates (1 if they are in µm; for pixels, the size of one)."
            )
        scales.append(check_positive(_keys.MICRONS_PER_PIXEL, known.pop()))
    return scales


def _factor(entry: Any) -> Any:
    """µm per pixel in what scanpy and squidpy keep of one slide."""
    factors = entry.get(_keys.SCALEFACTORS) if isinstance(entry, Mapping) else None
    return factors.get(_keys.MICRONS_PER_PIXEL) if isinstance(factors, Mapping) else None
