"""Training corpus: sections in a model's genes, with their graphs and their split, in one zarr store.

    CORPUS.zarr/
        sections            table: one row a section
        section/NAME        AnnData: X counts (CSR), obsp the graph, var["measured"], var["mean_log1p"]; where
                            there are enough spots also obsp["similar_0"], ...: what spots are alike by the genes
                            outside of each fold

A spot is stored once; its neighborhood is rows of the same section.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm._types import Floats32
from sagefm._utils import shorten
from sagefm.models._vocabulary import Vocabulary, from_header
from sagefm.train._split import SPLITS, TRAIN, assign

if TYPE_CHECKING:
    from anndata import AnnData

FORMAT = 2
ATTRIBUTE = "sagefm_corpus"


@dataclass(frozen=True)
class Corpus:
    """Sections to train on, as :func:`prepare_corpus` wrote them.

    Attributes
    ----------
    path
        The zarr store.
    sections
        One row a section: ``n_spots``, ``n_values`` (stored counts), ``coverage`` of the vocabulary, ``group``
        (what was kept together in the split), ``split``, ``digest`` of the counts, whether ``similar`` spots were
        looked for, and the donor, sample, tissue and platform where they are known.
    vocabulary
        Genes of the columns.

    Examples
    --------
    >>> import tempfile
    >>> import sagefm as sg
    >>> slide = sg.datasets.simulated_visium(8, 8, n_genes=5_000)
    >>> slide.obs["donor"] = "donor 0"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = sg.train.prepare_corpus({"slide": slide}, f"{folder}/corpus.zarr", split={"donor 0": "train"})
    ...     corpus = sg.train.Corpus.open(f"{folder}/corpus.zarr")
    ...     counts = corpus.read("slide")
    >>> counts.shape
    (64, 14558)
    """

    path: Path
    sections: pd.DataFrame
    vocabulary: Vocabulary

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Open a corpus; nothing but its table is read.

        Raises
        ------
        FileNotFoundError
            If there is nothing at ``path``.
        ValueError
            If it is no complete corpus.
        """
        import zarr
        from anndata.io import read_elem

        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no corpus at {path}. Make one with sg.train.prepare_corpus.")
        try:
            store = zarr.open_group(path, mode="r")
            about: Any = store.attrs[ATTRIBUTE]
        except (KeyError, OSError) as error:
            raise ValueError(f"{path} is no corpus of sagefm. Make one with sg.train.prepare_corpus.") from error
        if about.get("format") != FORMAT:
            raise ValueError(f"{path} is a corpus of format {about.get('format')!r}; this sagefm reads {FORMAT}.")
        sections = read_elem(store["sections"])
        return cls(path, sections, from_header(about["vocabulary"]))

    def __repr__(self) -> str:
        counts = self.sections.groupby("split", observed=True)["n_spots"].agg(["size", "sum"])
        splits = ", ".join(f"{name}: {row['size']} sections, {row['sum']:,} spots" for name, row in counts.iterrows())
        return f"Corpus({str(self.path)!r}, {splits}, {len(self.vocabulary):,} genes)"

    def names(self, split: str | None = None) -> list[str]:
        """Names of the sections of a split, of all by default."""
        if split is not None and split not in SPLITS:
            raise ValueError(f"split={split!r} is none of {SPLITS}.")
        chosen = self.sections if split is None else self.sections[self.sections["split"] == split]
        return [str(name) for name in chosen.index]

    def read(self, name: str) -> AnnData:
        """One section in memory, in the vocabulary's order, with its graph."""
        import zarr
        from anndata.io import read_elem

        if name not in self.sections.index:
            raise KeyError(f"no section {name!r} in {self.path}; it has {shorten(self.sections.index)}.")
        return read_elem(zarr.open_group(self.path, mode="r")[f"section/{name}"])

    def iter_sections(self, split: str | None = None) -> Iterator[AnnData]:
        """Sections of a split, one in memory at a time; :func:`sagefm.benchmark.evaluate_imputation` takes it."""
        for name in self.names(split):
            yield self.read(name)

    def gene_mean(self, split: str | None = TRAIN) -> Floats32:
        """Mean log1p counts of each gene over the spots of a split; genes that a section lacks count as zeros."""
        import zarr

        store = zarr.open_group(self.path, mode="r")
        total, n = np.zeros(len(self.vocabulary)), 0
        for name in self.names(split):
            n_spots = int(self.sections.loc[name, "n_spots"])
            values: Any = store[f"section/{name}/var/mean_log1p"]
            total += np.asarray(values[:], dtype=float) * n_spots
            n += n_spots
        return (total / max(n, 1)).astype(np.float32)

    def with_split(self, split: str | Mapping[str, str] | pd.DataFrame | Path, *, by: str = "group") -> Corpus:
        """Return the same sections split otherwise, by the rules of :func:`prepare_corpus`; the store stays as it is.

        Parameters
        ----------
        split
            As in :func:`prepare_corpus`.
        by
            Column of ``sections`` whose values are kept together and named in ``split``.
        """
        if by not in self.sections:
            raise KeyError(f"by={by!r} is no column of the table of sections; it has {list(self.sections)}.")
        return replace(self, sections=assign(self.sections.drop(columns="split"), split, by))
