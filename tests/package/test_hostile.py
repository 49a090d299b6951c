"""Bad and odd slides, arguments and files: each is either right or an error that says what is wrong."""

import dataclasses
import re

import catalogue
import pytest
from catalogue import FUNCTIONS, ODDITIES, PLOTS, SAME
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sagefm as sg

ALL = FUNCTIONS | PLOTS

# Of so many oddities one, here; tools/hostile.py has them all. What reads the counts has one way of doing so.
SHARE = 8


def test_the_catalogue_is_large_and_names_each_input_once():
    names = [oddity.name for oddity in ODDITIES]
    assert len(names) == len(set(names)) >= 80
    readers = {name: sum(bool(oddity.spoils & function.reads) for oddity in ODDITIES) for name, function in ALL.items()}
    assert min(readers.values()) >= 3, readers


# These take seconds: the fast tier gives them a few inputs, the slow one as many as any other function.
SLOW = {
    "pp.from_pseudospots",
    "pp.neighborhood_graph",
    "pp.pseudospots",
    "tl.gene_sensitivity",
    "tl.impute",
    "tl.perturb_lr",
    "tl.perturb_targets",
    "benchmark.compare_imputation",
    "benchmark.evaluate_annotation",
    "benchmark.evaluate_imputation",
    "benchmark.missingness_curve",
}
FEW = 2
ZARR = "read from .zarr"  # writing all that the slide holds takes 15 seconds


def odd_inputs(name):
    """Inputs of a function's tests, others for each function."""
    reading = [oddity for oddity in ODDITIES if oddity.spoils & ALL[name].reads and oddity.name != ZARR]
    share = SHARE if len(reading) > 20 else 1
    return reading[sum(map(ord, name)) % share :: share]


@pytest.mark.parametrize("name", ALL)
def test_every_odd_slide_is_read_right_or_refused(bench, name):
    assert not find_wrong(bench, name, odd_inputs(name)[: FEW if name in SLOW else None])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_slide_from_zarr_is_read_right(bench, name):
    (oddity,) = (oddity for oddity in ODDITIES if oddity.name == ZARR)
    assert not find_wrong(bench, name, [oddity] if oddity.spoils & ALL[name].reads else [])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOW))
def test_all_odd_slides_are_read_right_or_refused(bench, name):
    assert not find_wrong(bench, name, odd_inputs(name)[FEW:])


def find_wrong(bench, name, reading):
    """Inputs that a function neither reads right nor refuses."""
    return {
        oddity.name: (outcome.text, outcome.detail)
        for oddity in reading
        if (outcome := bench.trial(oddity, name)).kind == "wrong"
    }


# Containers that say the same, on top of anything else that is odd; those that lie in a file are written once.
CONTAINERS = [
    oddity
    for oddity in ODDITIES
    if (oddity.spoils, oddity.expect) == ({"counts"}, SAME) and not re.search("view|backed|float16|uint", oddity.name)
]
OTHERS = [oddity for oddity in ODDITIES if (oddity.spoils and not oddity.spoils & {"counts"}) or oddity.name == "NaN"]
QUICK = ["pp.neighborhood_graph, knn", "tl.sage_embed", "tl.impute", "tl.gene_sensitivity", "tl.nichepca_embed"]


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(container=st.sampled_from(CONTAINERS), other=st.sampled_from(OTHERS), name=st.sampled_from(QUICK))
def test_odd_slides_in_odd_containers(bench, container, other, name):
    """What a function does with a slide hangs on what it says, not on how it is held."""

    def change(adata):
        changed = other.change(adata)
        adata = adata if changed is None else changed
        container.change(adata)
        return adata

    both = dataclasses.replace(
        other,
        name=f"{other.name}, {container.name}",
        change=change,
        # No container hides what is wrong; of what is odd but right only the values may change.
        but={key: other.expected(key, function) for key, function in ALL.items()},
    )
    outcome = bench.trial(both, name)
    assert outcome.kind != "wrong", (both.name, outcome)


def test_the_bench_sees_what_is_wrong(bench, monkeypatch):
    """A function that changes the slide before it refuses, one that fails inside numpy, one that takes anything."""
    broken = {
        "changes": lambda a, k: (a.obs.insert(0, "mark", 1), sg.tl.sage_embed(a, k.model)),
        "fails inside": lambda a, k: a.X.toarray().reshape(7, -1),
        "takes anything": lambda a, k: None,
        "gives something else": lambda a, k: sg.tl.sage_embed(a, k.model, connectivity_key="by_library"),
    }
    writes = FUNCTIONS["tl.sage_embed"].writes
    nan = next(oddity for oddity in ODDITIES if oddity.name == "NaN")
    same = next(oddity for oddity in ODDITIES if oddity.name == "dense counts")
    for name, call in broken.items():
        written = writes if name == "gives something else" else ()
        function = catalogue.Function(call, written, frozenset({"counts"}))
        monkeypatch.setitem(catalogue.FUNCTIONS, name, function)
        bench.returned[name] = None
        bench.written[name] = {slot: bench.written["tl.sage_embed"][slot] for slot in written}
        oddity = same if name == "gives something else" else nan
        assert bench.trial(oddity, name).kind == "wrong", name
