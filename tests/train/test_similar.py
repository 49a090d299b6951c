"""Similar spots in training: whole folds masked, and the mean that sg.tl.impute would show."""

from dataclasses import replace

import literal
import numpy as np
import pytest
import torch

import sagefm as sg
from sagefm.train._pretrain import build
from sagefm.train._similar import draw_folds
from sagefm.train._stream import Stream

OPTIONS = {"batch_size": 1000, "mask_fraction": 0.3}


def read(corpus, name):
    adata = corpus.read(name)
    x = np.log1p(adata.X.toarray().astype(np.float32))
    return x, literal.neighborhoods_of(adata.obsp["sage_connectivities"])


def test_a_fold_is_masked_and_its_similar_mean_shown(corpus):
    ((_, spots),) = Stream(corpus, "validate", similar=1.0, shuffle=False, **OPTIONS)
    folds = draw_folds(spots.mask.shape[1], corpus.sections.loc["s2", "digest"])
    mask = spots.mask[0].numpy()
    assert (spots.mask == spots.mask[0]).all()
    assert (folds[mask] == folds[mask][0]).all()
    assert mask.sum() == (folds == folds[mask][0]).sum()
    x, neighborhoods = read(corpus, "s2")
    expected = literal.similar_mean(x, mask, neighborhoods)
    np.testing.assert_allclose(spots.similar.numpy()[:, mask], expected[:, mask], atol=1e-4)


def test_without_similar_spots_the_neighbors_take_their_place(corpus):
    ((_, spots),) = Stream(corpus, "validate", shuffle=False, **OPTIONS)
    assert not (spots.mask == spots.mask[0]).all()
    mean, shown = spots.neighbor_sum / spots.degree, ~spots.mask
    ratio = (spots.center * shown).sum(1) / (mean * shown).sum(1)
    torch.testing.assert_close(spots.similar, ratio.clamp(0.2, 5)[:, None] * mean)


def test_sections_and_folds_are_drawn_anew_in_each_epoch(corpus):
    """Some sections show a fold, others random masks; the same again with the same seed."""

    def masks(epoch):
        stream = Stream(corpus, "train", similar=0.5, epoch=lambda: epoch, **OPTIONS)
        return torch.cat([spots.mask for _, spots in stream])

    first = masks(0)
    n_sections = len(corpus.names("train"))
    patterns = {mask.numpy().tobytes() for mask in first}
    n_random = sum((first == mask).all(1).sum() == 1 for mask in first)
    assert 0 < n_random < len(first)
    assert len(patterns) < len(first) - n_sections
    assert (masks(0) == first).all()
    assert any((masks(epoch) != first).any() for epoch in range(1, 4))


def test_a_part_of_a_section_has_its_own_similar_spots(corpus):
    """As of a section that is too large to be read at once."""
    stream = Stream(corpus, "validate", batch_size=30, mask_fraction=0.3, similar=1.0, shuffle=False, shuffle_spots=40)
    parts = [spots for _, spots in stream]
    assert len(parts) > 2
    for spots in parts:
        hidden = spots.similar[:, spots.mask[0]]
        assert torch.isfinite(hidden).all()
        assert float(hidden.mean()) == pytest.approx(float(spots.center[:, spots.mask[0]].mean()), rel=0.2)


def test_a_recipe_needs_what_it_shows(slides, tmp_path):
    plain = sg.train.prepare_corpus({"s0": slides["s0"]}, tmp_path / "plain.zarr", split={}, similar=False)
    assert not plain.sections["similar"].any()
    recipe = replace(sg.train.PRESETS["mini"], hidden=(8, 8))
    with pytest.raises(ValueError, match="similar=True"):
        build(plain, recipe)
    build(plain, replace(recipe, similar=0.0))
    with pytest.raises(ValueError, match="similar=2"):
        replace(recipe, similar=2)
