"""Jobs in processes of their own, killed in the middle, for package/test_interrupted.py and tools/interrupt.py.

Processes are forked from one that has imported everything, so that a kill falls into the work.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

import anndata as ad
import distributed  # noqa: F401
import lightning  # noqa: F401
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image

import sagefm as sg
import sagefm.train._pretrain
from sagefm.cli import main
from sagefm.models._vocabulary import hest1k

DEADLINE = 180
LEFTOVER = re.compile(r"\..+\.part")


@dataclass(frozen=True)
class Job:
    """What a user calls, and calls again after an interruption; it reads ``inputs`` and writes into ``out``."""

    run: Callable[[Path, Path], object]
    made: str  # what has its name once all is done
    again: bool = False  # whether to call it again even then
    before: Callable[[Path, Path], object] | None = None  # what lies in ``out`` already


def embed(inputs: Path, out: Path) -> None:
    sg.tl.sage_embed(ad.read_h5ad(inputs / "slide.h5ad"), model(inputs), store=out / "slide.zarr", batch_size=10)


def impute(inputs: Path, out: Path) -> None:
    sg.tl.impute(ad.read_h5ad(inputs / "slide.h5ad"), model=model(inputs), store=out / "slide.zarr", batch_size=20)


def sections(inputs: Path, out: Path, **options: object) -> None:
    sg.tl.embed_sections(inputs / "sections", out / "embedded", model(inputs), batch_size=8, **options)


def two_at_a_time(inputs: Path, out: Path) -> None:
    sections(inputs, out, n_jobs=2)


def command(inputs: Path, out: Path) -> None:
    """Over what an earlier command wrote."""
    arguments = ["embed", str(inputs / "slide.h5ad"), "-o", str(out / "slide.zarr"), "--model", str(model(inputs))]
    if code := main([*arguments, "--overwrite"]):
        raise SystemExit(code)


def prepare(inputs: Path, out: Path, seed: int = 0, **options: object) -> None:
    sg.train.prepare_corpus(inputs / "sections", out / "corpus.zarr", rng=seed, **options)


def pretrain(inputs: Path, out: Path) -> None:
    recipe = replace(sg.train.PRESETS["mini"], hidden=(8, 8), max_epochs=4, batch_size=16)
    options = {"run_dir": out / "run", "accelerator": "cpu", "checkpoint_steps": 3, "half": False}
    resume = (out / "run" / "checkpoints" / "last.ckpt").exists()
    sg.train.pretrain(inputs / "corpus.zarr", recipe, out=out / "model.safetensors", resume=resume, **options)


def protocol(inputs: Path, out: Path) -> None:
    representations = [
        {"name": "log1p", "expression": "log1p", "pca": 10},
        {"name": "model", "model": str(model(inputs))},
    ]
    settings = {"sections": str(inputs / "sections"), "representations": representations, "device": "cpu"}
    settings |= {"n_repeats": 1, "n_clusters": 3}
    sg.benchmark.run_protocol(settings, out / "report")


JOBS = {
    "embed": Job(embed, "slide.zarr"),
    "impute": Job(impute, "slide.zarr"),
    "command": Job(command, "slide.zarr", again=True, before=embed),
    "sections": Job(sections, "embedded/sections.csv", again=True),
    "sections, 2 jobs": Job(two_at_a_time, "embedded/sections.csv", again=True),
    "prepare": Job(prepare, "corpus.zarr"),
    "prepare over": Job(
        lambda inputs, out: prepare(inputs, out, overwrite=True),
        "corpus.zarr",
        again=True,
        before=lambda inputs, out: prepare(inputs, out, seed=1),
    ),
    "pretrain": Job(pretrain, "model.safetensors"),
    "protocol": Job(protocol, "report/report.html", again=True),
}


def model(inputs: Path) -> Path:
    return inputs / "tiny.safetensors"


def make_inputs(inputs: Path, side: int = 18, n_sections: int = 4) -> None:
    """Slides, a model with random weights and a corpus, all small."""
    torch.manual_seed(0)
    network = sg.models.SAGE(len(hest1k()), (32, 16)).requires_grad_(False).eval()
    (inputs / "sections").mkdir(parents=True)
    sg.models.Model("tiny", network, hest1k()).save(model(inputs))
    slide = sg.datasets.simulated_visium(side, side, n_genes=8_000)
    sg.pp.neighborhood_graph(slide)
    slide.write_h5ad(inputs / "slide.h5ad")
    for number in range(n_sections):
        slide = sg.datasets.simulated_visium(8, 8, n_genes=8_000, rng=number)
        slide.obs["donor"] = slide.obs["tissue"] = f"donor {number}"
        slide.write_h5ad(inputs / "sections" / f"section {number}.h5ad")
    sg.train.prepare_corpus(inputs / "sections", inputs / "corpus.zarr", split={"donor 0": "validate"})


def contents(out: Path) -> dict[str, str]:
    """Digest of everything that has its name, all of which has to be whole; empty where it tells times of the run.

    Raises
    ------
    Exception
        Whatever its reader raises at something damaged.
    """
    found = {}
    todo = sorted(out.iterdir()) if out.exists() else []
    for path in todo:
        name = str(path.relative_to(out))
        if path.name.startswith("."):
            continue
        if path.suffix == ".zarr":
            found[name] = _digest(_of_corpus(path) if path.name == "corpus.zarr" else _of_slide(ad.read_zarr(path)))
        elif path.is_dir():
            if path.name not in ("logs", "tensorboard"):  # which are written line by line
                found |= {f"{path.name}/{below}": digest for below, digest in contents(path).items()}
        elif path.suffix == ".json":
            found[name] = _digest(sorted(json.loads(path.read_text())))
            if path.name == "protocol.json":
                found[name] = ""  # gets longer
        elif path.suffix == ".csv":
            assert path.name.startswith("done__") or path.read_text().endswith("\n"), path
            dropped = {"status", "seconds"} if path.name == "sections.csv" else set()
            table = pd.DataFrame() if path.name.startswith("done__") else pd.read_csv(path)
            found[name] = _digest(table.drop(columns=list(dropped)).to_csv())
        elif path.suffix == ".safetensors":
            loaded = sg.models.load(path)
            weights = [tensor.numpy().tobytes() for tensor in loaded.network.state_dict().values()]
            found[name] = _digest(weights, loaded.card)
        elif path.suffix == ".ckpt":
            torch.load(path, weights_only=False)
            found[name] = ""  # the last of a run that was resumed is another
        elif path.suffix == ".png":
            found[name] = _digest(np.asarray(Image.open(path)).tobytes())
        elif path.suffix == ".html":
            assert path.read_text().endswith("</html>\n"), path
            found[name] = ""
        else:
            raise AssertionError(f"unknown file {path}")
    return found


def _of_slide(adata: ad.AnnData) -> list[object]:
    arrays = [adata.obsm["X_sage"]] if "X_sage" in adata.obsm else [adata.layers["sage_imputed"]]
    assert all(np.isfinite(array).any(axis=1).all() for array in arrays), "rows that were never written"
    graph = adata.obsp["sage_connectivities"]
    arrays += [graph.indices, graph.indptr, adata.obsm["spatial"]]
    return [*(array.tobytes() for array in arrays), adata.obs.to_csv(), adata.var.to_csv(), str(adata.uns)]


def _of_corpus(path: Path) -> list[object]:
    corpus = sg.train.Corpus.open(path)
    slides = [corpus.read(name) for name in corpus.names()]
    return [corpus.sections.to_csv(), [[slide.X.data.tobytes(), slide.X.indices.tobytes()] for slide in slides]]


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


def leftovers(out: Path) -> list[Path]:
    """What is hidden and there beside results, locks apart."""
    found: list[Path] = []
    for path in out.iterdir() if out.exists() else ():
        if path.name.startswith("."):
            found += [] if path.name == ".lock" else [path]
        elif path.is_dir() and path.suffix != ".zarr":
            found += leftovers(path)
    return found


@dataclass
class Ended:
    """How a process ended: its exit code (minus the signal that killed it), and after how many seconds of work."""

    code: int | None
    seconds: float
    output: str
    complete: bool = False


def run(job: str, inputs: Path, out: Path, kill: signal.Signals | None = None, after: float = 0.0) -> Ended:
    """Run a job in a process, and kill it after so many seconds of work.

    As from a terminal SIGINT goes to workers too, as from a scheduler SIGTERM to the process alone; SIGKILL kills all.
    """
    context = _server()
    ready, tell = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile("r+") as output:
        process = context.Process(target=_child, args=(job, inputs, out, tell, output.name))
        process.start()
        tell.close()
        assert ready.recv() == "ready"
        started, complete = time.perf_counter(), False
        if kill is not None:
            process.join(after)
            if process.is_alive():
                (os.kill if kill == signal.SIGTERM else os.killpg)(process.pid, kill)
        process.join(DEADLINE)
        seconds = time.perf_counter() - started
        hangs = process.is_alive()
        if hangs:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        complete = ready.poll() and not hangs and _received(ready) == "done"
        return Ended(None if hangs else process.exitcode, seconds, output.read(), complete)


@cache
def _server() -> multiprocessing.context.ForkServerContext:
    """Start the process that others are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parent)):
        forkserver.ensure_running()
    return context


def _received(pipe: object) -> str:
    try:
        return pipe.recv()
    except EOFError:
        return ""


def _child(job: str, inputs: Path, out: Path, tell: object, output: str) -> None:
    os.setsid()  # a process group to be killed
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    plt.switch_backend("agg")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sg.settings.progress_bars = False
    out.mkdir(parents=True, exist_ok=True)
    tell.send("ready")
    JOBS[job].run(inputs, out)
    tell.send("done")


@dataclass
class Undisturbed:
    """What a job makes, from what was there before, and in how many seconds."""

    made: dict[str, str]
    before: dict[str, str]
    seconds: float


def run_undisturbed(job: str, inputs: Path, out: Path) -> Undisturbed:
    """Run a job to its end."""
    before = begin(job, inputs, out)
    ended = run(job, inputs, out)
    if not ended.complete:
        raise RuntimeError(f"{job} fails undisturbed: {ended.output}")
    return Undisturbed(contents(out), before, ended.seconds)


def begin(job: str, inputs: Path, out: Path) -> dict[str, str]:
    """Make what lies there before a job, and return its contents."""
    out.mkdir(parents=True)
    if JOBS[job].before is not None:
        JOBS[job].before(inputs, out)
    return contents(out)


@dataclass
class Interrupted:
    """What was found: after each kill, and what is wrong then, and once the job was run to its end."""

    there: list[str]
    damaged: list[str]
    different: list[str]


def interrupt(
    job: str, inputs: Path, out: Path, undisturbed: Undisturbed, kills: Iterable[tuple[signal.Signals, float]]
) -> Interrupted:
    """Kill a job once or several times, each after a share of its time, and run it to its end as a user would."""
    begin(job, inputs, out)
    result, complete = Interrupted([], [], []), False
    for kill, share in kills:
        left_before = leftovers(out)
        ended = run(job, inputs, out, kill, share * undisturbed.seconds)
        found, wrong = look(out, undisturbed)
        left = leftovers(out)
        if kill == signal.SIGINT and (new := sorted({*left} - {*left_before})):
            wrong.append(f"left after Ctrl-C: {new}")
        if odd := [path.name for path in left if not LEFTOVER.fullmatch(path.name)]:
            wrong.append(f"left under odd names: {odd}")
        if ended.code is None:
            wrong.append("it hangs")
        result.there.append(f"{len(found)} files{', all done' if ended.complete else ''}, {len(left)} unfinished")
        result.damaged += wrong
        if complete := (out / JOBS[job].made).exists() and not JOBS[job].again:
            break
    if not complete:
        ended = run(job, inputs, out)
        if not ended.complete:
            last = ended.output.strip().splitlines()[-1:]
            result.different.append(f"started again it ends with {ended.code}: {last}")
        if left := leftovers(out):
            result.different.append(f"left in the end: {left}")
    found, wrong = look(out, undisturbed)
    result.different += wrong
    if absent := {*undisturbed.made} ^ {*found}:
        result.different.append(f"only in one of both: {sorted(absent)}")
    return result


def look(out: Path, undisturbed: Undisturbed) -> tuple[dict[str, str], list[str]]:
    """What has its name in a folder, and what is wrong with it."""
    try:
        found = contents(out)
    except Exception as error:  # noqa: BLE001 whatever readers raise
        return {}, [f"{type(error).__name__}: {error}"]
    known = {name: {undisturbed.made.get(name), undisturbed.before.get(name)} for name in found}
    return found, [f"{name} differs" for name in found if name in undisturbed.made and found[name] not in known[name]]
