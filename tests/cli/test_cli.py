import os
import shutil
import subprocess
import sys
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import sagefm as sg
from sagefm.cli import main


@pytest.fixture
def path(slide, tmp_path):
    del slide.obsp["sage_connectivities"]
    slide.write_h5ad(tmp_path / "slide.h5ad")
    return tmp_path / "slide.h5ad"


@pytest.mark.slow
def test_demo(tmp_path, capsys, monkeypatch):
    """On a third of the slide: the way through, not the figures."""
    smaller = partial(sg.datasets.simulated_visium, 24, 24, n_genes=6000)
    monkeypatch.setattr(sg.datasets, "simulated_visium", smaller)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    for words in (
        "576 spots and 6000 genes",
        "adjusted Rand index",
        "COL1A1",
        "depth-scaled neighbor mean",
        "small model",
    ):
        assert words in printed
    assert sorted(file.name for file in (tmp_path / "demo").iterdir()) == [
        "assessment.png",
        "clusters.png",
        "demo.h5ad",
        "imputed.png",
        "perturbed.png",
        "reliability.png",
        "report.html",
    ]
    adata = ad.read_h5ad(tmp_path / "demo" / "demo.h5ad")
    assert {"X_sage"} <= set(adata.obsm)
    assert "sage_imputed" in adata.layers


def test_assess_prints_and_writes_the_card(path, tmp_path, capsys):
    out = tmp_path / "card.html"
    assert main(["assess", str(path), "--model", "sagefm-mini", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    adata = ad.read_h5ad(path)
    sg.pp.neighborhood_graph(adata)
    sg.pp.assess(adata, "sagefm-mini")
    assert printed.strip() == adata.uns["sage_assessment"]["text"].strip()
    assert adata.uns["sage_assessment"]["verdict"] in out.read_text()
    assert main(["assess", str(path), "--model", "sagefm-mini", "-o", str(tmp_path / "card.pdf")]) == 1


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_embed_is_the_function(path, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    assert main(["embed", str(path), "-o", str(out), "--model", "sagefm-mini"]) == 0
    found = ad.read_h5ad(out) if suffix == ".h5ad" else ad.read_zarr(out)
    expected = ad.read_h5ad(path)
    sg.pp.neighborhood_graph(expected)
    sg.tl.sage_embed(expected, "sagefm-mini")
    np.testing.assert_array_equal(found.obsm["X_sage"], expected.obsm["X_sage"])
    assert sorted(file.name for file in tmp_path.iterdir() if file.name != "cache") == sorted(["slide.h5ad", out.name])


def test_impute(path, tmp_path):
    out = tmp_path / "out.h5ad"
    command = ["impute", str(path), "-o", str(out), "--model", "sagefm-mini", "--genes", "KRT8", "COL1A1"]
    assert main(command) == 0
    layer = ad.read_h5ad(out).to_df("sage_imputed")
    assert layer.columns[layer.notna().all()].sort_values().tolist() == ["COL1A1", "KRT8"]


def test_perturb(path, tmp_path, capsys):
    table, out, plot = tmp_path / "pairs.csv", tmp_path / "out.csv", tmp_path / "out.png"
    pd.DataFrame({"ligand": ["CXCL12", "X"], "receptor": ["CXCR4", "Y"]}).to_csv(table)
    command = ["perturb", str(path), "--interactions", str(table), "-o", str(out), "--model", "sagefm-mini"]
    assert main([*command, "--plot", str(plot), "--n-controls", "5"]) == 0
    found = pd.read_csv(out)
    assert found["status"].tolist() == ["ok", "not_in_model"]
    assert plot.stat().st_size > 1000
    assert "not testable" in capsys.readouterr().out
    expected = ad.read_h5ad(path)
    sg.pp.neighborhood_graph(expected)
    sg.tl.perturb_lr(expected, [("CXCL12", "CXCR4")], "sagefm-mini", n_controls=5)
    assert found["mean_delta"][0] == pytest.approx(expected.uns["perturb_lr"]["results"]["mean_delta"].iloc[0])
    assert main(command) == 1  # the table is there already
    assert main([*command[:5], str(tmp_path / "out.h5ad"), "--model", "sagefm-mini"]) == 1
    assert main([*command, "--overwrite", "--interactions", "absent.csv"]) == 1


@pytest.mark.slow
def test_histology(tmp_path, capsys):
    adata = sg.datasets.simulated_visium(8, 6, n_genes=300, image=True)
    adata.obs["half"] = ["upper" if row < 4 else "lower" for row in adata.obs["array_row"]]
    pixels = adata.uns["spatial"]["simulated"]["images"].pop("hires")
    Image.fromarray(pixels).save(tmp_path / "he.png")
    adata.write_h5ad(tmp_path / "slide.h5ad")
    command = ["histology", str(tmp_path / "slide.h5ad"), "--image", str(tmp_path / "he.png"), "--size", "48"]
    assert main([*command, "-o", str(tmp_path / "a.h5ad"), "--group-key", "half", "--genes", "20"]) == 0
    found = ad.read_h5ad(tmp_path / "a.h5ad")
    sg.pp.histology_patches(adata, tmp_path / "he.png", size=48)
    sg.tl.histology_embed(adata)
    sg.tl.predict_expression(adata, 20, group_key="half")
    for key in ("X_histology", "histology_expression"):
        np.testing.assert_allclose(found.obsm[key], adata.obsm[key], rtol=1e-5)
    assert "r2" in capsys.readouterr().out
    found.obs["half"] = "another slide"
    found.write_h5ad(tmp_path / "reference.h5ad")
    assert main([*command, "-o", str(tmp_path / "b.h5ad"), "--reference", str(tmp_path / "reference.h5ad")]) == 0
    assert ad.read_h5ad(tmp_path / "b.h5ad").obsm["histology_expression"].shape == (48, 250)
    assert main([*command, "-o", str(tmp_path / "b.h5ad")]) == 1


def test_models(capsys):
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "sagefm-mini" in printed
    assert "377 MB" in printed


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (OSError("Can't write data (file write failed: errno = 28, error message = '...')"), "the disk is full"),
        (FileNotFoundError(2, "No such file or directory", "pairs.csv"), "pairs.csv: no such file or directory."),
        (PermissionError(13, "Permission denied", "out"), "out: permission denied."),
        (
            OSError("Can't open file (unable to lock file, errno = 11, error message = '...')"),
            "another program has",
        ),
        (OSError("Unable to open file (errno = 13, error message = '...', flags = 0)"), "error: permission denied"),
        (MemoryError(), "out of memory"),
        (KeyError("no such gene"), "error: no such gene"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero (sagefm --debug"),
    ],
)
def test_any_error_is_one_line(monkeypatch, log, error, message):
    def fail():
        raise error

    monkeypatch.setattr(sg.models, "available", fail)
    assert main(["models"]) == 1
    (record,) = log.records
    assert message in record.message
    assert len(record.message.splitlines()) == 1
    with pytest.raises(type(error)):
        main(["--debug", "models"])


@pytest.mark.process
@pytest.mark.skipif(not os.geteuid() and shutil.which("setpriv") is None, reason="root may do everything")
def test_what_a_user_may_not_do_is_said_before_anything_is_computed(path, tmp_path):
    powers = "-dac_override,-dac_read_search"
    user = [] if os.geteuid() else ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"]
    locked = tmp_path / "locked"
    locked.mkdir()
    shutil.copy(path, locked / "slide.h5ad")
    arguments = {
        0o000: [(["embed", str(locked), "-o", str(tmp_path / "out")], f"no permission to read {locked}.")],
        0o555: [
            (["assess", str(path), "-o", str(locked / "card.txt")], f"no permission to write into {locked}."),
            (["demo", "--out", str(locked)], f"no permission to write into {locked}."),
        ],
    }
    for mode, commands in arguments.items():
        locked.chmod(mode)
        for command, message in commands:
            model = [] if "demo" in command else ["--model", "sagefm-mini"]
            command = [*user, sys.executable, "-m", "sagefm.cli", *command, *model]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (run.returncode, run.stderr) == (1, f"sagefm: error: {message}\n")
    locked.chmod(0o755)


@pytest.mark.process
def test_a_reader_that_has_enough_is_no_error():
    command = f"{sys.executable} -m sagefm.cli models | head -c 1"
    run = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_output_is_not_replaced_unless_told(path, tmp_path, log):
    out = tmp_path / "out.h5ad"
    out.write_text("mine")
    command = ["embed", str(path), "-o", str(out), "--model", "sagefm-mini"]
    assert main(command) == 1
    assert "--overwrite" in log.text
    assert out.read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    assert "X_sage" in ad.read_h5ad(out).obsm


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "{tmp}/none.h5ad", "-o", "{tmp}/out.h5ad"], "no slide at"),
        (["embed", "{tmp}/slide.csv", "-o", "{tmp}/out.h5ad"], "is not .h5ad or .zarr"),
        (["embed", "{tmp}/slide.h5ad", "-o", "{tmp}/no/out.h5ad"], "no folder"),
        (["embed", "{tmp}/sdata.zarr", "-o", "{tmp}/out.h5ad"], "takes its table"),
        (["embed", "{tmp}/slide.h5ad", "-o", "{tmp}/out.h5ad", "--layer", "x"], "layer 'x' not in the slide"),
        (["embed", "{tmp}/broken.h5ad", "-o", "{tmp}/out.h5ad"], "can't be read"),
        (["embed", "{tmp}/slide.h5ad", "-o", "{tmp}/out.h5ad", "--model", "none"], "unknown model 'none'"),
        (
            [
                "impute",
                "{tmp}/slide.h5ad",
                "-o",
                "{tmp}/out.h5ad",
                "--model",
                "sagefm-mini",
                "--genes",
                "FOO",
            ],
            "'FOO'",
        ),
        (
            ["embed", "{tmp}/slide.h5ad", "-o", "{tmp}/out.h5ad", "--library-key", "x"],
            "library_key='x' not in",
        ),
    ],
)
def test_errors_are_one_line_and_code_1(path, tmp_path, log, arguments, message):
    (tmp_path / "broken.h5ad").write_bytes(path.read_bytes()[:1000])
    (tmp_path / "sdata.zarr" / "tables").mkdir(parents=True)
    before = sorted(tmp_path.iterdir())
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 1
    errors = [record.getMessage() for record in log.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert message in errors[0]
    assert sorted(tmp_path.iterdir()) == before


def test_library_key_builds_the_graph_anew(path, tmp_path):
    adata = ad.read_h5ad(path)
    adata.obs["slide"] = np.where(adata.obs["array_row"] < 5, "top", "bottom")
    sg.pp.neighborhood_graph(adata)
    adata.write_h5ad(path)
    out = tmp_path / "out.h5ad"
    assert main(["embed", str(path), "-o", str(out), "--model", "sagefm-mini", "--library-key", "slide"]) == 0
    found = ad.read_h5ad(out)
    i, j = found.obsp["sage_connectivities"].nonzero()
    assert (found.obs["slide"].to_numpy()[i] == found.obs["slide"].to_numpy()[j]).all()


@pytest.mark.parametrize("arguments", [[], ["fly"], ["embed"], ["embed", "a.h5ad"]])
def test_wrong_arguments_are_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: sagefm" in capsys.readouterr().err


def test_interrupt(path, tmp_path, monkeypatch, log):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sagefm.tl.sage_embed", stop)
    assert main(["embed", str(path), "-o", str(tmp_path / "out.h5ad")]) == 130
    assert "nothing was written" in log.text


def test_json_is_one_object_with_what_came_of_it(path, tmp_path, capsys):
    import json

    out = tmp_path / "card.html"
    assert main(["assess", str(path), "--model", "sagefm-nano", "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["command"], found["exit_code"], found["written"]) == ("assess", 0, [str(out)])
    adata = ad.read_h5ad(path)
    sg.pp.neighborhood_graph(adata)
    sg.pp.assess(adata, "sagefm-nano")
    checks = adata.uns["sage_assessment"]["checks"]
    assert found["verdict"] == adata.uns["sage_assessment"]["verdict"]
    assert {name: check["verdict"] for name, check in found["checks"].items()} == checks["verdict"].to_dict()
    assert main(["embed", str(path), "-o", str(tmp_path / "out.h5ad"), "--model", "sagefm-nano", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["spots"], found["dimensions"], found["warnings"]) == (adata.n_obs, 48, [])
    # An error is an object too, and its text is on standard error as well.
    assert main(["embed", str(path), "-o", str(tmp_path / "out.h5ad"), "--model", "sagefm-nano", "--json"]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["exit_code"] == 1
    assert "--overwrite replaces it" in found["error"]
    assert found["error"] in printed.err
    assert main(["models", "--json"]) == 0
    assert "sagefm-mini" in {model["name"] for model in json.loads(capsys.readouterr().out)["models"]}


@pytest.mark.slow
def test_json_of_tables(path, tmp_path, capsys):
    import json

    pairs = pd.DataFrame({"ligand": ["CXCL12", "CSF1"], "receptor": ["CXCR4", "CSF1R"]})
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    options = ["--model", "sagefm-nano", "--json", "-o"]
    command = ["perturb", str(path), "--interactions", str(tmp_path / "pairs.csv"), "--n-controls", "5", *options]
    assert main([*command, str(tmp_path / "out.csv")]) == 0
    found = json.loads(capsys.readouterr().out)
    table = pd.read_csv(tmp_path / "out.csv")
    assert found["verdicts"] == table["verdict"].value_counts().to_dict()
    assert main(["impute", str(path), *options, str(tmp_path / "imputed.h5ad")]) == 0
    found = json.loads(capsys.readouterr().out)
    table = ad.read_h5ad(tmp_path / "imputed.h5ad").uns["sage_imputed"]["reliability"]
    assert (found["genes"], found["reliable"]) == (len(table), table["reliable"].sum())
