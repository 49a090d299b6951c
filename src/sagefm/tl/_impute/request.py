"""Which genes are imputed, and which are hidden together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm._types import Ints

if TYPE_CHECKING:
    import pandas as pd

    from sagefm._anndata import Slot
    from sagefm.tl._run import Missing, SlideRun

# Seed of the gene folds. Part of the method: a gene is in the same fold on every slide.
FOLD_SEED = 2601
# Number of folds, unless the user says otherwise.
N_FOLDS = 4


@dataclass(frozen=True)
class Request:
    """Genes to predict, as vocabulary indices.

    Attributes
    ----------
    measured
        Those that the slide has, ascending.
    absent
        Those that it lacks, as asked for.
    asked
        All of them, in the order asked for.
    folds
        Genes that are hidden together; folds without a measured gene of the request are left out.
    targets
        Those of ``measured`` in each fold.
    """

    measured: Ints
    absent: Ints
    asked: Ints
    folds: list[Ints]
    targets: list[Ints]

    def sort(
        self, tables: Mapping[str, pd.DataFrame], written: dict[Slot, Any], symbols: Sequence[str]
    ) -> dict[str, pd.DataFrame]:
        """Put the genes of all tables in the order asked for, those of ``obsm`` in ``written`` too."""
        order = {symbols[gene]: number for number, gene in enumerate(self.asked)}
        for slot, value in written.items():
            if slot[0] == "obsm":
                written[slot] = value[sorted(value.columns, key=order.__getitem__)]
        found = {}
        for name, table in tables.items():
            slide = table["slide"].factorize()[0] if "slide" in table else np.zeros(len(table))
            found[name] = table.iloc[np.lexsort((table.index.map(order), slide))]
        return found


def gene_folds(n_genes: int, n_folds: int) -> Ints:
    """Fold of each gene of a vocabulary, of sizes that differ by one at most."""
    return np.random.default_rng(FOLD_SEED).permutation(n_genes) % n_folds


def find_request(run: SlideRun, genes: str | Sequence[str] | None, missing: Missing, n_folds: int) -> Request:
    """Find the genes asked for, by default all that are measured, and their folds."""
    asked = measured = run.alignment.measured
    absent = np.empty(0, dtype=np.int64)
    if genes is not None:
        asked = np.array(list(dict.fromkeys(run.find_genes("genes", genes, missing))))  # once each
        is_measured = np.isin(asked, measured)
        measured, absent = np.sort(asked[is_measured]), asked[~is_measured]
    elif not len(measured):
        raise ValueError("the slide has no gene that the model knows, so there is nothing to impute.")
    fold_of = gene_folds(len(run.model.vocabulary), n_folds)
    folds = [np.flatnonzero(fold_of == fold) for fold in np.unique(fold_of[measured])]
    return Request(measured, absent, asked, folds, [np.intersect1d(fold, measured) for fold in folds])
