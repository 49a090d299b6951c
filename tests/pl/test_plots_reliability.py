"""Plots of reliability show what they say."""

import numpy as np
import pytest

import sagefm as sg


def test_scatter_sets_what_was_reached_against_what_is_attainable(slide, sage, tmp_path):
    sg.tl.impute(slide, None, sage)
    ax = sg.pl.reliability(slide, save=tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 5_000
    table = slide.uns["sage_imputed"]["reliability"].dropna(subset=["r_beyond_depth", "attainable_r"])
    known = table["share"].notna() & table["testable"]
    groups = [~known, known & ~table["reliable"], table["reliable"]]
    for points, chosen in zip(ax.collections, groups, strict=True):
        expected = np.column_stack([table["attainable_r"].clip(lower=0), table["r_beyond_depth"]])[chosen]
        np.testing.assert_allclose(points.get_offsets(), expected)
        assert points.get_label().endswith(f" ({chosen.sum():,} genes)")
    assert "beyond depth" in ax.get_ylabel()


def test_few_genes_are_all_named(slide, sage):
    sg.tl.impute(slide, ["KRT8", "COL1A1", "CD74"], sage)
    ax = sg.pl.reliability(slide)
    assert {text.get_text() for text in ax.texts} == {"KRT8", "COL1A1", "CD74"}
    ax = sg.pl.reliability(slide, genes="CD74")
    assert [text.get_text() for text in ax.texts] == ["CD74"]
    with pytest.raises(KeyError, match="no gene 'ERBB2'"):
        sg.pl.reliability(slide, genes="ERBB2")


@pytest.mark.parametrize("mask", ["center", "everywhere"])
def test_distribution_shows_the_model_and_what_needs_none(slide, sage, mask):
    sg.tl.impute(slide, None, sage, mask=mask)
    ax = sg.pl.reliability(slide, "distribution")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["depth alone", *["neighbors, scaled by depth"][: mask == "center"], sage.name]
    with pytest.raises(ValueError, match="kind"):
        sg.pl.reliability(slide, "bars")
