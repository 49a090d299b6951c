"""Tables of genes that act on genes."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from sagefm.models._vocabulary import hest1k

if TYPE_CHECKING:
    import pandas as pd

# Their names match, but they are a receptor and its repressor, a kinase and its regulator, and the like.
NO_LIGAND = ("AHR", "GCK", "MTR", "ADA", "HIP1", "INSR")


def paper_interactions() -> pd.DataFrame:
    """Return the 34 pairs of the paper: every gene X of the vocabulary with the gene named X and R.

    Six of them are no ligand and receptor, only names that match.

    Returns
    -------
    Table with columns ``ligand``, ``receptor`` and ``is_ligand_receptor``, in the vocabulary's order.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Methods: in-silico perturbation. AHR and AHRR, GCK and GCKR, MTR and MTRR, ADA and
    ADAR, HIP1 and HIP1R, INSR and INSRR are the six.

    Examples
    --------
    >>> import sagefm as sg
    >>> pairs = sg.datasets.paper_interactions()
    >>> len(pairs), int(pairs["is_ligand_receptor"].sum())
    (34, 28)
    """
    import pandas as pd

    symbols = hest1k().symbols
    known = set(symbols)
    ligands = [symbol for symbol in symbols if f"{symbol}R" in known]
    return pd.DataFrame(
        {
            "ligand": ligands,
            "receptor": [f"{ligand}R" for ligand in ligands],
            "is_ligand_receptor": [ligand not in NO_LIGAND for ligand in ligands],
        }
    )


def textbook_targets() -> pd.DataFrame:
    """Return a small table of ligands and genes that are known to respond to them.

    Returns
    -------
    Table with columns ``gene`` (the ligand), ``target`` and ``doi`` of the reference: the Hallmark gene sets
    (Liberzon et al. 2015), and the early response to EGF (Amit et al. 2007).

    Examples
    --------
    >>> import sagefm as sg
    >>> sorted(sg.datasets.textbook_targets()["gene"].unique())
    ['EGF', 'IFNB1', 'IFNG', 'IL2', 'IL6', 'SHH', 'TGFB1', 'TNF', 'WNT3A']
    """
    import pandas as pd

    with (files("sagefm.datasets") / "textbook_targets.csv").open() as file:
        return pd.read_csv(file)
