"""Ligand-receptor pairs, and where they come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

from sagefm.datasets import paper_interactions
from sagefm.models import available

if TYPE_CHECKING:
    import pandas as pd

Interactions: TypeAlias = "str | pd.DataFrame | Iterable[tuple[str, str]]"

# LIANA's results name complexes in columns of their own.
COLUMNS = (("ligand_complex", "receptor_complex"), ("ligand", "receptor"), ("source", "target"))
SEPARATORS = ("|", "^", "-")  # in "CXCL12-CXCR4"


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
        if interactions in available().index:
            raise ValueError(
                f"interactions={interactions!r} is the name of a model: pass it as model={interactions!r}."
            )
        pair = _split(interactions)
        interactions = _liana_resource(interactions) if pair is None else [pair]
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
                "(or 'source' and 'target', or LIANA's 'ligand_complex' and 'receptor_complex')."
            )
        rows = interactions[list(columns)].itertuples(index=False, name=None)
    else:
        rows = interactions
    pairs = []
    for row in rows:
        row = _split(row) or row if isinstance(row, str) else row
        if isinstance(row, str) or not isinstance(row, Iterable):
            raise TypeError(f"interactions has to hold pairs (ligand, receptor) or 'LIGAND|RECEPTOR', got {row!r}.")
        pair = tuple(row)
        if len(pair) != 2 or not all(isinstance(name, str) and name for name in pair):
            raise ValueError(f"interactions has to hold pairs (ligand, receptor) of names, got {pair!r}.")
        pairs.append((str(pair[0]), str(pair[1])))
    if not pairs:
        raise ValueError("interactions is empty; leave it out for the pairs of the paper.")
    return pairs


def _split(text: str) -> tuple[str, str] | None:
    """Ligand and receptor of ``CXCL12|CXCR4`` or ``CXCL12-CXCR4``; None where it isn't clear what they are."""
    for separator in SEPARATORS:
        ligand, found, receptor = (part.strip() for part in text.partition(separator))
        if found and ligand and receptor and separator not in receptor:
            return ligand, receptor
    return None


def shown(columns: Iterable[object]) -> list[str]:
    """Column names for a message."""
    return [str(column) for column in columns]


def _liana_resource(name: str) -> pd.DataFrame:
    try:
        from liana.resource import select_resource, show_resources
    except ImportError as error:
        raise ImportError(
            f"interactions={name!r} names a resource of LIANA, which is not installed: pip install liana. "
            "Without it, pass a DataFrame or pairs of names, or 'paper'."
        ) from error
    if name not in (known := list(show_resources())):
        raise KeyError(f"interactions={name!r} is neither 'paper' nor a resource of LIANA: {known}.")
    return select_resource(name)
