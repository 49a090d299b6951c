"""Which predictions can be scored: those of groups that the fit hasn't seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sagefm._settings import logger
from sagefm._utils import shorten
from sagefm.tl._points import get_column, get_points

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

OVERALL = "overall"


@dataclass(frozen=True)
class Scored:
    """Known and predicted of some spots, with their groups, and the object that they are of."""

    truth: NDArray[Any]
    predicted: NDArray[np.float64]
    groups: NDArray[np.str_]
    of: str

    def parts(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """All of them, then group by group."""
        yield OVERALL, np.ones(len(self.truth), dtype=bool)
        for name in np.unique(self.groups):
            yield str(name), self.groups == name


def in_reference(
    truth: NDArray[Any], held_out: NDArray[np.float64] | None, groups: NDArray[np.str_], of: str
) -> Scored | None:
    """Spots that were learned from, each predicted without its group."""
    return None if held_out is None else Scored(truth, held_out, groups, of)


def in_query(
    adata: AnnData,
    known: NDArray[np.bool_],
    truth: NDArray[Any],
    predicted: NDArray[np.float64],
    key: str | None,
    reference_groups: NDArray[np.str_],
) -> Scored | None:
    """Spots of ``adata`` that bring a label; those of groups that the reference has don't count."""
    if not known.any():
        return None
    groups = get_column(adata, "group_key", key if key is not None and key in adata.obs else None, known)
    unseen = np.ones(len(groups), dtype=bool) if key is None else ~np.isin(groups, reference_groups)
    if not unseen.all():
        logger.warning(
            "%d labelled spots of adata are of groups that the reference has (%s), so they count in no score.",
            *((~unseen).sum(), shorten(np.unique(groups[~unseen]))),
        )
    if not unseen.any():
        return None
    return Scored(truth[known][unseen], predicted[known][unseen], groups[unseen], "adata")


def recorded_params(adata: AnnData, use_rep: str) -> Mapping[str, Any]:
    """What is recorded of how a representation was made; nothing where others made it."""
    recorded = adata.uns.get(use_rep)
    params = recorded.get("params") if isinstance(recorded, Mapping) else None
    return params if isinstance(params, Mapping) else {}


def check_same_model(reference: AnnData, adata: AnnData, use_rep: str) -> None:
    """Two embeddings only fit together if one model made both."""
    widths, made_by = [], []
    for part in (reference, adata):
        widths.append(get_points(part, use_rep).shape[1])
        made_by.append(recorded_params(part, use_rep).get("model"))
    if widths[0] != widths[1] or (None not in made_by and made_by[0] != made_by[1]):
        raise ValueError(
            f"obsm[{use_rep!r}] of the reference ({widths[0]} dimensions, model {made_by[0]}) and of adata "
            f"({widths[1]}, {made_by[1]}) don't fit together. Embed both with the same model."
        )
