"""Ligand-receptor pairs: where they come from, and what the slide and the model have of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sagefm.datasets import paper_interactions
from sagefm.models import available

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from sagefm.models._vocabulary import Vocabulary
    from sagefm.pp._genes import Alignment

Interactions: TypeAlias = "str | pd.DataFrame | Iterable[tuple[str, str]]"

OK, NOT_IN_MODEL, NOT_MEASURED, CONSTANT = "ok", "not_in_model", "not_measured", "constant_ligand"
STATUS = (OK, NOT_IN_MODEL, NOT_MEASURED, CONSTANT)

COLUMNS = (("ligand", "receptor"), ("source", "target"))


@dataclass(frozen=True)
class Interaction:
    """One pair; each side is one gene or the subunits of a complex, as vocabulary indices."""

    ligand: str
    receptor: str
    ligand_genes: tuple[int, ...]
    receptor_genes: tuple[int, ...]
    status: str

    @property
    def name(self) -> str:
        """How columns name the pair."""
        return f"{self.ligand}|{self.receptor}"


def read_interactions(interactions: Interactions | None) -> list[tuple[str, str]]:
    """Pairs of names, in the order given, duplicates kept.

    Raises
    ------
    ImportError
        If a resource of LIANA is named and ``liana`` is not installed.
    KeyError
        If LIANA has no resource of that name.
    TypeError, ValueError
        If these are no pairs of names.
    """
    import pandas as pd

    if interactions is None or (isinstance(interactions, str) and interactions == "paper"):
        interactions = paper_interactions()
    if isinstance(interactions, str):
        interactions = _liana_resource(interactions)
    rows: Iterable[object]
    if not isinstance(interactions, Iterable):
        raise TypeError(
            f"interactions has to be 'paper', the name of a LIANA resource, a DataFrame or pairs of names, "
            f"got {type(interactions).__name__}."
        )
    if isinstance(interactions, pd.DataFrame):
        columns = next((names for names in COLUMNS if set(names) <= set(interactions.columns)), None)
        if columns is None:
            raise KeyError(
                f"interactions has the columns {shown(interactions.columns)}; it needs 'ligand' and 'receptor' "
                "(or 'source' and 'target')."
            )
        rows = interactions[list(columns)].itertuples(index=False, name=None)
    else:
        rows = interactions
    pairs = []
    for row in rows:
        if isinstance(row, str) or not isinstance(row, Iterable):
            raise TypeError(f"interactions has to hold pairs (ligand, receptor), got {row!r}.")
        pair = tuple(row)
        if len(pair) != 2 or not all(isinstance(name, str) and name for name in pair):
            raise ValueError(f"interactions has to hold pairs (ligand, receptor) of names, got {pair!r}.")
        pairs.append((str(pair[0]), str(pair[1])))
    if not pairs:
        raise ValueError("interactions is empty; leave it out for the pairs of the paper.")
    return pairs


def shown(columns: Iterable[object]) -> list[str]:
    """Column names for a message."""
    return [str(column) for column in columns]


def _liana_resource(name: str) -> pd.DataFrame:
    if name in available().index:
        raise ValueError(f"interactions={name!r} is the name of a model: pass it as model={name!r}.")
    try:
        from liana.resource import select_resource, show_resources
    except ImportError as error:
        raise ImportError(
            f"interactions={name!r} names a resource of LIANA, which is not installed: pip install 'sagefm[lr]'. "
            "Without it, pass a DataFrame or pairs of names, or 'paper'."
        ) from error
    if name not in (known := list(show_resources())):
        raise KeyError(f"interactions={name!r} is neither 'paper' nor a resource of LIANA: {known}.")
    return select_resource(name)


def resolve(
    pairs: Iterable[tuple[str, str]], adata: AnnData, alignment: Alignment, vocabulary: Vocabulary
) -> list[Interaction]:
    """Genes and status of each pair. Whether a ligand is constant is not known yet."""
    pairs = list(pairs)
    sides = list(dict.fromkeys(side for pair in pairs for side in pair))
    whole = dict(zip(sides, alignment.find(adata, vocabulary, sides), strict=True))
    # A name with "_" is a complex, unless it is a gene's own.
    units = {side: [side] if whole[side] >= 0 else side.split("_") for side in sides}
    names = list(dict.fromkeys(unit for parts in units.values() for unit in parts))
    gene_of = dict(zip(names, alignment.find(adata, vocabulary, names).tolist(), strict=True))
    measured = set(alignment.measured.tolist())
    interactions = []
    for ligand, receptor in pairs:
        clamped, read = (tuple(dict.fromkeys(gene_of[unit] for unit in units[side])) for side in (ligand, receptor))
        every = clamped + read
        if min(every) < 0:
            status = NOT_IN_MODEL
        else:
            status = OK if measured.issuperset(every) else NOT_MEASURED
        interactions.append(Interaction(ligand, receptor, clamped, read, status))
    return interactions
