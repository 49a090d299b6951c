"""Pairs of ligands and receptors, and complexes."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sagefm as sg
from sagefm.tl._perturb.clamp import combine_subunits
from sagefm.tl._perturb.interactions import read_interactions


@given(st.lists(st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_complexes_change_as_their_least_changed_subunit(changes):
    combined = combine_subunits(torch.tensor(changes)).numpy()
    for row, value in zip(changes, combined, strict=True):
        if min(row) > 0 or max(row) < 0:
            assert abs(value) == pytest.approx(min(map(abs, row)))
            assert np.sign(value) == np.sign(row[0])
        else:
            assert value == 0


def test_paper_pairs():
    pairs = sg.datasets.paper_interactions()
    assert len(pairs) == 34
    assert (pairs["ligand"] + "R" == pairs["receptor"]).all()
    assert set(pairs.loc[~pairs["is_ligand_receptor"], "ligand"]) == {"AHR", "GCK", "MTR", "ADA", "HIP1", "INSR"}
    assert (
        read_interactions(None)
        == read_interactions("paper")
        == list(zip(pairs["ligand"], pairs["receptor"], strict=True))
    )


def test_pairs_from_tables_and_liana():
    table = pd.DataFrame({"source": ["A", "B"], "target": ["C", "D"], "more": 1})
    assert read_interactions(table) == [("A", "C"), ("B", "D")] == read_interactions([("A", "C"), ["B", "D"]])
    table = table.assign(ligand_complex=["A_E", "B"], receptor_complex=["C", "D"])  # as LIANA's results
    assert read_interactions(table) == [("A_E", "C"), ("B", "D")]
    for text in ("CXCL12-CXCR4", "CXCL12|CXCR4", "CXCL12^CXCR4", "CXCL12 | CXCR4"):
        assert read_interactions([text]) == read_interactions(text) == [("CXCL12", "CXCR4")]
    assert read_interactions(["HLA-A|CD8A"]) == [("HLA-A", "CD8A")]
    with pytest.raises(TypeError, match="'HLA-A-CD8A'"):
        read_interactions(["HLA-A-CD8A"])
    pytest.importorskip("liana")
    consensus = read_interactions("consensus")
    assert len(consensus) > 4500
    assert ("LGALS9", "PTPRC") in consensus
    with pytest.raises(KeyError, match="neither 'paper' nor a resource"):
        read_interactions("nonsense")


def test_a_model_is_no_database(slide):
    with pytest.raises(ValueError, match="pass it as model='sagefm-mini'"):
        sg.tl.perturb_lr(slide, "sagefm-mini")
    with pytest.raises(ValueError, match="pass it as model='sagefm-mini'"):
        sg.tl.impute(slide, "sagefm-mini")
