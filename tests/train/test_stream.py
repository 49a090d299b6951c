"""The stream of neighborhoods that training reads."""

import numpy as np
import pytest
import torch

from sagefm.train._stream import Stream


def numbers(stream):
    """Which spots each batch holds, by their counts."""
    return [[row.numpy().tobytes() for row in spots.center] for _, spots in stream]


def stream(corpus, **options):
    return Stream(corpus, "train", **{"batch_size": 30, "mask_fraction": 0.3, "shuffle_spots": 150, **options})


def test_every_spot_once_an_epoch_in_an_order_of_the_seed(corpus):
    epoch = [0]
    chosen = stream(corpus, epoch=lambda: epoch[0])
    first = numbers(chosen)
    spots = [spot for batch in first for spot in batch]
    assert len(spots) == len(set(spots)) == corpus.sections.loc[corpus.names("train"), "n_spots"].sum()
    assert len(first) == len(chosen)
    assert {len(batch) for batch in first} <= set(range(20, 41))
    assert numbers(chosen) == first
    epoch[0] = 1
    second = numbers(chosen)
    assert second != first
    assert len(second) == len(first)
    assert {spot for batch in second for spot in batch} == set(spots)
    assert numbers(stream(corpus, seed=1)) != first


@pytest.mark.slow
@pytest.mark.parametrize("shuffle_spots", [10_000, 150, 37])
def test_neighborhoods_are_whole_whatever_is_in_memory(corpus, shuffle_spots):
    """Windows of a part of a section read the neighbors beyond it."""
    expected = {}
    for adata in corpus.iter_sections("train"):
        x = np.log1p(adata.X.toarray().astype(np.float32))
        sums = adata.obsp["sage_connectivities"] @ x
        expected |= {row.tobytes(): total for row, total in zip(x, sums, strict=True)}
    held = []
    chosen = stream(corpus, shuffle_spots=shuffle_spots)
    for _, spots in chosen:
        for center, neighbor_sum in zip(spots.center.numpy(), spots.neighbor_sum.numpy(), strict=True):
            np.testing.assert_allclose(neighbor_sum, expected[center.tobytes()], atol=1e-4)
        assert (spots.degree == 14).all()
        held.append(len(chosen._held[1]))
    assert max(held) <= shuffle_spots + 2 * chosen.batch_size


@pytest.mark.slow
def test_processes_share_each_batch(corpus):
    whole = list(stream(corpus))
    shares = [list(stream(corpus, rank=rank, world_size=3)) for rank in range(3)]
    for (_, spots), *parts in zip(whole, *shares, strict=True):
        for name in ("center", "neighbor_sum", "degree", "mask"):
            together = torch.cat([getattr(part, name) for _, part in parts])
            assert torch.equal(together, getattr(spots, name)), name


@pytest.mark.parametrize("n_done", [1, 6, 9])
def test_stream_resumes_at_a_batch(corpus, n_done):
    whole, rest = stream(corpus), stream(corpus)
    rest.first_batch = n_done
    assert numbers(rest) == numbers(whole)[n_done:]
    assert numbers(rest) == numbers(whole), "only the first epoch begins late"
