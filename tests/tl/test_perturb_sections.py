"""Perturbation of many sections, read one after the other, and the levels that they share."""

import literal
import numpy as np
import pandas as pd
import pytest
from perturbation import SYMBOLS, awake, gene

import sagefm as sg

PAIRS = [("CXCL12", "CXCR4"), ("IL6", "IL6R"), ("CXCL12", "nonsense")]
COLUMNS = ["n_spots", "n_up", "n_down", "effect", "mean_delta", "reference_r", "reference_pval"]


@pytest.fixture(scope="module")
def slides():
    """Three sections; the first has a constant ligand, the last lacks a receptor."""
    found = {name: sg.datasets.simulated_visium(9, 8, n_genes=8000, rng=seed) for seed, name in enumerate("abc")}
    counts = found["a"].X.tolil()
    counts[:, found["a"].var_names.get_loc("IL6")] = 0
    found["a"].X = counts.tocsr()
    found["c"] = found["c"][:, found["c"].var_names != "IL6R"].copy()
    return found


@pytest.fixture(scope="module")
def folder(slides, tmp_path_factory):
    path = tmp_path_factory.mktemp("sections")
    for name, adata in slides.items():
        adata.write_h5ad(path / f"{name}.h5ad")
    return path


def test_levels_are_the_extremes_of_all_sections(slides, folder, tiny):
    levels = sg.tl.ligand_levels(folder, tiny)
    for name in ("CXCL12", "IL6", "IL6R"):
        having = [adata for adata in slides.values() if name in adata.var_names]
        values = np.concatenate([np.log1p(adata[:, name].X.toarray().ravel()) for adata in having])
        assert levels.loc[name].tolist() == pytest.approx([values.min(), values.max(), len(having)])
    known = {name for adata in slides.values() for name in adata.var_names} & set(SYMBOLS)
    assert set(levels.index) >= known


def test_ligands_are_clamped_at_the_given_levels(slides, tiny):
    """Against the literal protocol; a ligand that is constant here can be tested."""
    model, adata = awake(tiny), slides["a"].copy()
    sg.pp.neighborhood_graph(adata)
    levels = pd.DataFrame({"lowest": [0.5, 0.0], "highest": [3.0, 2.0]}, index=["CXCL12", "IL6"])
    options = {"n_controls": 0, "store_spots": True}
    sg.tl.perturb_lr(adata, PAIRS[:2], model, **options)
    assert adata.uns["perturb_lr"]["results"]["status"].tolist() == ["ok", "constant_ligand"]
    sg.tl.perturb_lr(adata, PAIRS[:2], model, levels=levels, **options)
    found = adata.obsm["perturb_lr"]
    dense = literal.dense_log1p(adata, SYMBOLS)
    neighborhoods = literal.neighborhoods_of(adata.obsp["sage_connectivities"])
    masked = np.array([gene("CXCR4"), gene("IL6R")])
    for ligand, receptor in PAIRS[:2]:
        low, high = (
            literal.perturbed(model.network, dense, neighborhoods, {gene(ligand): np.float32(value)}, masked)
            for value in levels.loc[ligand]
        )
        expected = (high - low)[:, gene(receptor)]
        assert found[f"{ligand}|{receptor}"].to_numpy() == pytest.approx(expected, abs=1e-6)
    sg.tl.perturb_targets(adata, {"IL6": ["IL6R"]}, model, levels=levels, n_controls=0)
    results = adata.uns["perturb_targets"]["results"]
    assert results["effect"].iloc[0] == adata.uns["perturb_lr"]["results"].loc["IL6|IL6R", "effect"]


@pytest.mark.slow
def test_sections_add_up_to_one_object(slides, folder, sage):
    """Against perturb_lr on an object that holds the sections of a group."""
    import anndata as ad

    model, groups = awake(sage), {"a": "validation", "b": "test", "c": "test"}
    found = sg.tl.perturb_sections(folder, PAIRS, model, groups=groups)
    levels = found.uns["perturb_lr"]["levels"]
    pd.testing.assert_frame_equal(levels, sg.tl.ligand_levels(folder, model))
    rows = found.uns["perturb_lr"]["libraries"].set_index(["library", "pair"])
    parts = {name: slides[name] for name in "bc"}
    both = ad.concat(parts, join="outer", fill_value=0, label="slide", index_unique="-")
    sg.pp.neighborhood_graph(both, library_key="slide")
    sg.tl.perturb_lr(both, PAIRS, model, levels=levels, n_controls=0)
    expected = both.uns["perturb_lr"]["results"].loc["CXCL12|CXCR4", COLUMNS].astype(float)
    assert rows.loc[("test", "CXCL12|CXCR4"), COLUMNS].astype(float).to_dict() == pytest.approx(
        expected.to_dict(), rel=1e-3, abs=1e-5
    )
    alone = slides["a"].copy()
    sg.pp.neighborhood_graph(alone)
    sg.tl.perturb_lr(alone, PAIRS, model, levels=levels, n_controls=0)
    of_group = rows.loc["validation"]
    assert of_group["status"].tolist() == ["ok", "ok", "not_in_model"]
    one = alone.uns["perturb_lr"]["results"].loc[["CXCL12|CXCR4", "IL6|IL6R"], COLUMNS].astype(float)
    pd.testing.assert_frame_equal(of_group.iloc[:2][COLUMNS].astype(float), one, check_names=False)
    assert found.X[0, :2] == pytest.approx(one["effect"].to_numpy())
    assert found.obs["group"].tolist() == list(groups.values())
    # On "c" alone there is no such receptor.
    results = found.uns["perturb_lr"]["results"]
    assert results["n_spots"].tolist() == [216, 144, pd.NA]
    assert np.isnan(found.X[2, 1])
    sg.tl.perturbation_overlap(found, ["test", "validation"])
    assert found.uns["perturb_lr"]["overlap"]["counts"]["n_pairs"] == 2
    sg.pl.perturbation_scatter(found, values="effect", show=False)
    sg.pl.perturbation_lollipop(found, show=False)


def test_overlap_takes_pairs_that_both_groups_could_run(slide):
    rows = [("A|B", "ok", 0.5, 0.01, 1.0), ("C|D", "ok", 0.5, 0.01, 1.0)]
    parts = [pd.DataFrame(rows, columns=["pair", "status", "reference_r", "reference_pval", "effect"])] * 2
    parts = [part.assign(library=name) for part, name in zip(parts, ("one", "two"), strict=True)]
    parts[1].loc[0, "status"] = "not_measured"
    slide.uns["perturb_lr"] = {"libraries": pd.concat(parts, ignore_index=True)}
    sg.tl.perturbation_overlap(slide)
    assert slide.uns["perturb_lr"]["overlap"]["pairs"].index.tolist() == ["C|D"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": {"a": "x", "b": "y"}}, KeyError, "no entry for the sections 'c'"),
        ({"groups": dict.fromkeys("abcd", "x")}, KeyError, "names 'd', which are no sections"),
        ({"levels": 3}, TypeError, "levels has to be a DataFrame.*ligand_levels"),
        ({"levels": pd.DataFrame({"lowest": [0.0]}, index=["IL6"])}, KeyError, "no column 'highest'"),
        ({"levels": pd.DataFrame({"lowest": [0], "highest": [1]}, index=["x"])}, KeyError, "doesn't know: 'x'"),
        ({"levels": pd.DataFrame({"lowest": [2], "highest": [1]}, index=["IL6"])}, ValueError, "below its lowest"),
        ({"levels": pd.DataFrame({"lowest": [-1], "highest": [1]}, index=["IL6"])}, ValueError, "no log1p counts"),
    ],
)
def test_refusals(folder, tiny, options, error, message):
    with pytest.raises(error, match=message):
        sg.tl.perturb_sections(folder, PAIRS, tiny, **options)
