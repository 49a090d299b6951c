"""Batches of a corpus: every spot once an epoch, a bounded number of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from sagefm import _keys
from sagefm._types import Ints
from sagefm.models._baselines import depth_scaled
from sagefm.models._masks import RandomMasks
from sagefm.models._spots import Spots
from sagefm.train._corpus import Corpus
from sagefm.train._similar import choose_fold, mean_of_similar

SHUFFLE_SPOTS = 16_384
VALIDATION_EPOCH = 1 << 31  # its masks are the same each time, and none of training's


@dataclass(frozen=True)
class _Tile:
    """Consecutive spots of one section, which is what is read at once."""

    section: str
    rows: slice
    first_spot: int

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    @property
    def spots(self) -> Ints:
        """Number of each spot in the corpus, whatever its split."""
        return np.arange(self.rows.start, self.rows.stop) + self.first_spot


class _Window:
    """The spots of some tiles, dense, with the rows that their neighborhoods need."""

    def __init__(self, corpus: Corpus, tiles: list[_Tile], device: torch.device) -> None:
        import zarr
        from anndata.io import read_elem, sparse_dataset

        store = zarr.open_group(corpus.path, mode="r")
        dense, graphs, rows, n_before = [], [], [], 0
        for tile in tiles:
            group: Any = store[f"section/{tile.section}"]
            graph: Any = read_elem(group["obsp"][_keys.connectivities(_keys.GRAPH)])
            graph = graph[tile.rows]
            own = np.arange(tile.rows.start, tile.rows.stop)
            halo = np.setdiff1d(graph.indices, own)
            counts: Any = sparse_dataset(group["X"])
            block = counts[tile.rows]
            if len(halo):
                block = sparse.vstack([block, counts[np.isin(np.arange(graph.shape[1]), halo)]], format="csr")
            dense.append(_densify(block, device))
            graphs.append(graph[:, np.concatenate([own, halo])])
            rows.append(np.arange(len(tile)) + n_before)
            n_before += block.shape[0]
        self._log_counts = dense[0] if len(dense) == 1 else torch.cat(dense)
        self._graph = sparse.block_diag(graphs, format="csr")
        self._rows = np.concatenate(rows)
        self._corpus, self._tiles = corpus, tiles
        self._similar: _Similar | None = None
        self.numbers = np.concatenate([tile.spots for tile in tiles])

    def __len__(self) -> int:
        return len(self._rows)

    def show_similar(self, share: float, seed: tuple[int, ...]) -> None:
        """Mask a whole fold on a share of the tiles and show its mean over similar spots; others get random masks."""
        self._similar = None  # before the next one takes memory
        shape, device = (len(self), self._log_counts.shape[1]), self._log_counts.device
        mean, mask = torch.zeros(shape, device=device), torch.zeros(shape, dtype=torch.bool, device=device)
        first = 0
        for tile in self._tiles:
            own = slice(first, first := first + len(tile))
            fold = choose_fold(self._corpus, tile.section, share, (*seed, tile.first_spot + tile.rows.start))
            if fold is None:
                continue
            log_counts = self._log_counts[torch.from_numpy(self._rows[own]).to(device)].cpu().numpy()
            hidden, scaled = mean_of_similar(self._corpus, tile.section, tile.rows, fold, log_counts)
            at = torch.from_numpy(hidden).to(device)
            mask[own] = at
            mean[own, at] = torch.from_numpy(scaled).to(device)
        self._similar = _Similar(mean, mask)

    def spots(self, chosen: Ints, masks: RandomMasks) -> Spots:
        """Some spots of the window, counted from 0."""
        device = self._log_counts.device
        graph = self._graph[chosen]
        parts = (graph.indices, graph.indptr, self._rows[chosen], chosen)
        neighbors, starts, rows, at = (torch.from_numpy(part.astype(np.int64)).to(device) for part in parts)
        spots = Spots(
            center=self._log_counts.index_select(0, rows),
            neighbor_sum=F.embedding_bag(neighbors, self._log_counts, starts, mode="sum", include_last_offset=True),
            degree=starts.diff()[:, None].float(),
            mask=masks(self.numbers[chosen]),
        )
        mask, alike = spots.mask, None
        if self._similar is not None:
            alike, of_fold = (part.index_select(0, at) for part in self._similar)
            at_random = ~of_fold.any(1, keepdim=True)
            mask = torch.where(at_random, mask, of_fold)
        around = depth_scaled(spots.center.masked_fill(mask, 0), spots.neighbor_mean, mask)
        return spots._replace(mask=mask, similar=around if alike is None else torch.where(at_random, around, alike))


class _Similar(NamedTuple):
    """Means of a fold over the spots similar to each, at its depth, and the fold, shape (spots, genes)."""

    mean: Tensor
    mask: Tensor


def _densify(counts: sparse.csr_matrix, device: torch.device) -> Tensor:
    """Dense log1p counts on the device, which gets the sparse ones."""
    values = counts.data.astype(np.float32)
    if device.type == "cpu":
        return torch.from_numpy(
            sparse.csr_matrix((np.log1p(values), counts.indices, counts.indptr), counts.shape).toarray()
        )
    rows = torch.from_numpy(counts.indptr.astype(np.int64)).to(device)
    columns = torch.from_numpy(counts.indices.astype(np.int64)).to(device)
    values_there = torch.from_numpy(values).to(device).log1p()
    return torch.sparse_csr_tensor(rows, columns, values_there, size=counts.shape).to_dense()


class Stream:
    """Batches of one split of a corpus, for one of several processes.

    Sections are shuffled and read in windows of about ``shuffle_spots`` spots, dense in memory (58 kB a spot, and as
    much again for similar spots), and shuffled again there. A split that fits into one window is read once. Order and
    masks follow from the seed and the epoch alone: not from the number of processes, nor from where a run was
    interrupted.

    Parameters
    ----------
    corpus, split
        What to read.
    batch_size
        Spots of a batch, over all processes together.
    mask_fraction
        Share of the center's genes to mask.
    similar
        Share of the sections on which a whole fold is masked instead, and its mean over similar spots shown. On the
        others the neighbors take the place of the similar spots.
    seed
        Seed of order and masks.
    shuffle
        Off for validation, where a batch holds spots of one section, in order.
    shuffle_spots
        Spots of a window; it may hold two batches more, and the neighbors of a part of a section.
    rank, world_size
        Which share of every batch to give.
    device
        Where the batches are made.
    epoch
        Returns the number of the epoch that begins.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        *,
        batch_size: int,
        mask_fraction: float,
        similar: float = 0.0,
        seed: int = 0,
        shuffle: bool = True,
        shuffle_spots: int = SHUFFLE_SPOTS,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.corpus, self.batch_size, self.mask_fraction, self.seed = corpus, batch_size, mask_fraction, seed
        self.shuffle, self.rank, self.world_size, self.epoch = shuffle, rank, world_size, epoch
        self.similar = similar
        self.device = torch.device(device)
        self.first_batch = 0
        """Batch that the next iteration begins with, to resume in the middle of an epoch."""
        if shuffle_spots < batch_size:
            raise ValueError(f"shuffle_spots={shuffle_spots} has to be at least batch_size={batch_size}.")
        first_spots = np.cumsum([0, *corpus.sections["n_spots"]])
        self._tiles = []
        for name in corpus.names(split):
            n, first = int(corpus.sections.loc[name, "n_spots"]), int(first_spots[corpus.sections.index.get_loc(name)])
            n_tiles = -(-n // shuffle_spots)
            edges = np.linspace(0, n, n_tiles + 1).astype(int)
            for start, stop in pairwise(edges):
                self._tiles.append(_Tile(name, slice(int(start), int(stop)), first))
        self._shuffle_spots = shuffle_spots
        self._held: tuple[list[_Tile], _Window] | None = None

    def __len__(self) -> int:
        return sum(n_batches for _, n_batches in self._plan(self.epoch()))

    def __iter__(self) -> Iterator[tuple[str, Spots]]:
        epoch = self.epoch()
        seed = (self.seed, epoch if self.shuffle else VALIDATION_EPOCH)
        masks = RandomMasks(len(self.corpus.vocabulary), self.mask_fraction, seed, self.device)
        batch, self.first_batch, first = 0, 0, self.first_batch
        for tiles, n_batches in self._plan(epoch):
            if batch + n_batches <= first:
                batch += n_batches  # done before the interruption, not read
                continue
            window = self._read(tiles)
            if self.similar:
                window.show_similar(self.similar, seed)
            order = np.arange(len(window))
            if self.shuffle:
                np.random.default_rng((self.seed, epoch, int(window.numbers[0]))).shuffle(order)
            # Batches of nearly one size, rather than a last one of a few spots.
            for chosen in np.array_split(order, n_batches):
                if batch >= first:
                    share = np.array_split(chosen, self.world_size)[self.rank]
                    yield tiles[0].section, window.spots(share, masks)
                batch += 1

    def _plan(self, epoch: int) -> list[tuple[list[_Tile], int]]:
        """Tiles that are in memory at a time, in the epoch's order, and how many batches their spots make."""
        if not self.shuffle:
            return [([tile], -(-len(tile) // self.batch_size)) for tile in self._tiles]
        windows: list[list[_Tile]] = [[]]
        if sum(len(tile) for tile in self._tiles) <= self._shuffle_spots:
            windows = [self._tiles]  # stays in memory
        else:
            for i in np.random.default_rng((self.seed, epoch)).permutation(len(self._tiles)):
                tile = self._tiles[i]
                n_held = sum(len(held) for held in windows[-1])
                # No window is smaller than a batch.
                if n_held >= self.batch_size and n_held + len(tile) > self._shuffle_spots:
                    windows.append([])
                windows[-1].append(tile)
            if len(windows) > 1 and sum(len(tile) for tile in windows[-1]) < self.batch_size:
                last = windows.pop()
                windows[-1] += last
        # As many batches in every epoch, however the windows fall: Lightning and the schedules count on it.
        ends = np.cumsum([sum(len(tile) for tile in tiles) for tiles in windows])
        n_batches = np.diff(-(-ends // self.batch_size), prepend=0)
        return list(zip(windows, n_batches.tolist(), strict=True))

    def _read(self, tiles: list[_Tile]) -> _Window:
        if self._held is None or self._held[0] != tiles:
            self._held = None  # before the next one takes memory
            self._held = (tiles, _Window(self.corpus, tiles, self.device))
        return self._held[1]
