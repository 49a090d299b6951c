"""Which gene of a model's vocabulary each column of a slide is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm import _keys, models
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._types import Array, Bools, Ints
from sagefm._utils import check_key, shorten
from sagefm.models._vocabulary import Vocabulary, ensembl_ids, hest1k

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model

WARN_COVERAGE = 0.7
MIN_COVERAGE = 0.3
# Real sections have up to five columns that are another name of a gene which they have by its better one.
WARN_IGNORED = 20
# Ways of naming a gene, from the best.
WAYS = ("by_symbol", "by_ensembl_id", "by_other_symbol")


@fill_docstring
def align_genes(
    adata: AnnData | SpatialData,
    model: str | Path | Model | None = None,
    *,
    gene_symbols: str | None = None,
    orthologs: Mapping[str, str] | pd.DataFrame | None = None,
    min_coverage: float = MIN_COVERAGE,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Find the gene of the model's vocabulary that each column is.

    The functions of ``sg.tl`` call it when needed; call it yourself to see the coverage, to name a
    column of symbols, to translate genes of another species, or to accept a panel that covers little of the
    vocabulary.

    A column stands for a gene by its symbol; else by its Ensembl id, with or without version, as its name
    or in ``var["gene_ids"]``; else by a former or alias symbol, if its Ensembl id, where there is one,
    agrees. The first of these that any column of the slide offers for a gene counts, the others are
    ignored: within one slide they are other genes. Columns that stand for one gene in the same way are added up.
    Slides whose genes are named differently lose counts when they are joined before their names are made alike;
    a warning tells.

    Parameters
    ----------
    adata
        Slide.
    model
        Name or path of a model whose vocabulary is used, or a loaded model. By default, the 14,558 genes of the
        published model, which ``sagefm-mini`` shares.
    {gene_symbols}
    orthologs
        For slides of another species: human symbol or Ensembl id of each gene, as a mapping or as a table whose first
        two columns are the slide's gene and the human one. Genes with several human orthologs are left out; those
        that share one are added up. Nothing is translated without it, and the model hasn't seen other species.
    min_coverage
        Minimum share of the vocabulary that the slide has to contain. Below 0.7, there is always a warning.
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``var["sage_gene"]``
        Index into the vocabulary, -1 for a column that the model doesn't read.
    ``uns["sage_genes"]``
        ``vocabulary`` (its name) and ``sha256``, ``n_matched``, ``n_vocabulary`` and ``coverage``, how many
        columns matched ``by_symbol``, ``by_ensembl_id`` and ``by_other_symbol``, the ``missing`` genes, and the
        columns ``ignored`` for a better one.
    ``var["sage_ortholog"]``
        Human gene of each column, empty where there is none (with ``orthologs``).

    Raises
    ------
    KeyError
        If ``gene_symbols`` is not in ``var``.
    TypeError
        If ``orthologs`` is neither a mapping nor a table of two columns.
    ValueError
        If less than ``min_coverage`` of the vocabulary is there, or ``orthologs`` names none of the slide's genes.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.align_genes(adata)
    >>> adata.uns["sage_genes"]["n_matched"]
    8000
    """
    adata = get_anndata(adata, table_key, copy=copy)
    vocabulary = hest1k() if model is None else models.load(model).vocabulary
    human = None
    if orthologs is not None:
        human = _translated(_names(adata, gene_symbols), orthologs, vocabulary)
        gene_symbols = _keys.ORTHOLOG
    alignment = match_genes(adata, vocabulary, gene_symbols=gene_symbols, names=human, min_coverage=min_coverage)
    if human is not None:
        adata.var[_keys.ORTHOLOG] = human
    alignment.write(adata)
    return adata if copy else None


@dataclass(frozen=True)
class Alignment:
    """Vocabulary index of every column (-1 for none), and the report of :func:`align_genes`."""

    index: Ints
    report: dict[str, Any]

    @property
    def measured(self) -> Ints:
        """Vocabulary indices of the genes that the slide has, ascending."""
        return np.unique(self.index[self.index >= 0])

    def find(self, adata: AnnData, vocabulary: Vocabulary, names: Sequence[str]) -> Ints:
        """Vocabulary index of each gene by the column of that name, else as the vocabulary knows it; -1 for none."""
        of_column = dict(zip(adata.var_names, self.index, strict=True))
        by_column = np.array([of_column.get(name, -1) for name in names], dtype=np.int64)
        return np.where(by_column >= 0, by_column, vocabulary.find(names))

    def write(self, adata: AnnData) -> None:
        """Put the alignment into ``adata``."""
        adata.var[_keys.GENE_INDEX] = self.index
        adata.uns[_keys.GENES] = self.report


def get_alignment(
    adata: AnnData, vocabulary: Vocabulary, *, min_coverage: float | None = None
) -> tuple[Alignment, bool]:
    """Alignment that ``adata`` holds for this vocabulary, or a new one; and whether it is new.

    One made for another vocabulary, or before genes were renamed, added or dropped, or changed since, is made
    again with the same choices, but for ``min_coverage`` where that is given.
    """
    report = adata.uns.get(_keys.GENES)
    report = dict(report) if isinstance(report, Mapping) else {}
    gene_symbols = report.get("gene_symbols")
    if gene_symbols not in adata.var:
        gene_symbols = None
    if report.get("sha256") == vocabulary.sha256 and _keys.GENE_INDEX in adata.var:
        index = adata.var[_keys.GENE_INDEX].to_numpy()
        listed_ids = [] if gene_symbols == _keys.ORTHOLOG else _listed_ids(adata)
        if report.get("fingerprint") == _fingerprint(_names(adata, gene_symbols), listed_ids, index):
            return Alignment(index.astype(np.int64), report), False
    if min_coverage is None:
        min_coverage = report.get("min_coverage", MIN_COVERAGE)
    return match_genes(adata, vocabulary, gene_symbols=gene_symbols, min_coverage=min_coverage), True


def match_genes(
    adata: AnnData,
    vocabulary: Vocabulary,
    *,
    gene_symbols: str | None = None,
    names: list[str] | None = None,
    min_coverage: float = MIN_COVERAGE,
) -> Alignment:
    """Compute what :func:`align_genes` writes; ``names`` are those of ``gene_symbols``, if it isn't written yet."""
    if not isinstance(min_coverage, int | float) or not 0 <= min_coverage <= 1:
        raise ValueError(f"min_coverage={min_coverage!r} has to be a share between 0 and 1.")
    names = _names(adata, gene_symbols) if names is None else names
    listed_ids = [] if gene_symbols == _keys.ORTHOLOG else _listed_ids(adata)  # of the other species

    index, way, outranked = _find_columns(names, listed_ids, vocabulary)
    matched, n_columns = np.unique(index[index >= 0], return_counts=True)
    missing = np.setdiff1d(np.arange(len(vocabulary)), matched)
    coverage = len(matched) / len(vocabulary)
    if coverage < min_coverage:
        raise ValueError(
            f"the slide has {len(matched)} of the model's {len(vocabulary)} genes ({coverage:.1%}), less than "
            f"min_coverage={min_coverage:g}. {hint_at_names(adata, gene_symbols)}"
            f"To go on regardless, run sg.pp.align_genes(adata, min_coverage={np.floor(coverage * 100) / 100:g}) first."
        )
    report: dict[str, Any] = {
        "vocabulary": vocabulary.name,
        "sha256": vocabulary.sha256,
        "fingerprint": _fingerprint(names, listed_ids, index),
        "min_coverage": float(min_coverage),
        "n_matched": len(matched),
        "n_vocabulary": len(vocabulary),
        "coverage": coverage,
        **{name: int((way == number).sum()) for number, name in enumerate(WAYS)},
        "missing": [vocabulary.symbols[i] for i in missing],
        "ignored": [names[i] for i in np.flatnonzero(outranked)],
    }
    if gene_symbols is not None:
        report["gene_symbols"] = gene_symbols
    if gene_symbols == _keys.ORTHOLOG:
        report["orthologs"] = True
    _log_matches(report, [vocabulary.symbols[i] for i in matched[n_columns > 1]])
    return Alignment(index, report)


def _find_columns(names: list[str], listed_ids: list[str], vocabulary: Vocabulary) -> tuple[Ints, Ints, Bools]:
    """Gene of each column, the way it was found, and columns whose gene another one names in a better way.

    Best way of naming a gene first, each on the columns that are left. A column with an Ensembl id that agrees with
    its other symbol is found by the id; with one that doesn't, the symbol is not believed.
    """
    index = vocabulary.find_symbols(names)
    way = np.where(index >= 0, 0, len(WAYS))
    left = np.flatnonzero(index < 0)
    ids = ensembl_ids(names[i] for i in left)
    if listed_ids:
        ids = [own or listed for own, listed in zip(ids, ensembl_ids(listed_ids[i] for i in left), strict=True)]
    index[left] = vocabulary.find_ensembl_ids(ids)
    way[left[index[left] >= 0]] = 1
    left = left[[not gene_id for gene_id in ids]]
    index[left] = vocabulary.find_other_symbols([names[i] for i in left])
    way[left[index[left] >= 0]] = 2

    known = index >= 0
    best = np.full(len(vocabulary), len(WAYS))
    np.minimum.at(best, index[known], way[known])
    outranked = known & (way > best[index])
    index[outranked], way[outranked] = -1, len(WAYS)
    return index, way, outranked


def _log_matches(report: dict[str, Any], doubled: list[str]) -> None:
    logger.info(
        "Matched %d of %d genes (%.1f %%): %d columns by symbol, %d by Ensembl id, %d by another symbol.",
        *(report["n_matched"], report["n_vocabulary"], 100 * report["coverage"]),
        *(report[way] for way in WAYS),
    )
    if doubled:
        logger.info("Several columns are one gene and are added up: %s.", shorten(doubled))
    if len(report["ignored"]) > WARN_IGNORED:
        logger.warning(
            "%d columns are not read, as the slide has their genes by a better name: %s. If slides whose genes are "
            "named differently were joined, their counts are lost: name the genes alike first, or embed each slide by "
            "itself.",
            *(len(report["ignored"]), shorten(report["ignored"])),
        )
    if report["coverage"] < WARN_COVERAGE:
        logger.warning(
            "The slide has only %.1f %% of the model's genes; the others count as zero, which the model has "
            "hardly seen in training. Trust results the less.",
            100 * report["coverage"],
        )


def _names(adata: AnnData, gene_symbols: str | None) -> list[str]:
    """Name of each column."""
    if gene_symbols is None:
        return adata.var_names.map(str).tolist()
    check_key("gene_symbols", gene_symbols)
    if gene_symbols not in adata.var:
        raise KeyError(f"gene_symbols={gene_symbols!r} not in adata.var.")
    return adata.var[gene_symbols].map(str).tolist()


def _listed_ids(adata: AnnData) -> list[str]:
    """Gene id of each column, empty where ``var`` has none."""
    key = next((key for key in _keys.ENSEMBL_COLUMNS if key in adata.var), None)
    return [] if key is None else adata.var[key].map(str).tolist()


def _fingerprint(names: list[str], ids: list[str], index: Array) -> str:
    """Digest of what an alignment was made from, and of itself."""
    numbers = index.astype(np.int64).tobytes() if index.dtype.kind in "iu" else b""
    return hashlib.sha256("\n".join([*names, "", *ids, ""]).encode() + numbers).hexdigest()


def _translated(names: list[str], orthologs: Mapping[str, str] | pd.DataFrame, vocabulary: Vocabulary) -> list[str]:
    """Human gene of each name, by its symbol where it is known; empty where there is none or more than one."""
    import pandas as pd

    if isinstance(orthologs, Mapping):
        pairs = pd.DataFrame({"gene": list(orthologs.keys()), "human": list(orthologs.values())}, dtype=object)
    elif isinstance(orthologs, pd.DataFrame) and orthologs.shape[1] >= 2:
        pairs = orthologs.iloc[:, :2].set_axis(["gene", "human"], axis=1).astype(object)
    else:
        raise TypeError("orthologs has to be a mapping, or a table whose first two columns are gene and human gene.")
    pairs = pairs.dropna()
    if odd := [value for value in pairs.to_numpy().ravel() if not isinstance(value, str)]:
        raise TypeError(f"orthologs has to hold names, got {odd[0]!r}.")
    pairs = pairs.apply(lambda column: column.str.strip())
    pairs = pairs[(pairs["gene"] != "") & (pairs["human"] != "")]
    # One gene under two names is one gene.
    index = vocabulary.find(pairs["human"].tolist())
    known = [vocabulary.symbols[gene] if gene >= 0 else name for gene, name in zip(index, pairs["human"], strict=True)]
    pairs = pairs.assign(human=known).drop_duplicates()
    several = set(pairs.loc[pairs["gene"].duplicated(keep=False), "gene"])
    human_of = dict(zip(pairs["gene"], pairs["human"], strict=True))
    found = ["" if name in several else human_of.get(name, "") for name in names]
    n_found, n_several = sum(map(bool, found)), sum(name in several for name in names)
    if not n_found:
        raise ValueError(
            f"orthologs names none of the slide's genes: it has {shorten(pairs['gene']) or 'none'}, the slide "
            f"{shorten(names)}. "
            "If the slide's names lie in a column of var, pass gene_symbols=... too."
        )
    logger.info(
        "Translated %d of %d columns by orthologs; %d have several and are left out.", n_found, len(names), n_several
    )
    return found


def hint_at_names(adata: AnnData, gene_symbols: str | None = None) -> str:
    """What may be wrong with the names of a slide that has few of the model's genes."""
    names = _names(adata, gene_symbols if gene_symbols in adata.var else None)
    if gene_symbols != _keys.ORTHOLOG and (
        sum(name.startswith("ENSMUSG") for name in names) > len(names) / 2
        or sum(name[1:].islower() for name in names if name[:1].isupper() and len(name) > 2) > len(names) / 2
    ):
        return (
            "The names look like mouse genes; the model knows human ones. Pass a table of orthologs as "
            "sg.pp.align_genes(adata, orthologs=...). "
        )
    found = (hest1k().find(names) >= 0).sum()
    if gene_symbols is None:
        texts = [key for key in adata.var if adata.var[key].dtype.kind not in "biufcM"]
        better = {key: int((hest1k().find(_names(adata, key)) >= 0).sum()) for key in texts}
        if better and max(better.values()) > found:
            best = max(better, key=lambda key: better[key])
            return f"var[{best!r}] names {better[best]} known genes: sg.pp.align_genes(adata, gene_symbols={best!r}). "
    if adata.raw is not None and adata.raw.n_vars > adata.n_vars:
        return (
            f"adata.raw has {adata.raw.n_vars} genes, adata {adata.n_vars}: if raw holds the counts, start from "
            "adata.raw.to_adata(). "
        )
    if gene_symbols is None and not found:
        return "If the symbols are in a column of var, pass it as sg.pp.align_genes(adata, gene_symbols=...). "
    if "highly_variable" in adata.var:
        return "If the slide was reduced to its variable genes, start from all of them. "
    return ""
