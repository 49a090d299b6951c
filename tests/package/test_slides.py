"""Several slides in one object, at the same coordinates: no function mixes them."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from catalogue.functions import FUNCTIONS, PAIRS, make_kit
from catalogue.slots import equal, get

import sagefm as sg

pytestmark = pytest.mark.slow

NAMES = ["B2", "A1", "C3"]
LIGANDS = ["CXCL12", "TGFB1", "IL6"]
# They read pixels at the spots' places, or are of other objects than slides.
ELSEWHERE = {"pp.histology_patches", "tl.histology_embed", "pp.pseudospots", "pp.from_pseudospots"}
GRAPHS = {"pp.neighborhood_graph", "pp.neighborhood_graph, knn"}
# Two of the slides are compared.
OF_THREE = {"tl.perturbation_overlap": lambda a, k: sg.tl.perturbation_overlap(a, groups=NAMES[:2])}
# A spot's result is the same whatever other slides there are.
OF_A_SPOT = ["pp.align_genes", "tl.sage_embed", "tl.impute", "tl.join_representations"]


def cut(whole, number, rows):
    """Rows of a slide as one of its own, with the lowest and highest levels of ligands that all slides share."""
    slide = whole[(whole.obs["array_row"] >= rows.start) & (whole.obs["array_row"] < rows.stop)].copy()
    slide.obsm["spatial"] = slide.obsm["spatial"] - slide.obsm["spatial"].min(axis=0)
    slide.obs["array_row"] -= rows.start
    counts = slide.X.toarray()
    for ligand in LIGANDS:
        column = slide.var_names.get_loc(ligand)
        counts[:, column] = np.minimum(counts[:, column], 8)
        counts[:2, column] = 0, 8
    slide.X = counts
    slide.obs["donor"] = slide.obs["library"] = NAMES[number]
    return slide


def prepare(adata):
    sg.pp.neighborhood_graph(adata, library_key="library")
    return adata


@pytest.fixture(scope="module")
def alone():
    whole = sg.datasets.simulated_visium(28, 9, n_genes=300, depth=1000)
    whole.obsm["likelihood"] = pd.get_dummies(whole.obs["domain"]).astype(float)
    parts = (slice(0, 9), slice(10, 18), slice(18, 28))
    return {name: cut(whole, number, rows) for number, (name, rows) in enumerate(zip(NAMES, parts, strict=True))}


@pytest.fixture(scope="module")
def kit(alone):
    return make_kit(alone["C3"])


def run_all(adata, kit):
    """What every function returns and writes, in the order in which they need each other."""
    found = {}
    for name, function in FUNCTIONS.items():
        if name not in ELSEWHERE | GRAPHS:
            call = OF_THREE.get(name, function.call)
            returned = call(adata, kit)
            found[name] = {slot: get(adata, slot) for slot in function.writes}, returned
    return found


@pytest.fixture(scope="module")
def together(alone, kit):
    """The three slides as one object, and what every function makes of it."""
    adata = prepare(ad.concat(alone.values(), index_unique="-", keys=NAMES))
    return adata, run_all(adata, kit)


def test_all_functions_are_in_the_catalogue():
    in_catalogue = {name.partition(",")[0] for name in FUNCTIONS}
    public = {f"{space}.{name}" for space in ("pp", "tl") for name in getattr(sg, space).__all__}
    of_files = {"tl.embed_sections", "tl.ligand_levels", "tl.perturb_sections"}
    # Of a dense map; compiles for ten seconds, and is tested beside scanpy.
    assert public - in_catalogue == of_files | {"tl.superresolve_expression", "tl.leiden"}


@pytest.fixture(scope="module")
def apart(alone, kit):
    """The same far from each other."""
    moved = [slide.copy() for slide in alone.values()]
    for number, slide in enumerate(moved):
        slide.obsm["spatial"] = slide.obsm["spatial"] + 1e4 * number
    adata = prepare(ad.concat(moved, index_unique="-", keys=NAMES))
    return run_all(adata, kit)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in ELSEWHERE | GRAPHS])
def test_slides_at_the_same_place_are_not_mixed(together, apart, name):
    (written, returned), (elsewhere, other) = together[1][name], apart[name]
    for slot, value in written.items():
        assert equal(value, elsewhere[slot]), slot
    assert equal(returned, other) or (returned is None and other is None)


@pytest.mark.parametrize("name", OF_A_SPOT)
def test_a_spots_result_is_that_of_its_slide_alone(alone, together, kit, name):
    adata, _ = together
    for slide_name, slide in alone.items():
        own = prepare(slide.copy())
        for step in ("tl.sage_embed", "tl.nichepca_embed", name):
            FUNCTIONS[step].call(own, kit)
        rows = (adata.obs["library"] == slide_name).to_numpy()
        if name == "tl.join_representations":  # of the same components, which are those of all slides
            own.obsm["X_nichepca"] = adata.obsm["X_nichepca"][rows]
            FUNCTIONS[name].call(own, kit)
        for slot in FUNCTIONS[name].writes:
            where, _, key = slot.partition("/")
            if where in ("layers", "obsm"):
                assert equal(get(adata, slot)[rows], get(own, slot)), slot
            elif slot == "var/sage_gene":
                np.testing.assert_array_equal(adata.var[key][own.var_names], own.var[key])


def test_scaled_embedding_is_that_of_each_slide(alone, together, kit, tmp_path):
    adata = together[0].copy()
    sg.tl.sage_embed(adata, kit.model, scale="slide", key_added="X_scaled", device="cpu")
    sg.tl.sage_embed(adata, kit.model, scale="slide", key_added="X_stored", store=tmp_path / "x.zarr", device="cpu")
    for name in alone:
        rows = (adata.obs["library"] == name).to_numpy()
        plain, scaled = adata.obsm["X_sage"][rows], adata.obsm["X_scaled"][rows]
        spread = np.where(plain.std(axis=0) > 1e-6, plain.std(axis=0), 1)
        np.testing.assert_allclose(scaled, (plain - plain.mean(axis=0)) / spread, atol=2e-4)
        np.testing.assert_allclose(adata.obsm["X_stored"].compute()[rows], scaled, atol=1e-6)
    assert adata.uns["X_scaled"]["params"]["library_key"] == "library"
    with pytest.raises(ValueError, match="scale"):
        sg.tl.sage_embed(adata, kit.model, scale="auto")


def test_scores_by_slide_are_those_of_the_slide_alone(alone, together, kit):
    by_slide = together[0].uns["sage_imputed"]["reliability_by_slide"]
    for name, slide in alone.items():
        own = prepare(slide.copy())
        FUNCTIONS["tl.impute"].call(own, kit)
        expected = own.uns["sage_imputed"]["reliability"]
        found = by_slide[by_slide["slide"] == name].loc[expected.index]
        for column in ("r", "r_beyond_depth", "attainable_r"):
            np.testing.assert_allclose(found[column], expected[column], atol=1e-5, err_msg=f"{name} {column}")


def test_perturbations_by_slide_are_those_of_the_slide_alone(alone, together, kit):
    libraries = together[0].uns["perturb_lr"]["libraries"]
    for name, slide in alone.items():
        own = prepare(slide.copy())
        sg.tl.perturb_lr(own, PAIRS, kit.model, n_controls=0, device="cpu")
        found = libraries[libraries["library"] == name].set_index("pair")
        expected = own.uns["perturb_lr"]["results"]
        for column in ("n_spots", "frac_up", "frac_down", "effect", "mean_delta", "reference_r"):
            np.testing.assert_allclose(
                found.loc[expected.index, column].astype(float), expected[column].astype(float), atol=1e-5
            )


def test_slides_of_one_object_are_evaluated_as_separate_ones(alone, together, kit):
    options = {"n_components": 4, "n_folds": 2, "device": "cpu"}
    separate = [prepare(slide.copy()) for slide in alone.values()]
    pd.testing.assert_frame_equal(
        sg.benchmark.compare_imputation(together[0], kit.model, **options).drop(columns="r2_spot_median"),
        sg.benchmark.compare_imputation(separate, kit.model, **options).drop(columns="r2_spot_median"),
        rtol=1e-4,
    )


def test_the_graphs_key_is_taken_unless_another_is_given(together, kit):
    adata = together[0].copy()
    adata.obs["half"] = np.where(np.arange(adata.n_obs) % 2, "odd", "even")
    sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], kit.model, n_controls=0, device="cpu")
    assert set(adata.uns["perturb_lr"]["libraries"]["library"]) == set(NAMES)
    sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], kit.model, n_controls=0, library_key="half", device="cpu")
    assert set(adata.uns["perturb_lr"]["libraries"]["library"]) == {"odd", "even"}
    sg.tl.impute(adata, ["KRT8"], kit.model, library_key="half", device="cpu")
    assert set(adata.uns["sage_imputed"]["reliability_by_slide"]["slide"]) == {"odd", "even"}
    del adata.obs["library"]
    with pytest.raises(KeyError, match="'library' not in adata.obs"):
        sg.tl.impute(adata, ["KRT8"], kit.model, device="cpu")
