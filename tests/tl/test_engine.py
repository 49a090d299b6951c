"""Memory of the machine and of the device: results don't hang on it."""

import numpy as np
import pandas as pd
import pytest
import torch
from comparison import GENES, PAIRS, assert_close, run_tools

import sagefm as sg
from sagefm.models._canonical import ReadOut
from sagefm.tl._projection import Projection


@pytest.mark.slow
@pytest.mark.parametrize("family", ["tiny", "sage"])
def test_spilling_changes_nothing(slide, request, family, monkeypatch):
    model = request.getfixturevalue(family)
    expected = run_tools(slide.copy(), model)
    monkeypatch.setattr(sg.settings, "memory_limit", 0.0)
    for found, value in zip(run_tools(slide, model), expected, strict=True):
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize(("limit", "error"), [(None, TypeError), ("1", TypeError), (True, TypeError), (-1, ValueError)])
def test_bad_memory_limits(limit, error):
    with pytest.raises(error, match="memory_limit="):
        sg.settings.memory_limit = limit


def fails_above(monkeypatch, owner, name, most):
    """Make a step run out of memory for more than so many spots; return the sizes that were tried."""
    whole, tried = getattr(owner, name), []

    def limited(self, h, *args, **kwargs):
        tried.append(len(h.hidden) if hasattr(h, "hidden") else len(h))
        if tried[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, h, *args, **kwargs)

    monkeypatch.setattr(owner, name, limited)
    return tried


@pytest.mark.slow
def test_out_of_memory_halves_the_batch(slide, sage, expected_of_sage, monkeypatch, log):
    reliability = sg.tl.impute(slide, model=sage, n_folds=3, copy=True).uns["sage_imputed"]["reliability"]
    tried = fails_above(monkeypatch, Projection, "embed", 30)
    predicted = fails_above(monkeypatch, Projection, "predict", 30)
    read = fails_above(monkeypatch, ReadOut, "predict", 60)
    for found, value in zip(run_tools(slide, sage, batch_size=100, reliability=True), expected_of_sage, strict=True):
        assert_close(found, value)
    sg.tl.perturb_lr(slide, PAIRS, sage, n_controls=5, control_spots=60, batch_size=40)
    for sizes, most in ((tried, 30), (predicted, 30), (read, 60)):
        assert max(sizes) > most
        assert sum(size > most for size in sizes) < 8  # remembered, not tried again with every block
    assert "out of memory with 100 spots at a time; going on with 50" in log.text
    # What was added up before the memory ran out isn't added up again.
    pd.testing.assert_frame_equal(slide.uns["sage_imputed"]["reliability"], reliability, rtol=1e-4, atol=1e-5)


def test_sensitivity_halves_too(slide, sage, monkeypatch):
    sg.tl.gene_sensitivity(slide, GENES, model=sage)
    expected = slide.uns["gene_sensitivity"]["results"]
    from sagefm.tl._perturb import sensitivity

    whole = sensitivity._pull_back
    calls = []

    def limited(model, slopes, target):
        calls.append(len(slopes[0]))
        if len(slopes[0]) > 40 and len(calls) % 2 == 0:  # in the middle of a block
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, slopes, target)

    monkeypatch.setattr(sensitivity, "_pull_back", limited)
    sg.tl.gene_sensitivity(slide, GENES, model=sage)
    assert max(calls) == slide.n_obs
    assert_close(slide.uns["gene_sensitivity"]["results"], expected)


def test_no_memory_for_a_single_spot_is_an_error(slide, tiny, monkeypatch):
    fails_above(monkeypatch, Projection, "embed", 0)
    with pytest.raises(torch.OutOfMemoryError):
        sg.tl.sage_embed(slide, tiny)
    assert "X_sage" not in slide.obsm


def test_tf32_is_for_gpus(slide, tiny):
    with pytest.raises(ValueError, match="'tf32' is a mode of CUDA GPUs, and this runs on cpu"):
        sg.tl.sage_embed(slide, tiny, dtype="tf32", device="cpu")


def test_slow_bfloat16_is_told(slide, tiny, log, monkeypatch):
    monkeypatch.setattr("sagefm.tl._compute._multiplies_bfloat16", lambda: False)
    sg.tl.sage_embed(slide, tiny, dtype="bfloat16", device="cpu")
    assert "can't multiply bfloat16" in log.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
def test_gpu_gives_what_the_cpu_gives(slide, sage, expected_of_sage, dtype):
    tolerance = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2}[dtype]
    sg.tl.sage_embed(slide, sage, device="cuda", dtype=dtype)
    sg.tl.impute(slide, model=sage, n_folds=3, device="cuda", dtype=dtype)
    assert_close(slide.obsm["X_sage"], expected_of_sage[0], tolerance)
    assert_close(slide.layers["sage_imputed"], expected_of_sage[1], tolerance)


def test_weights_of_a_graph_are_not_read(slide, sage, expected_of_sage):
    slide.obsp["sage_connectivities"] = slide.obsp["sage_distances"]
    for found, value in zip(run_tools(slide, sage, reliability=True), expected_of_sage, strict=True):
        assert_close(found, value)
