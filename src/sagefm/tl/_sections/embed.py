"""Embedding of many sections, each in a file of its own."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._io.files import remove
from sagefm._settings import logger, settings
from sagefm._slides import find_sections, is_visium
from sagefm._types import Precision
from sagefm._utils import check_whole, progress, shorten
from sagefm.pp._genes import MIN_COVERAGE, align_genes
from sagefm.pp._graph import neighborhood_graph
from sagefm.read import visium
from sagefm.tl._embed import sage_embed
from sagefm.tl._sections.folder import FAILED, TABLE, Folder, Result, stamp
from sagefm.tl._sections.workers import open_workers

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from distributed import Client
    from spatialdata import SpatialData

    from sagefm.models import Model


@fill_docstring
def embed_sections(
    sections: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path,
    model: str | Path = "sage-fm-hest1k",
    *,
    n_jobs: int = 1,
    client: Client | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    gene_symbols: str | None = None,
    min_coverage: float | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    dtype: Precision = "float32",
    table_key: str = "table",
    overwrite: bool = False,
) -> pd.DataFrame:
    """Embed every spot of many sections, read from disk and written to disk.

    Each section is what :func:`sagefm.pp.neighborhood_graph` and :func:`sage_embed` with ``store`` make of it. One that
    fails is reported, and the others go on. A run that was interrupted goes on from there when it is called again:
    sections that are done, from a file that hasn't changed since, are kept.

    Parameters
    ----------
    sections
        Folder with sections, ``.h5ad`` or ``.zarr``; or their files; or files by name. Counts are read block by block.
    out
        Folder to write, made where it isn't there: ``NAME.zarr`` for each section, an ``AnnData`` with its ``obs``,
        ``var``, coordinates, graph and embedding, without counts.
    model
        Name or path of a model. See :func:`sagefm.models.load`.
    n_jobs
        Sections at a time, each in a process of its own: a local dask cluster.
    client
        Client of a running dask cluster to do the work, instead of ``n_jobs``. Its workers need the package and the
        same files under the same names. Tasks of workers that die are done again by others.
    layer, library_key, gene_symbols, min_coverage
        As in :func:`sage_embed`, :func:`sagefm.pp.neighborhood_graph` and :func:`sagefm.pp.align_genes`, of every
        section.
    device, batch_size, dtype
        As in :func:`sage_embed`.
    {table_key}
    overwrite
        Delete the results of a run with other settings and start again.

    Returns
    -------
    One row a section, by name: ``status`` (``"embedded"``, ``"kept"`` from an earlier call, ``"failed"``),
    ``n_spots``, ``seconds``, ``error`` (empty where there is none) and ``path`` of the result. Also written to
    ``out/sections.csv``, with sections of earlier calls.

    Raises
    ------
    FileNotFoundError
        If a section or the folder isn't there.
    FileExistsError
        If ``out`` holds something else, results with other settings, or a run that is going on.
    ValueError
        If two sections have one name, one lies in ``out``, or an argument is wrong.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import sagefm as sg
    >>> folder = Path(tempfile.mkdtemp())
    >>> for seed in range(2):
    ...     sg.datasets.simulated_visium(8, 8, n_genes=8000, rng=seed).write_h5ad(folder / f"section_{{seed}}.h5ad")
    >>> sg.tl.embed_sections(folder, folder / "embedded", "sagefm-mini")["status"].tolist()
    ['embedded', 'embedded']
    """
    from sagefm import models

    if not isinstance(model, str | Path):
        raise TypeError(f"model has to be a name or a path, for other processes to load, got {type(model).__name__}.")
    files = find_sections(sections)
    n_jobs = check_whole("n_jobs", n_jobs, 1)
    if client is not None and n_jobs > 1:
        raise ValueError("n_jobs starts a cluster of its own; leave it out where there is a client.")
    named = str(model) in models.available().index
    path = str(model) if named else str(Path(model).expanduser().absolute())
    loaded = models.load(path)
    task = Task(path, layer, library_key, gene_symbols, min_coverage, dtype, table_key, device, batch_size)
    made_with = {name: value for name, value in asdict(task).items() if name not in ("model", "device", "batch_size")}
    stamps = {name: stamp(file) for name, file in files.items()}  # before anything is read
    with Folder(
        Path(out).expanduser().absolute(), files, {"weights": _digest(loaded), **made_with}, overwrite
    ) as folder:
        todo = [name for name in files if not folder.has(name, stamps[name])]
        if len(files) > len(todo):
            logger.info("%d of %d sections are done and kept.", len(files) - len(todo), len(files))
        n_jobs = min(n_jobs, max(1, len(todo)))
        n_threads = max(1, (os.cpu_count() or 1) // n_jobs) if n_jobs > 1 else None
        with open_workers(client, n_jobs) as submit:
            jobs = [
                (files[name], folder.path / f"{name}.zarr", task, n_threads, settings.memory_limit) for name in todo
            ]
            done = submit(_embed_section, jobs)
            for number, result in progress(done, "Sections", total=len(todo), unit="section"):
                folder.add(todo[number], stamps[todo[number]], result)
        table = folder.table(list(files), todo)
    failed = table.index[table["status"] == FAILED]
    if len(failed):
        logger.warning("%d of %d sections failed: %s. See %s.", len(failed), len(files), shorten(failed), TABLE)
    logger.info("Embedded %d sections with %s; wrote %s.", len(todo) - len(failed), loaded.name, folder.path)
    return table


@dataclass(frozen=True)
class Task:
    """What is done to every section."""

    model: str
    layer: str | None
    library_key: str | None
    gene_symbols: str | None
    min_coverage: float | None
    dtype: Precision
    table_key: str
    device: str
    batch_size: int | None


def _embed_section(source: Path, target: Path, task: Task, n_threads: int | None, memory_limit: float) -> Result:
    """Embed one section, in whatever process; an error is a result."""
    import dask
    import torch

    start = time.perf_counter()
    if n_threads is not None:  # a process of our own cluster
        torch.set_num_threads(n_threads)
        settings.verbosity, settings.progress_bars, settings.memory_limit = "WARNING", False, memory_limit
    remove(target)  # ours, of a file that has changed: no result of a section that fails
    try:
        # Within a task of a cluster, blocks that are read are no tasks of it.
        with dask.config.set(scheduler="threads"), _open(source, task.layer) as data:
            n_spots = _embed(data, target, task)
    except Exception as error:  # noqa: BLE001 whatever is wrong with a section, the others go on
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        return Result(0, time.perf_counter() - start, f"{type(error).__name__}: {message}")
    return Result(n_spots, time.perf_counter() - start)


def _embed(data: AnnData | SpatialData, target: Path, task: Task) -> int:
    """Align, connect and embed a section; return its number of spots."""
    adata = get_anndata(data, task.table_key)
    if task.min_coverage is not None or task.gene_symbols is not None:
        least = MIN_COVERAGE if task.min_coverage is None else task.min_coverage
        align_genes(adata, task.model, gene_symbols=task.gene_symbols, min_coverage=least)
    if task.library_key is not None or _keys.connectivities(_keys.GRAPH) not in adata.obsp:
        neighborhood_graph(data, library_key=task.library_key, table_key=task.table_key)
    sage_embed(
        adata,
        task.model,
        layer=task.layer,
        device=task.device,
        batch_size=task.batch_size,
        dtype=task.dtype,
        store=target,
    )
    return adata.n_obs


@contextmanager
def _open(source: Path, layer: str | None) -> Iterator[AnnData | SpatialData]:
    """Open a section with its counts left on disk."""
    import anndata
    from anndata.experimental import read_lazy

    if is_visium(source):
        yield visium(source)
    elif (source / "tables").is_dir():
        import spatialdata

        yield spatialdata.read_zarr(source)
    elif source.suffix == ".h5ad" and layer is None:
        adata = anndata.read_h5ad(source, backed="r")  # which leaves X on disk, and no layers
        try:
            yield adata
        finally:
            adata.file.close()
    else:
        yield read_lazy(source)


def _digest(model: Model) -> str:
    """Digest of a model's weights."""
    digest = hashlib.sha256(model.vocabulary.sha256.encode())
    for name, tensor in sorted(model.weights.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
