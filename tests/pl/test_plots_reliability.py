"""Plots of reliability show what they say."""

import pytest

import sagefm as sg


@pytest.mark.parametrize("kind", ["scatter", "distribution"])
def test_plot(slide, sage, kind, tmp_path):
    sg.tl.impute(slide, None, sage)
    ax = sg.pl.reliability(slide, kind, save=tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 5_000
    assert "neighbours' mean" in ax.get_xlabel() + str([text.get_text() for text in ax.get_legend().get_texts()])
    with pytest.raises(ValueError, match="kind"):
        sg.pl.reliability(slide, "bars")
