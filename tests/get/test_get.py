"""Tidy tables are the recorded ones, filtered and in the order asked for."""

import numpy as np
import pandas as pd
import pytest

import sagefm as sg

GENES = ["KRT8", "CD74", "COL1A1"]


@pytest.fixture(scope="module")
def _done(_slide, tiny):
    slide = _slide.copy()
    slide.obs["half"] = np.where(slide.obs["array_row"] < 5, "up", "down")
    sg.pp.neighborhood_graph(slide, library_key="half")
    sg.tl.impute(slide, GENES, tiny, intervals=0.8)
    pairs = [("TGFB1", "TGFBR2"), ("CXCL12", "CXCR4"), ("X", "Y")]
    sg.tl.perturb_lr(slide, pairs, tiny, n_controls=5, n_levels=3)
    sg.tl.perturb_targets(slide, {"TGFB1": ["COL1A1", "FN1"], "CXCL12": ["CXCR4"]}, tiny, n_controls=5)
    sg.tl.cluster_markers(slide, "domain")
    sg.pp.assess(slide, "sagefm-mini")
    return slide


@pytest.fixture
def done(_done):
    """Slide with all results, the test's own copy."""
    return _done.copy()


def test_reliability_is_in_the_order_asked_for(done):
    table = sg.get.reliability(done)
    assert table["gene"].tolist() == GENES
    pd.testing.assert_frame_equal(table.set_index("gene"), done.uns["sage_imputed"]["reliability"], check_names=False)
    assert sg.get.reliability(done, "CD74")["gene"].tolist() == ["CD74"]
    assert sg.get.reliability(done, GENES[::-1])["gene"].tolist() == GENES[::-1]
    with pytest.raises(KeyError, match="no gene 'ERBB2' in adata.uns"):
        sg.get.reliability(done, ["CD74", "ERBB2"])
    by_slide = sg.get.reliability(done, GENES, by_slide=True)
    assert len(by_slide) == 2 * len(GENES)
    assert set(by_slide["slide"]) == {"up", "down"}


def test_intervals_are_in_the_order_asked_for(done):
    for key in ("sage_imputed_lower", "sage_imputed_upper"):
        assert list(done.obsm[key]) == GENES
    assert done.uns["sage_imputed"]["intervals"].index.tolist() == GENES


@pytest.mark.parametrize("reliable", [True, False])
def test_reliable_genes(done, reliable):
    recorded = done.uns["sage_imputed"]["reliability"]
    recorded["reliable"] = [True, False, True]
    table = sg.get.reliability(done, reliable=reliable)
    assert (table["reliable"] == reliable).all()
    assert set(sg.get.reliability(done, reliable=True, by_slide=True)["gene"]) == {"KRT8", "COL1A1"}


def test_pairs(done):
    table = sg.get.perturb_lr(done)
    assert table["pair"].tolist() == ["TGFB1|TGFBR2", "CXCL12|CXCR4", "X|Y"]
    assert table["verdict"].tolist() == done.uns["perturb_lr"]["results"]["verdict"].tolist()
    testable = sg.get.perturb_lr(done, verdict="not testable")
    assert "X|Y" in testable["pair"].tolist()
    assert sg.get.perturb_lr(done, "CXCL12|CXCR4")["pair"].tolist() == ["CXCL12|CXCR4"]
    by_slide = sg.get.perturb_lr(done, ["CXCL12|CXCR4"], by="slide")
    assert set(by_slide["library"]) == {"up", "down"}
    assert by_slide["verdict"].nunique() == 1
    assert sg.get.perturb_lr(done, "CXCL12|CXCR4", by="level")["level"].tolist() == [0, 1, 2]
    with pytest.raises(KeyError, match="no pair 'A.B'"):
        sg.get.perturb_lr(done, "A|B")
    del done.uns["perturb_lr"]["doses"]
    with pytest.raises(KeyError, match=r"Run sg.tl.perturb_lr\(adata, \.\.\., n_levels=5\) first"):
        sg.get.perturb_lr(done, by="level")


def test_targets(done):
    assert sg.get.perturb_targets(done, ["CXCL12", "TGFB1"])["target"].tolist() == ["CXCR4", "COL1A1", "FN1"]
    tests = sg.get.perturb_targets(done, "TGFB1", tests=True)
    assert set(tests["gene"]) == {"TGFB1"}
    assert set(sg.get.perturb_targets(done, by_slide=True)["library"]) == {"up", "down"}
    with pytest.raises(ValueError, match="either"):
        sg.get.perturb_targets(done, tests=True, by_slide=True)


def test_card(done):
    table = sg.get.assessment(done)
    assert table["check"].tolist() == done.uns["sage_assessment"]["checks"].index.tolist()
    assert sg.get.assessment(done, by_slide=True)["slide"].tolist() == ["down", "up"]


def test_markers(done):
    recorded = done.uns["sage_cluster_markers"]["results"]
    table = sg.get.markers(done, "immune")
    expected = recorded.query("cluster == 'immune' and padj <= 0.05 and log2_fold_change > 0")
    assert table["gene"].tolist() == expected["gene"].tolist()
    assert len(sg.get.markers(done, max_padj=1, min_log2_fold_change=-np.inf)) == recorded["padj"].notna().sum()
    with pytest.raises(KeyError, match="no cluster 'bone'"):
        sg.get.markers(done, "bone")


def test_markers_as_gene_sets(done):
    sets = sg.get.marker_sets(done, n_genes=3)
    assert sets.columns.tolist() == ["source", "target", "weight"]  # decoupler's names
    assert sets["source"].value_counts().max() <= 3
    first = sg.get.markers(done, "immune").iloc[0]
    own = sets[sets["source"] == "immune"].iloc[0]
    assert own[["target", "weight"]].tolist() == [first["gene"], first["score"]]
    assert len(sg.get.marker_sets(done, n_genes=None)) == len(sg.get.markers(done))


@pytest.mark.parametrize("name", sg.get.__all__)
def test_what_was_not_run_is_asked_for(slide, name):
    with pytest.raises(KeyError, match=r"Run sg\.(tl|pp)\.\w+\(adata"):
        getattr(sg.get, name)(slide)
    with pytest.raises(KeyError, match=r"Run sg\.(tl|pp)\.\w+\(adata.*key_added='mine'\)"):  # not over the default's
        getattr(sg.get, name)(slide, key="mine")
