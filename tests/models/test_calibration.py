"""The reference that a model carries: what its file keeps and refuses, and priors by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import calibration

import sagefm as sg
from sagefm.models._calibration import EDGES, ends, misfit, nearest, spread


@given(
    st.lists(st.floats(0, 6, width=32), min_size=1, max_size=20),
    st.integers(0, 500),
    st.floats(0, 8, width=32),
)
def test_a_value_is_inside_just_where_its_misfit_is_within_reach(predictions, count, reach):
    p, t = np.array(predictions, dtype=float), np.log1p(count)
    lower, upper = ends(p, reach * spread(p))
    inside = (t >= lower - 1e-4) & (t <= upper + 1e-4)
    score = misfit(p, np.full(len(p), t))
    clear = abs(score - reach) > 1e-3  # rounding decides in between
    assert (inside == (score <= reach))[clear].all()


@given(st.floats(0, 6), st.floats(0, 10))
def test_ends_are_whole_counts_around_the_prediction(prediction, reach):
    lower, upper = np.expm1(ends(np.array([prediction]), np.array([reach])))
    assert abs(lower - np.rint(lower)).item() < 1e-6 * (1 + lower)
    assert abs(upper - np.rint(upper)).item() < 1e-6 * (1 + upper)
    assert lower <= np.expm1(prediction) + 1e-3
    assert upper >= np.floor(np.expm1(prediction)) - 1e-3


def test_reference_survives_its_file(tmp_path, sage):
    model = replace(sage, calibration=calibration())
    read = sg.models.load(model.save(tmp_path / "m.safetensors", half=True)).calibration
    for key, value in vars(model.calibration).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(getattr(read, key), value, rtol=2e-3, atol=1e-6)
        else:
            assert getattr(read, key) == value


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: replace(r, prior_sd=r.prior_sd[:-1]), "prior_sd has shape"),
        (lambda r: replace(r, errors=r.errors[:1]), "errors has shape"),
    ],
)
def test_a_damaged_reference_is_refused(tmp_path, sage, change, match):
    path = replace(sage, calibration=change(calibration())).save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=match):
        sg.models.load(path)


def test_a_reference_without_header_is_refused(tmp_path, sage):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = replace(sage, calibration=calibration()).save(tmp_path / "m.safetensors")
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["sagefm"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    del header["calibration"]
    save_file(tensors, path, metadata={"sagefm": json.dumps(header)})
    with pytest.raises(ValueError, match=r"calibration\."):
        sg.models.load(path)


@pytest.mark.parametrize(
    ("lacking", "weights"), [(0.0, (1, 0)), (0.2, (1, 0)), (0.3, (0.75, 0.25)), (0.6, (0, 1)), (0.9, (0, 1))]
)
def test_priors_lie_between_what_was_tried(lacking, weights):
    known = calibration()
    np.testing.assert_allclose(known.prior(lacking), np.tensordot(weights, known.prior_r, 1), rtol=1e-5)


def test_reach_of_absent_genes_by_hand():
    known, genes = calibration(), np.array([5, 7, 100])
    p = np.array([[0.0, 0.0, 0.3], [0.03, 0.2, 2.2]], dtype=np.float32)
    found = known.reach(p, genes, 0.4, 0.9)
    errors, ranks = known.errors.mean(axis=0), known.ranks[:, 1].mean(axis=0)
    for spot, column in np.ndindex(p.shape):
        rank = ranks[genes[column]]
        if np.isnan(rank):
            assert np.isnan(found[spot, column])
            continue
        at = sum(p[spot, column] >= edge for edge in EDGES)
        expected = errors[at, min(int(np.ceil(rank * 50)), 49)] * spread(np.float64(p[spot, column]))
        assert found[spot, column] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"known at \[0.8, 0.9\], not at 0.85"):
        known.reach(p, genes, 0.4, 0.85)


def test_nearest_is_a_cosine_distance():
    a, b = np.array([[3.0, 0, 0], [1, 1, 0]]), np.array([[1.0, 0, 0], [0, 0, 2]])
    np.testing.assert_allclose(nearest(a, b), [0, 1 - 1 / np.sqrt(2)], atol=1e-6)
