"""Which gene of a model's vocabulary each column of a slide is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sagefm import _keys, models
from sagefm._settings import logger
from sagefm._utils import check_key, get_table, shorten
from sagefm.models._vocabulary import Vocabulary, ensembl_ids, hest1k

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model

WARN_COVERAGE = 0.7
MIN_COVERAGE = 0.3
BY_SYMBOL, BY_ENSEMBL_ID, BY_OTHER_SYMBOL, UNKNOWN = 0, 1, 2, 3


def align_genes(
    adata: AnnData | SpatialData,
    model: str | Path | Model | None = None,
    *,
    gene_symbols: str | None = None,
    min_coverage: float = MIN_COVERAGE,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Find the gene of the model's vocabulary that each column is.

    The functions of ``sg.tl`` call it when needed; call it yourself to see the coverage, to name a
    column of symbols, or to accept a panel that covers little of the vocabulary.

    A column stands for a gene by its symbol; else by its Ensembl id, with or without version, as its name
    or in ``var["gene_ids"]``; else by a former or alias symbol, if its Ensembl id, where there is one,
    agrees. The first of these that any column of the slide offers for a gene counts, the others are
    ignored. Columns that stand for one gene in the same way are added up.

    Parameters
    ----------
    adata
        Slide.
    model
        Model whose vocabulary to use: a name, a path or a loaded model. By default the 14,558 genes of the
        published model, which ``sagefm-mini`` shares.
    gene_symbols
        Column of ``var`` with symbols or Ensembl ids, instead of ``var_names``.
    min_coverage
        Share of the vocabulary that the slide has to have. Below 0.7 there is a warning in any case.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    copy
        Return a copy instead of writing in place.

    Returns
    -------
    ``None``, or the copy. Writes

    ``var["sage_gene"]``
        Index into the vocabulary, -1 for a column that the model doesn't read.
    ``uns["sage_genes"]``
        ``vocabulary`` (its name) and ``sha256``, ``n_matched``, ``n_vocabulary`` and ``coverage``, how many
        columns matched ``by_symbol``, ``by_ensembl_id`` and ``by_other_symbol``, and the ``missing`` genes.

    Raises
    ------
    KeyError
        If ``gene_symbols`` is not in ``var``.
    ValueError
        If less than ``min_coverage`` of the vocabulary is there.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.align_genes(adata)
    >>> adata.uns["sage_genes"]["n_matched"]
    8000
    """
    adata = get_table(adata, table_key, copy=copy)
    vocabulary = hest1k() if model is None else models.load(model).vocabulary
    alignment = match_genes(adata, vocabulary, gene_symbols=gene_symbols, min_coverage=min_coverage)
    alignment.write(adata)
    return adata if copy else None


@dataclass(frozen=True)
class Alignment:
    """Vocabulary index of every column (-1 for none), and the report of :func:`align_genes`."""

    index: NDArray[np.int64]
    report: dict[str, Any]

    @property
    def measured(self) -> NDArray[np.int64]:
        """Vocabulary indices of the genes that the slide has, ascending."""
        return np.unique(self.index[self.index >= 0])

    def find(self, adata: AnnData, vocabulary: Vocabulary, names: Sequence[str]) -> NDArray[np.int64]:
        """Vocabulary index of each gene by the column of that name, else as the vocabulary knows it; -1 for none."""
        of_column = dict(zip(adata.var_names, self.index, strict=True))
        by_column = np.array([of_column.get(name, -1) for name in names], dtype=np.int64)
        return np.where(by_column >= 0, by_column, vocabulary.find(names))

    def write(self, adata: AnnData) -> None:
        """Put the alignment into ``adata``."""
        adata.var[_keys.GENE_INDEX] = self.index
        adata.uns[_keys.GENES] = self.report


def get_alignment(adata: AnnData, vocabulary: Vocabulary) -> tuple[Alignment, bool]:
    """Alignment that ``adata`` holds for this vocabulary, or a new one; and whether it is new.

    One made for another vocabulary, or before genes were renamed, added or dropped, or changed since, is made
    again with the same choices.
    """
    report = adata.uns.get(_keys.GENES)
    report = dict(report) if isinstance(report, Mapping) else {}
    gene_symbols = report.get("gene_symbols")
    if gene_symbols not in adata.var:
        gene_symbols = None
    if report.get("sha256") == vocabulary.sha256 and _keys.GENE_INDEX in adata.var:
        index = adata.var[_keys.GENE_INDEX].to_numpy()
        if report.get("fingerprint") == _fingerprint(_names(adata, gene_symbols), _listed_ids(adata), index):
            return Alignment(index.astype(np.int64), report), False
    min_coverage = report.get("min_coverage", MIN_COVERAGE)
    return match_genes(adata, vocabulary, gene_symbols=gene_symbols, min_coverage=min_coverage), True


def match_genes(
    adata: AnnData,
    vocabulary: Vocabulary,
    *,
    gene_symbols: str | None = None,
    min_coverage: float = MIN_COVERAGE,
) -> Alignment:
    """Compute what :func:`align_genes` writes."""
    if not isinstance(min_coverage, int | float) or not 0 <= min_coverage <= 1:
        raise ValueError(f"min_coverage={min_coverage!r} has to be a share between 0 and 1.")
    names, listed_ids = _names(adata, gene_symbols), _listed_ids(adata)

    # Best way of naming a gene first, each on the columns that are left. A column with an Ensembl id that
    # agrees with its other symbol is found by the id; with one that doesn't, the symbol is not believed.
    index = vocabulary.find_symbols(names)
    rank = np.where(index >= 0, BY_SYMBOL, UNKNOWN)
    left = np.flatnonzero(index < 0)
    ids = ensembl_ids(names[i] for i in left)
    if listed_ids:
        ids = [own or listed for own, listed in zip(ids, ensembl_ids(listed_ids[i] for i in left), strict=True)]
    index[left] = vocabulary.find_ensembl_ids(ids)
    rank[left[index[left] >= 0]] = BY_ENSEMBL_ID
    left = left[[not gene_id for gene_id in ids]]
    index[left] = vocabulary.find_other_symbols([names[i] for i in left])
    rank[left[index[left] >= 0]] = BY_OTHER_SYMBOL

    best = np.full(len(vocabulary), UNKNOWN)
    known = index >= 0
    np.minimum.at(best, index[known], rank[known])
    outranked = np.zeros(len(names), dtype=bool)
    outranked[known] = rank[known] > best[index[known]]
    index[outranked] = -1
    rank[outranked] = UNKNOWN

    matched, n_columns = np.unique(index[index >= 0], return_counts=True)
    missing = np.setdiff1d(np.arange(len(vocabulary)), matched)
    coverage = len(matched) / len(vocabulary)
    report: dict[str, Any] = {
        "vocabulary": vocabulary.name,
        "sha256": vocabulary.sha256,
        "fingerprint": _fingerprint(names, listed_ids, index),
        "min_coverage": float(min_coverage),
        "n_matched": len(matched),
        "n_vocabulary": len(vocabulary),
        "coverage": coverage,
        "by_symbol": int((rank == BY_SYMBOL).sum()),
        "by_ensembl_id": int((rank == BY_ENSEMBL_ID).sum()),
        "by_other_symbol": int((rank == BY_OTHER_SYMBOL).sum()),
        "missing": [vocabulary.symbols[i] for i in missing],
    }
    if gene_symbols is not None:
        report["gene_symbols"] = gene_symbols
    if coverage < min_coverage:
        raise ValueError(
            f"the slide has {len(matched)} of the model's {len(vocabulary)} genes ({coverage:.1%}), less than "
            f"min_coverage={min_coverage:g}. {_hint(names, gene_symbols)}"
            f"To go on regardless, run sg.pp.align_genes(adata, min_coverage={np.floor(coverage * 100) / 100:g}) first."
        )
    logger.info(
        "Matched %d of %d genes (%.1f %%): %d columns by symbol, %d by Ensembl id, %d by another symbol.",
        len(matched),
        len(vocabulary),
        100 * coverage,
        report["by_symbol"],
        report["by_ensembl_id"],
        report["by_other_symbol"],
    )
    if (n_columns > 1).any():
        doubled = [vocabulary.symbols[i] for i in matched[n_columns > 1]]
        logger.info("Several columns are one gene and are added up: %s.", shorten(doubled))
    if coverage < WARN_COVERAGE:
        logger.warning(
            "The slide has only %.1f %% of the model's genes; the others count as zero, which the model has "
            "hardly seen in training. Trust results the less.",
            100 * coverage,
        )
    return Alignment(index, report)


def _names(adata: AnnData, gene_symbols: str | None) -> list[str]:
    """Name of each column."""
    if gene_symbols is None:
        return adata.var_names.astype(str).tolist()
    check_key("gene_symbols", gene_symbols)
    if gene_symbols not in adata.var:
        raise KeyError(f"gene_symbols={gene_symbols!r} not in adata.var.")
    return adata.var[gene_symbols].astype(str).tolist()


def _listed_ids(adata: AnnData) -> list[str]:
    """Gene id of each column, empty where ``var`` has none."""
    key = next((key for key in _keys.ENSEMBL_COLUMNS if key in adata.var), None)
    return [] if key is None else adata.var[key].astype(str).tolist()


def _fingerprint(names: list[str], ids: list[str], index: NDArray[Any]) -> str:
    """Digest of what an alignment was made from, and of itself."""
    numbers = index.astype(np.int64).tobytes() if index.dtype.kind in "iu" else b""
    return hashlib.sha256("\n".join([*names, "", *ids, ""]).encode() + numbers).hexdigest()


def _hint(names: list[str], gene_symbols: str | None) -> str:
    if sum(name.startswith("ENSMUSG") for name in names) > len(names) / 2 or (
        sum(name[1:].islower() for name in names if name[:1].isupper() and len(name) > 2) > len(names) / 2
    ):
        return "The names look like mouse genes; the model knows human ones only. "
    if gene_symbols is None:
        return "If the symbols are in a column of var, pass it as sg.pp.align_genes(adata, gene_symbols=...). "
    return ""
