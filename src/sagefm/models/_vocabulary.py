"""Gene vocabularies: which gene each input column of a model is, and what else it is called."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files

import numpy as np

from sagefm._types import Ints

HEST1K = "hest1k"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Genes of a model in column order.

    Parameters
    ----------
    name
        Name of the vocabulary.
    symbols
        Current symbol of each gene, each once.
    ensembl_ids
        Ensembl id of each gene, without version. May be empty; slides are then matched by symbols alone.
    other_symbols
        Former and alias symbols of each gene that can mean no other. May be empty.

    Examples
    --------
    >>> import sagefm as sg
    >>> vocabulary = sg.models.load("sagefm-mini").vocabulary
    >>> len(vocabulary)
    14558
    >>> vocabulary.find_symbols(["COL1A1", "no gene"]).tolist()
    [1486, -1]
    """

    name: str
    symbols: tuple[str, ...] = field(repr=False)
    ensembl_ids: tuple[str, ...] = field(default=(), repr=False)
    other_symbols: tuple[tuple[str, ...], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if len(set(self.symbols)) != len(self.symbols):
            raise ValueError(f"vocabulary {self.name!r} names a gene twice.")

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def sha256(self) -> str:
        """Digest of the symbols in order: two models with the same digest read the same columns."""
        return hashlib.sha256("\n".join(self.symbols).encode()).hexdigest()

    @cached_property
    def _by_symbol(self) -> dict[str, int]:
        return {symbol: gene for gene, symbol in enumerate(self.symbols)}

    @cached_property
    def _by_ensembl_id(self) -> dict[str, int]:
        return {gene_id: gene for gene, gene_id in enumerate(self.ensembl_ids) if gene_id}

    @cached_property
    def _by_other_symbol(self) -> dict[str, int]:
        # Digits alone are row numbers or ids of another database, not symbols.
        return {name: gene for gene, names in enumerate(self.other_symbols) for name in names if not name.isdigit()}

    def find_symbols(self, names: Iterable[str]) -> Ints:
        """Index of the gene with each current symbol, -1 for what is none."""
        return _look_up(self._by_symbol, names)

    def find_ensembl_ids(self, ids: Iterable[str]) -> Ints:
        """Index of the gene with each Ensembl id (without version), -1 for what is none."""
        return _look_up(self._by_ensembl_id, ids)

    def find_other_symbols(self, names: Iterable[str]) -> Ints:
        """Index of the gene that each former or alias symbol stands for, -1 for what is none."""
        return _look_up(self._by_other_symbol, names)

    def __contains__(self, name: object) -> bool:
        """Whether a gene is known by its symbol, its Ensembl id or another symbol."""
        return isinstance(name, str) and bool(self.find([name])[0] >= 0)

    def suggest(self, names: Iterable[str]) -> list[str]:
        """Symbols that may be meant by names that are none: the same in capitals, or with few letters changed."""
        from difflib import get_close_matches

        found: list[str] = []
        for name in map(str.upper, names):
            found += [name] if name in self._by_symbol else get_close_matches(name, self.symbols, n=2, cutoff=0.75)
        return found

    def find(self, names: Sequence[str]) -> Ints:
        """Index of each gene by symbol, else Ensembl id, else other symbol; -1 for what is none of these."""
        index = self.find_symbols(names)
        for more in (self.find_ensembl_ids(ensembl_ids(names)), self.find_other_symbols(names)):
            index = np.where(index < 0, more, index)
        return index


def _look_up(genes: dict[str, int], names: Iterable[str]) -> Ints:
    find = genes.get
    return np.array([find(name, -1) for name in names], dtype=np.int64)


def ensembl_ids(values: Iterable[object]) -> list[str]:
    """Human Ensembl gene ids without version; empty for what is none."""
    texts = [str(value) for value in values]
    return [text.partition(".")[0] if text.startswith("ENSG") else "" for text in texts]


@cache
def hest1k() -> Vocabulary:
    """Return the 14,558 genes of the published model, with Ensembl ids and other symbols."""
    resource = files("sagefm.models") / "vocabulary" / "hest1k_genes.tsv.gz"
    lines = gzip.decompress(resource.read_bytes()).decode().splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    return Vocabulary(
        name=HEST1K,
        symbols=tuple(row[0] for row in rows),
        ensembl_ids=tuple(row[1] for row in rows),
        other_symbols=tuple(tuple(filter(None, row[2].split("|"))) if len(row) > 2 else () for row in rows),
    )


def from_header(header: dict[str, object]) -> Vocabulary:
    """Vocabulary that a weights file names, its digest checked.

    Raises
    ------
    ValueError
        If it names no genes, or the digest in the header is not the digest of the genes.
    """
    name, symbols = header.get("name"), header.get("symbols")
    if not isinstance(name, str):
        raise ValueError(f"the weights have a vocabulary whose name is {name!r}.")
    if "symbols" in header:
        # A line break in a symbol would give other genes the same digest.
        if not isinstance(symbols, list) or not all(isinstance(gene, str) and gene.isprintable() for gene in symbols):
            raise ValueError(f"the vocabulary {name!r} of the weights isn't a list of gene symbols.")
        if not symbols:
            raise ValueError(f"the vocabulary {name!r} of the weights has no genes.")
        vocabulary = Vocabulary(name=name, symbols=tuple(symbols))
    elif name == HEST1K:
        vocabulary = hest1k()
    else:
        raise ValueError(f"the weights use the vocabulary {name!r}, which this version of sagefm doesn't have.")
    if header.get("sha256") != vocabulary.sha256:
        raise ValueError(
            f"the weights were made for another version of the vocabulary {name!r}: the digests of the genes differ."
        )
    return vocabulary


def to_header(vocabulary: Vocabulary) -> dict[str, object]:
    """What a weights file stores of its vocabulary; genes are listed unless the package ships them."""
    header: dict[str, object] = {"name": vocabulary.name, "sha256": vocabulary.sha256}
    if (vocabulary.name, vocabulary.sha256) != (HEST1K, hest1k().sha256):
        header["symbols"] = list(vocabulary.symbols)
    return header
