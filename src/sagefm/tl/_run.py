"""One call of a tool on a slide: everything checked and opened before it computes, everything written at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sagefm import _keys, models
from sagefm._anndata import Run, Slot, open_run
from sagefm._io.sink import Sink, open_sink
from sagefm._settings import ROWS_AT_A_TIME, logger
from sagefm._slides import find_libraries
from sagefm._types import Ints
from sagefm._utils import shorten
from sagefm.pp._counts import Counts
from sagefm.pp._genes import Alignment, get_alignment
from sagefm.pp._graph import get_graph
from sagefm.tl._compute import get_compute
from sagefm.tl._engine import Engine

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

    from sagefm.models import Model

Missing = Literal["error", "skip"]


@dataclass(frozen=True)
class SlideRun(Run):
    """A :class:`~sagefm._anndata.Run` with a model on the slide.

    Attributes
    ----------
    model
        The model.
    alignment
        Which gene of the model each column is.
    engine
        Model, counts, graph and device, ready to project.
    sink
        Where large results go.
    reads
        What the call reads, to be recorded: model, graph, layer and precision.
    is_aligned
        Whether ``adata`` holds the alignment already.
    """

    model: Model
    alignment: Alignment
    engine: Engine
    sink: Sink
    reads: Mapping[str, Any]
    is_aligned: bool

    @property
    def lacking(self) -> float:
        """Share of the model's genes that the slide lacks."""
        return 1 - len(self.alignment.measured) / len(self.model.vocabulary)

    @contextmanager
    def writing(self) -> Iterator[Sink]:
        """Open the sink; what was begun is removed if the body fails."""
        with self.sink:
            self.sink.begin(self.adata, self.reads["connectivity_key"])
            yield self.sink

    def commit(self, written: Mapping[Slot, Any], params: Mapping[str, Any], **recorded: Any) -> AnnData | None:
        """Write results, parameters, and the alignment of genes where it is new; see :meth:`Run.commit`.

        Where results go to disk this has to happen within :meth:`writing`.
        """
        params = {**self.reads, **params}
        aligned: dict[Slot, Any] = {
            ("var", _keys.GENE_INDEX): self.alignment.index,
            ("uns", _keys.GENES): self.alignment.report,
        }
        uns = {("uns", self.key): {"params": self.describe(params), **recorded}}
        stored = self.sink.complete({**written, **aligned, **uns}, stale=self.slots)
        results = {slot: stored[slot] for slot in written}
        return super().commit(results if self.is_aligned else {**aligned, **results}, params, **recorded)

    def find_genes(self, argument: str, names: Iterable[str], missing: Missing = "error") -> Ints:
        """Vocabulary index of each gene; with ``missing="skip"`` without those that the model doesn't know.

        Raises
        ------
        KeyError
            If the model doesn't know a gene, or, with ``missing="skip"``, any; it says which symbols may be meant.
        """
        vocabulary, listed = self.model.vocabulary, check_names(argument, names)
        found = self.alignment.find(self.adata, vocabulary, listed)
        unknown = [name for name, gene in zip(listed, found, strict=True) if gene < 0]
        if not unknown:
            return found
        text = f"{self.model.name} doesn't know {shorten(unknown)}; it has {len(vocabulary):,} genes."
        if meant := vocabulary.suggest(unknown[:5]):
            text += f" Did you mean {shorten(meant)}?"
        if missing == "error" or len(unknown) == len(listed):
            raise KeyError(text)
        logger.warning("%s Skipped.", text)
        return found[found >= 0]


def open_slide(
    data: AnnData | SpatialData,
    model: str | Path | Model,
    function: str,
    key_added: str,
    default: str,
    slots: Iterable[str] = (),
    more: Iterable[Slot] = (),
    *,
    layer: str | None,
    connectivity_key: str,
    library_key: str | None = None,
    similar: bool | None = None,
    device: str,
    batch_size: int | None,
    default_batch_size: int = ROWS_AT_A_TIME,
    dtype: str | None = None,
    store: str | Path | None = None,
    table_key: str,
    copy: bool,
) -> SlideRun:
    """Check everything that a tool reads, and open the model on the slide.

    Parameters are those of :func:`sagefm._anndata.open_run` and of the tools; ``dtype`` is recorded where the tool
    lets the user choose it, ``similar`` is None where a tool doesn't read similar spots.
    """
    sink = open_sink(store)
    run = open_run(data, function, key_added, default, slots, more, table_key=table_key, copy=copy)
    if layer is not None and ("layers", layer) in run.slots:
        raise ValueError(f"key_added={key_added!r} is the layer that the counts are read from.")
    compute = get_compute(device, batch_size, dtype or "float32", default_batch_size)
    graph = get_graph(run.adata, connectivity_key)
    loaded = models.load(model)
    _warn_of_degrees(graph, loaded, connectivity_key)
    alignment, is_new = get_alignment(run.adata, loaded.vocabulary)
    counts = Counts(run.adata, alignment.index, layer)
    network = loaded.canonical().to(compute.device, compute.dtype)
    slides = []
    if similar is not None:
        slides = [rows for _, rows in find_libraries(run.adata, library_key, connectivity_key).rows()]
    return SlideRun(
        **vars(run),
        model=loaded,
        alignment=alignment,
        engine=Engine(network, counts, graph, compute, slides, spatial=similar is False),
        sink=sink,
        reads={"model": loaded.name, "connectivity_key": connectivity_key, "layer": layer, "dtype": dtype},
        is_aligned=not is_new,
    )


def check_names(argument: str, names: str | Iterable[str]) -> list[str]:
    """One name or several, as a list."""
    if not isinstance(names, Iterable):
        raise TypeError(f"{argument} has to be a name or a list of names, got {names!r}.")
    listed = [names] if isinstance(names, str) else list(names)
    if bad := [name for name in listed if not isinstance(name, str)]:
        raise TypeError(f"{argument} has to hold names, got {bad[0]!r}.")
    if not listed:
        raise ValueError(f"{argument} is empty.")
    return listed


def _warn_of_degrees(graph: sparse.csr_matrix, model: Model, connectivity_key: str) -> None:
    degree = np.diff(graph.indptr)
    if len(degree) and (degree != model.n_spots - 1).any():
        logger.warning(
            "The graph %r has %d to %d neighbors a spot; %s was trained with %d. If spots were removed since, run "
            "sg.pp.neighborhood_graph again.",
            connectivity_key,
            degree.min(),
            degree.max(),
            model.name,
            model.n_spots - 1,
        )
