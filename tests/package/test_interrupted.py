"""Jobs that are killed in the middle: nothing is damaged, and the next call makes what one call would have made.

``tools/interrupt.py`` does the same at random moments, fifty times.
"""

import sys
from signal import SIGINT, SIGKILL, SIGTERM

import anndata as ad
import interruption
import numpy as np
import pandas as pd
import pytest

import sagefm as sg
from sagefm._io import files as _files
from sagefm.benchmark._protocol import config as _config
from sagefm.benchmark._protocol.folder import Folder


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """What jobs make, each run once."""
    known = {}

    def run(job):
        if job not in known:
            known[job] = interruption.run_undisturbed(job, inputs, tmp_path_factory.mktemp("undisturbed") / "out")
        return known[job]

    return run


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("job", "kills"),
    [
        ("embed", [(SIGINT, 0.6)]),
        ("embed", [(SIGTERM, 0.3), (SIGKILL, 0.7)]),
        ("sections", [(SIGINT, 0.6)]),
        ("prepare over", [(SIGKILL, 0.6)]),
        ("pretrain", [(SIGTERM, 0.6)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(kill.name for kill, _ in value),
)
def test_a_killed_job_starts_again(job, kills, inputs, undisturbed, tmp_path):
    found = interruption.interrupt(job, inputs, tmp_path / "out", undisturbed(job), kills)
    assert not found.damaged
    assert not found.different


# Many sections


@pytest.mark.slow
def test_half_deleted_results_arent_taken_for_whole(inputs, tmp_path, monkeypatch):
    """A run over another, killed while it deletes; then the other is asked for again."""
    options = {"model": interruption.model(inputs), "batch_size": 100}
    out, files = tmp_path / "out", [inputs / "sections" / "section 0.h5ad"]
    sg.tl.embed_sections(files, out, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            sg.tl.embed_sections(files, out, "sagefm-mini", overwrite=True)
    table = sg.tl.embed_sections(files, out, **options)
    assert table["status"].tolist() == ["embedded"]
    assert np.isfinite(ad.read_zarr(out / "section 0.zarr").obsm["X_sage"]).all()


def test_a_run_killed_at_its_very_start_doesnt_block_the_next(inputs, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".sections.json.0.part").touch()
    section = inputs / "sections" / "section 0.h5ad"
    sg.tl.embed_sections([section], tmp_path, interruption.model(inputs))
    assert (tmp_path / "section 0.zarr").exists()


def test_a_protocol_killed_at_its_very_start_doesnt_block_the_next(inputs, tmp_path):
    (tmp_path / ".protocol.json.0.part").touch()
    protocol(inputs, tmp_path, 0).open()
    protocol(inputs, tmp_path, 0).open()


def test_a_protocol_killed_while_it_starts_over(inputs, tmp_path, monkeypatch):
    """Pieces go all at once: none is left that says the others are there."""
    first = protocol(inputs, tmp_path, 0)
    first.open()
    first.part("distances", "PCA", lambda: pd.DataFrame({"representation": ["PCA"]}))
    first.mark_done("PCA")
    with monkeypatch.context() as patch:
        patch.setattr(_files, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            protocol(inputs, tmp_path, 1, overwrite=True).open()
    again = protocol(inputs, tmp_path, 0)
    again.open()
    assert not again.is_done("PCA")


def protocol(inputs, out, seed, overwrite=False):
    settings = {"sections": str(inputs / "sections"), "tasks": ["heterogeneity"], "seed": seed}
    return Folder(_config.read(settings), out, overwrite)


def killed(path):
    """As in the middle of deleting a folder."""
    next(file for file in sorted(path.rglob("*")) if file.is_file()).unlink()
    raise KeyboardInterrupt
