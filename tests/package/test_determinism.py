"""The same answer every time: what docs/determinism.md promises."""

import os
import subprocess
import sys

import anndata as ad
import catalogue
import joblib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import sagefm as sg
from sagefm.models._vocabulary import hest1k

TOLERANCE = 1e-5  # of the largest value


@pytest.fixture
def threads():
    """Number of threads of torch, as it was afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue.FUNCTIONS)
def test_a_repeated_call_is_bit_identical_and_leaves_the_global_generators(bench, name):
    """Whatever numpy's and torch's global seeds are, and without moving them."""
    function, adata = catalogue.FUNCTIONS[name], bench.plain.copy()
    for slot in function.writes:
        catalogue.remove(adata, slot)
    np.random.seed(1)  # noqa: NPY002 the global generator is what must not matter
    torch.manual_seed(1)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    returned = function.call(adata, bench.kit)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002
    for slot, value in bench.written[name].items():
        assert catalogue.equal(value, catalogue.get(adata, slot), tolerance=0), slot
    assert catalogue.equal(bench.returned[name], returned, tolerance=0)


# Of functions that choose at random: the call with a seed, and what depends on it.
SEEDED = {
    "tl.annotate": (
        lambda a, k, seed: sg.tl.annotate(a, "domain", group_key="donor", rng=seed),
        "obsm/sage_annotation",
    ),
    "tl.cluster": (lambda a, k, seed: sg.tl.cluster(a, "X_noise", n_clusters=6, rng=seed), "obs/sage_cluster"),
    "tl.composition": (
        lambda a, k, seed: sg.tl.composition(a, "likelihood", n_epochs=1, group_key="donor", rng=seed, device="cpu"),
        "obsm/sage_composition",
    ),
    "tl.perturb_lr": (
        lambda a, k, seed: sg.tl.perturb_lr(a, catalogue.PAIRS, k.model, **{**catalogue.SCREEN, "rng": seed}),
        "uns/perturb_lr/results",
    ),
    "tl.perturb_targets": (
        lambda a, k, seed: sg.tl.perturb_targets(
            a, {"CXCL12": ["CXCR4"]}, k.model, control_spots=20, rng=seed, device="cpu"
        ),
        "uns/perturb_targets/controls",
    ),
    "benchmark.evaluate_imputation": (
        lambda a, k, seed: sg.benchmark.evaluate_imputation(a, k.model, rng=seed, device="cpu"),
        "",
    ),
    "benchmark.evaluate_annotation": (
        lambda a, k, seed: sg.benchmark.evaluate_annotation(
            a, "domain", "X_sage", classifier="mlp", n_bootstraps=2, rng=seed
        ),
        "",
    ),
    "datasets.simulated_visium": (lambda a, k, seed: sg.datasets.simulated_visium(4, 4, n_genes=300, rng=seed).X, ""),
}


SLOW = {"tl.annotate", "benchmark.evaluate_imputation"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SEEDED]
)
def test_a_seed_fixes_every_random_choice(bench, name):
    call, slot = SEEDED[name]

    def run(seed):
        adata = bench.plain.copy()
        adata.obsm["X_noise"] = np.random.default_rng(0).normal(size=(adata.n_obs, 8))
        returned = call(adata, bench.kit, seed)
        return catalogue.get(adata, slot) if slot else returned

    first = run(3)
    assert catalogue.equal(first, run(3), tolerance=0)
    assert not catalogue.equal(first, run(4), tolerance=0)  # so there was a choice


def test_a_generator_is_a_seed(bench):
    found = []
    for rng in (5, np.random.default_rng(5)):
        adata = bench.plain.copy()
        sg.tl.cluster(adata, n_clusters=4, rng=rng)
        found.append(adata.obs["sage_cluster"])
    assert found[0].equals(found[1])


SIZE = st.integers(1, 200)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=SIZE,
    n_threads=st.integers(1, 4),
    spots=st.permutations(range(110)),
    seed=st.integers(0, 2**16),
    others=st.integers(0, 2),
    container=st.sampled_from([np.asarray, sparse.csr_matrix, sparse.csc_matrix, np.asfortranarray]),
)
@pytest.mark.parametrize("family", ["tiny", "sage"])
def test_embeddings_are_of_the_neighborhood_alone(
    bench, threads, family, batch_size, n_threads, spots, seed, others, container, request
):
    """Not of batches, threads, the order of spots and genes, the container, or other slides in the object."""
    model = bench.kit.model if family == "sage" else request.getfixturevalue("small_gcn")
    plain = bench.plain
    expected = plain.copy()
    sg.tl.sage_embed(expected, model, device="cpu")
    rng = np.random.default_rng(seed)
    slide = ad.AnnData(plain.X.copy(), obs=plain.obs[["array_row", "array_col"]], var=plain.var[["gene_ids"]])
    slide.obsm["spatial"] = plain.obsm["spatial"]
    slide = slide[spots][:, rng.permutation(plain.n_vars)].copy()
    parts = {"this": slide}
    for number in range(others):
        other = sg.datasets.simulated_visium(5, 5, n_genes=400, rng=number)
        parts[f"other {number}"] = other
    both = ad.concat(parts, label="slide", join="outer", index_unique="-", merge="first")
    both.X = container(both.X.toarray())
    sg.pp.neighborhood_graph(both, library_key="slide")
    threads(n_threads)
    sg.tl.sage_embed(both, model, device="cpu", batch_size=batch_size)
    found = both.obsm["X_sage"][(both.obs["slide"] == "this").to_numpy()]
    expected = expected.obsm["X_sage"][spots]
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.fixture(scope="session")
def small_gcn():
    """Random model of the published architecture on the catalogue's genes."""
    slide = catalogue.plain_slide()
    vocabulary = catalogue.make_kit(slide).model.vocabulary
    torch.manual_seed(0)
    network = sg.models.GCN(len(vocabulary), (16, 8, 8, 8, 12)).requires_grad_(False).eval()
    return sg.models.Model("gcn", network, vocabulary)


def test_real_sections_alone_or_together(section, threads):
    """The shipped model, on sections of other genes and depths whose genes are named alike."""
    names = ["her2st_G2", "CRC_16"]
    slides = {name: section(name)[:300].copy() for name in names}
    symbols = np.array(hest1k().symbols)
    for slide in slides.values():
        sg.pp.align_genes(slide)
        known = slide.var["sage_gene"] >= 0
        slide.var_names = slide.var_names.where(~known, symbols[slide.var["sage_gene"]])
        slide.var_names_make_unique()
        sg.pp.neighborhood_graph(slide, "knn")
        sg.tl.sage_embed(slide, "sagefm-mini", device="cpu")
    both = ad.concat(slides, label="section", join="outer", index_unique="-")
    sg.pp.neighborhood_graph(both, "knn", library_key="section")
    threads(1)
    sg.tl.sage_embed(both, "sagefm-mini", device="cpu", batch_size=77)
    for name, slide in slides.items():
        found = both.obsm["X_sage"][(both.obs["section"] == name).to_numpy()]
        assert np.abs(found - slide.obsm["X_sage"]).max() <= TOLERANCE * np.abs(found).max()


def test_slides_whose_genes_are_named_differently_are_told(section, log):
    """Joined, the columns of the one's former symbols aren't read."""
    slides = {name: section(name)[:20].copy() for name in ("her2st_G2", "CRC_16")}
    for slide in slides.values():
        sg.pp.align_genes(slide)
        assert len(slide.uns["sage_genes"]["ignored"]) <= 5
    assert "not read" not in log.text
    both = ad.concat(slides, join="outer", index_unique="-")
    sg.pp.align_genes(both)
    ignored = set(both.uns["sage_genes"]["ignored"])
    assert "FAM132A" in ignored
    assert len(ignored - set(slides["her2st_G2"].uns["sage_genes"]["ignored"])) == 243  # as docs/determinism.md says
    assert "columns are not read" in log.text


PIPELINE = """
import sys
import joblib
import sagefm as sg
sg.settings.progress_bars, sg.settings.verbosity = False, "ERROR"
adata = sg.datasets.simulated_visium(10, 10, n_genes=8000, rng=0)
sg.pp.neighborhood_graph(adata)
sg.tl.sage_embed(adata, "sagefm-mini", device="cpu")
sg.tl.impute(adata, ["COL1A1", "KRT8", sorted(adata.uns["sage_genes"]["missing"])[0]], "sagefm-mini", device="cpu")
sg.tl.cluster(adata, n_clusters=3)
sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], "sagefm-mini", n_controls=5, device="cpu")
parts = [adata.obsm["X_sage"], adata.layers["sage_imputed"], adata.obsm["sage_imputed"].to_numpy()]
parts += [adata.obs["sage_cluster"].astype(str).tolist(), adata.uns["perturb_lr"]["results"].to_csv()]
print(joblib.hash(parts))
"""


@pytest.mark.process
def test_another_process_gives_the_same_bits():
    """Python draws another order of sets in each process."""
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    env = {**os.environ, "PYTHONHASHSEED": other}
    done = subprocess.run([sys.executable, "-c", PIPELINE], env=env, capture_output=True, text=True, check=True)
    here: dict[str, object] = {}
    exec(PIPELINE, here)
    assert done.stdout.strip().splitlines()[-1] == joblib.hash(here["parts"])
