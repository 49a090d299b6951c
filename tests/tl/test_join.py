"""Joined representations."""

import anndata as ad
import numpy as np
import pytest

import sagefm as sg


def test_joined_representations_weigh_the_same():
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.zeros((50, 2), dtype=np.float32))
    adata.obsm["a"], adata.obsm["b"] = 1000 * rng.normal(size=(50, 3)) + 7, rng.normal(size=(50, 40))
    sg.tl.join_representations(adata, ["a", "b"])
    joined = adata.obsm["X_joined"]
    assert joined.shape == (50, 43)
    squares = [((part[:, None] - part[None]) ** 2).sum(axis=2).mean() for part in (joined[:, :3], joined[:, 3:])]
    np.testing.assert_allclose(squares, 2, rtol=1e-4)
    expected = (adata.obsm["a"] - adata.obsm["a"].mean(axis=0)) / adata.obsm["a"].std(axis=0) / np.sqrt(3)
    np.testing.assert_allclose(joined[:, :3], expected, atol=1e-5)
    adata.obs["slide"] = ["x"] * 25 + ["y"] * 25
    sg.tl.join_representations(adata, ["a", "b"], library_key="slide")
    for rows in (slice(25), slice(25, None)):
        np.testing.assert_allclose(adata.obsm["X_joined"][rows].mean(axis=0), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("use_reps", "options", "error", "message"),
    [
        ("a", {}, TypeError, "list of names"),
        (["a"], {}, ValueError, "two representations"),
        (["a", "a"], {}, ValueError, "each once"),
        (["a", "c"], {}, KeyError, "'c' not in adata.obsm"),
        (["a", "b"], {"key_added": "b"}, ValueError, "overwrite what is joined"),
        (["a", "b"], {"library_key": "slide"}, KeyError, "slide"),
    ],
)
def test_what_can_not_be_joined(use_reps, options, error, message):
    adata = ad.AnnData(np.zeros((5, 2), dtype=np.float32))
    adata.obsm["a"] = adata.obsm["b"] = np.eye(5)
    with pytest.raises(error, match=message):
        sg.tl.join_representations(adata, use_reps, **options)
    assert "X_joined" not in adata.obsm
