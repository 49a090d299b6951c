import numpy as np
import pytest

import sagefm as sg


@pytest.fixture(scope="module")
def simulated():
    return sg.datasets.simulated_visium(30, 30, n_genes=2_000, rng=3)


def test_is_a_visium_slide(simulated):
    assert simulated.shape == (900, 2_000)
    counts = simulated.X
    assert counts.format == "csr"
    assert counts.dtype == np.float32
    assert (counts.data == np.rint(counts.data)).all()
    assert counts.data.min() >= 1
    assert np.median(np.asarray(counts.sum(axis=1))) == pytest.approx(5_000, rel=0.1)
    assert {"array_row", "array_col", "in_tissue", "domain"} <= set(simulated.obs)
    nearest = np.sort(np.linalg.norm(simulated.obsm["spatial"] - simulated.obsm["spatial"][465], axis=1))[1:7]
    np.testing.assert_allclose(nearest, 100)  # µm


def test_planted_markers_are_there(simulated):
    truth = simulated.uns["truth"]["markers"]
    counts = simulated.to_df()
    for domain, markers in truth.groupby("domain"):
        inside = simulated.obs["domain"] == domain
        ratio = counts.loc[inside, markers["gene"]].mean() / counts.loc[~inside, markers["gene"]].mean()
        assert (ratio > 2).all()


def test_planted_interactions_are_there():
    """The receptor follows the ligand around it where an effect was planted, and not where none was."""
    adata = sg.datasets.simulated_visium(45, 45, n_genes=500, markers={"all": []}, rng=4)
    sg.pp.neighborhood_graph(adata)
    log_counts = np.log1p(adata.to_df())
    depth = np.log(adata.X.sum(axis=1).A1)
    for ligand, receptor, effect in adata.uns["truth"]["interactions"].itertuples(index=False):
        around = adata.obsp["sage_connectivities"] @ log_counts[ligand].to_numpy() / 14
        residual = log_counts[receptor] - np.polyval(np.polyfit(depth, log_counts[receptor], 1), depth)
        r = np.corrcoef(around, residual)[0, 1]
        if effect:
            assert r * np.sign(effect) > 0.2, (ligand, receptor)
        else:
            assert abs(r) < 0.12, (ligand, receptor)


def test_seeds():
    one, same, other = (sg.datasets.simulated_visium(5, 5, n_genes=300, rng=rng) for rng in (1, 1, 2))
    assert (one.X != same.X).nnz == 0
    assert (one.X != other.X).nnz > 0


def test_can_be_saved(simulated, tmp_path):
    import anndata as ad

    simulated.write_h5ad(tmp_path / "slide.h5ad")
    back = ad.read_h5ad(tmp_path / "slide.h5ad")
    assert back.uns["truth"]["interactions"].equals(simulated.uns["truth"]["interactions"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"markers": {"a": ["NOTAGENE"]}}, "NOTAGENE"),
        ({"interactions": [("CXCL12", "NOPE", 1.0)]}, "NOPE"),
        ({"n_genes": 20}, "n_genes=20"),
        ({"n_genes": 20_000}, "14558"),
        ({"n_rows": 2, "n_cols": 3}, "fewer than the 15"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sg.datasets.simulated_visium(**kwargs)
