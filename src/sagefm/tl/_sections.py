"""Embedding of many sections, each in a file of its own."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._io.files import atomic, delete, remove
from sagefm._settings import logger, settings
from sagefm._slides import SUFFIXES, find_sections
from sagefm._utils import check_whole, progress, shorten

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from distributed import Client
    from spatialdata import SpatialData

    from sagefm.models import Model

RECORD, TABLE, LOCK = "sections.json", "sections.csv", ".lock"
EMBEDDED, KEPT, FAILED = "embedded", "kept", "failed"


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
    dtype: Literal["float32", "tf32", "bfloat16"] = "float32",
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
        Name or path, see :func:`sagefm.models.load`.
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
    table_key
        Table of sections that are ``SpatialData`` objects.
    overwrite
        Start again over a run with other settings, whose results are deleted.

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
    ...     sg.datasets.simulated_visium(8, 8, n_genes=8000, rng=seed).write_h5ad(folder / f"section_{seed}.h5ad")
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
    made_with: dict[str, Any] = {
        "weights": _digest(loaded),
        "layer": layer,
        "library_key": library_key,
        "gene_symbols": gene_symbols,
    }
    made_with |= {"min_coverage": min_coverage, "dtype": dtype, "table_key": table_key}
    stamps = {name: _stamp(file) for name, file in files.items()}  # before anything is read
    with _Folder(Path(out).expanduser().absolute(), files, made_with, overwrite) as folder:
        todo = [name for name in files if not folder.has(name, stamps[name])]
        if len(files) > len(todo):
            logger.info("%d of %d sections are done and kept.", len(files) - len(todo), len(files))
        n_jobs = min(n_jobs, max(1, len(todo)))
        n_threads = max(1, (os.cpu_count() or 1) // n_jobs) if n_jobs > 1 else None
        options = Options(
            *(path, layer, library_key, gene_symbols, min_coverage, device, batch_size, dtype, table_key),
            n_threads=n_threads,
            memory_limit=settings.memory_limit,
        )
        with _executor(client, n_jobs) as submit:
            jobs = submit(_embed_section, [(files[name], folder.path / f"{name}.zarr", options) for name in todo])
            for number, result in progress(jobs, "Sections", total=len(todo), unit="section"):
                folder.add(todo[number], stamps[todo[number]], result)
        table = folder.table(list(files), todo)
    failed = table.index[table["status"] == FAILED]
    if len(failed):
        logger.warning("%d of %d sections failed: %s. See %s.", len(failed), len(files), shorten(failed), TABLE)
    logger.info("Embedded %d sections with %s; wrote %s.", len(todo) - len(failed), loaded.name, folder.path)
    return table


@dataclass(frozen=True)
class Options:
    """What is done to every section."""

    model: str
    layer: str | None
    library_key: str | None
    gene_symbols: str | None
    min_coverage: float | None
    device: str
    batch_size: int | None
    dtype: Literal["float32", "tf32", "bfloat16"]
    table_key: str
    n_threads: int | None
    memory_limit: float


@dataclass(frozen=True)
class Result:
    """What came of a section."""

    n_spots: int
    seconds: float
    error: str = ""


def _embed_section(source: Path, target: Path, options: Options) -> Result:
    """Embed one section, in whatever process; an error is a result."""
    import dask
    import torch

    from sagefm.pp._genes import align_genes
    from sagefm.pp._graph import neighborhood_graph
    from sagefm.tl._embed import sage_embed

    start = time.perf_counter()
    if options.n_threads is not None:  # a process of our own cluster
        torch.set_num_threads(options.n_threads)
        settings.verbosity, settings.progress_bars = "WARNING", False
        settings.memory_limit = options.memory_limit
    remove(target)  # ours, of a file that has changed: no result of a section that fails
    try:
        # Within a task of a cluster, blocks that are read are no tasks of it.
        with dask.config.set(scheduler="threads"), _open(source, options) as data:
            adata = get_anndata(data, options.table_key)
            if options.min_coverage is not None:
                align_genes(adata, options.model, gene_symbols=options.gene_symbols, min_coverage=options.min_coverage)
            elif options.gene_symbols is not None:
                align_genes(adata, options.model, gene_symbols=options.gene_symbols)
            if options.library_key is not None or _keys.connectivities(_keys.GRAPH) not in adata.obsp:
                neighborhood_graph(data, library_key=options.library_key, table_key=options.table_key)
            sage_embed(
                adata,
                options.model,
                layer=options.layer,
                device=options.device,
                batch_size=options.batch_size,
                dtype=options.dtype,
                store=target,
            )
            n_spots = adata.n_obs
    except Exception as error:  # noqa: BLE001 whatever is wrong with a section, the others go on
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        return Result(0, time.perf_counter() - start, f"{type(error).__name__}: {message}")
    return Result(n_spots, time.perf_counter() - start)


@contextmanager
def _open(source: Path, options: Options) -> Iterator[AnnData | SpatialData]:
    """Open a section with its counts left on disk."""
    import anndata
    from anndata.experimental import read_lazy

    if (source / "tables").is_dir():
        import spatialdata

        yield spatialdata.read_zarr(source)
    elif source.suffix == ".h5ad" and options.layer is None:
        adata = anndata.read_h5ad(source, backed="r")  # which leaves X on disk, and no layers
        try:
            yield adata
        finally:
            adata.file.close()
    else:
        yield read_lazy(source)


@contextmanager
def _executor(client: Client | None, n_jobs: int) -> Iterator[Any]:
    """Return a function that runs jobs and yields the number and result of each as it is done."""

    def inline(function: Any, jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Result]]:
        for number, job in enumerate(jobs):
            yield number, function(*job)

    def on(cluster: Client) -> Any:
        def run(function: Any, jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Result]]:
            executor = cluster.get_executor(pure=False)
            futures: dict[Future[Result], int] = {executor.submit(function, *job): i for i, job in enumerate(jobs)}
            try:
                for future in as_completed(futures):
                    error = future.exception()  # of the cluster; ours are results
                    failed = Result(0, float("nan"), f"{type(error).__name__}: {error}")
                    yield futures[future], future.result() if error is None else failed
            finally:
                for future in futures:  # which a cluster of the user's would go on with, should we be interrupted
                    future.cancel()

        return run

    if client is not None:
        yield on(client)
    elif n_jobs == 1:
        yield inline
    else:
        from distributed import Client as LocalClient
        from distributed import LocalCluster

        with (
            LocalCluster(n_workers=n_jobs, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster,
            LocalClient(cluster) as own,
        ):
            yield on(own)


class _Folder:
    """Results, a record of what they were made from and with, and a lock while they are made.

    Raises
    ------
    FileExistsError
        If the folder holds something else, results with other settings, or a run that is going on.
    ValueError
        If a section lies in it, or its name is a section's.
    """

    def __init__(self, path: Path, files: Mapping[str, Path], made_with: dict[str, Any], overwrite: bool) -> None:
        self.path = path
        if path.suffix in SUFFIXES:
            raise ValueError(
                f"out={str(path)!r} is to be a folder of results; {path.suffix} is what a section ends in."
            )
        if inside := [str(file) for file in files.values() if file.resolve().is_relative_to(path.resolve())]:
            raise ValueError(f"{shorten(inside)} lies in {path}, where results go. Choose another folder.")
        record, self._lock = path / RECORD, FileLock(path / LOCK)
        self._record: dict[str, Any] = {"settings": made_with, "sections": {}}
        self._replaced: list[str] = []
        if record.exists():
            try:
                found = json.loads(record.read_text(encoding="utf-8"))
                changed, known = found["settings"] != made_with, list(found["sections"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{record} is damaged ({error}). Choose another folder, or delete {path}.") from error
            if changed and not overwrite:
                raise FileExistsError(
                    f"{path} holds embeddings by another model or with other settings. Choose another folder, or pass "
                    "overwrite=True (--overwrite) to start again."
                )
            if changed:
                self._replaced = known
            else:
                self._record = found
        # Hidden ones are what a run leaves that is killed at its very start.
        elif path.exists() and (not path.is_dir() or any(not file.name.startswith(".") for file in path.iterdir())):
            raise FileExistsError(f"{path} exists and holds no embedded sections. Choose another folder.")
        known_here = {*self._replaced, *self._record["sections"]}
        for name in files:
            target = path / f"{name}.zarr"
            if name not in known_here and target.exists() and not _is_ours(target):
                raise FileExistsError(f"{target} exists and holds no embedding. Choose another folder, or move it.")

    def __enter__(self) -> _Folder:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)  # let go of by the system, should this process be killed
        except Timeout:
            raise FileExistsError(f"a run is going on in {self.path}. Wait for it.") from None
        self._clean()
        for name in self._replaced:
            remove(self.path / f"{name}.zarr")
        self._save()
        return self

    def __exit__(self, *_: object) -> None:
        self._clean()
        self._lock.release()

    def _clean(self) -> None:
        """Remove what runs and workers that were killed had begun."""
        for left in self.path.glob(".*.part"):
            delete(left)

    def has(self, name: str, stamp: list[int]) -> bool:
        """Whether a section is done, from the file as it is now."""
        known = self._record["sections"].get(name, {})
        return not known.get("error", True) and (self.path / f"{name}.zarr").is_dir() and known["source"] == stamp

    def add(self, name: str, stamp: list[int], result: Result) -> None:
        """Record a section."""
        self._record["sections"][name] = {**asdict(result), "source": stamp}
        self._save()
        if result.error:
            logger.error("%s: %s", name, result.error)

    def table(self, names: Sequence[str], done: Sequence[str]) -> pd.DataFrame:
        """One row a section; of all sections that the folder has, also written there."""
        import pandas as pd

        rows = []
        for name, known in sorted(self._record["sections"].items()):
            status = FAILED if known["error"] else EMBEDDED if name in done else KEPT
            path = "" if known["error"] else str(self.path / f"{name}.zarr")
            row = {"section": name, "status": status, "n_spots": known["n_spots"], "seconds": known["seconds"]}
            rows.append(row | {"error": known["error"], "path": path})
        table = pd.DataFrame(rows).set_index("section")
        with atomic(self.path / TABLE) as partial:
            table.drop(columns="path").to_csv(partial)
        return table.loc[list(names)]

    def _save(self) -> None:
        with atomic(self.path / RECORD) as partial:
            partial.write_text(json.dumps(self._record, indent=1), encoding="utf-8")


def _is_ours(target: Path) -> bool:
    """Whether a folder is a result, perhaps of a run that was killed before it was recorded."""
    import zarr

    try:
        function = zarr.open_group(target, mode="r")[f"uns/{_keys.EMBEDDING}/params/function"]
    except (KeyError, OSError, ValueError):
        return False
    return str(np.asarray(function)) == "tl.sage_embed"


def _stamp(source: Path) -> list[int]:
    """Size and time of a file, or of all files of a zarr."""
    files = [source] if source.is_file() else sorted(file for file in source.rglob("*") if file.is_file())
    stats = [file.stat() for file in files]
    return [sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)]


def _digest(model: Model) -> str:
    """Digest of a model's weights."""
    digest = hashlib.sha256(model.vocabulary.sha256.encode())
    for name, tensor in sorted(model.weights.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
