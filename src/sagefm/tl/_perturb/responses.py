"""How predictions respond to clamps, counted over spots."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from sagefm._types import Floats, Floats32, Ints
from sagefm._utils import progress
from sagefm.tl._perturb.clamp import Clamping, Expression, Prediction, combine_subunits

if TYPE_CHECKING:
    from scipy import sparse
    from torch import Tensor

    from sagefm._slides import Libraries
    from sagefm.tl._compute import Rows
    from sagefm.tl._perturb.plan import Clamp
    from sagefm.tl._projection import Projection

CHANGED = 1e-8  # of a predicted log1p count, as in the paper


@dataclass
class ResponseCounts:
    """Responses counted by library, each array of shape (libraries, outputs) unless said otherwise.

    Attributes
    ----------
    n_spots
        Spots of each library, shape (libraries, 1), or by output where these were tried on different spots.
    n_up, n_down
        Spots where the output rises and falls.
    change
        Sum of the changes.
    doses
        Sum of the predictions at every level over all spots, shape (levels, outputs).
    spots
        Change at every spot, shape (spots, outputs), where it is kept.
    """

    n_spots: Ints
    n_up: Floats
    n_down: Floats
    change: Floats
    doses: Floats
    spots: Floats32 | None = None

    def total(self) -> ResponseCounts:
        """Over all libraries, kept as an axis of length 1."""
        added = ("n_spots", "n_up", "n_down", "change")
        parts = {name: getattr(self, name).sum(axis=0, keepdims=True) for name in added}
        return ResponseCounts(**parts, doses=self.doses)

    @property
    def mean_change(self) -> Floats:
        """Mean change over all spots, shape (outputs,)."""
        return self.change.sum(axis=0) / self.n_spots.sum()

    @property
    def effects(self) -> Floats:
        """E = (up - down) / all: over all spots, and then by library, shape (1 + libraries, outputs)."""
        net = self.n_up - self.n_down
        return np.vstack([net.sum(axis=0) / self.n_spots.sum(), net / self.n_spots])


@dataclass(frozen=True)
class Responder:
    """A slide on which clamps can be tried.

    Attributes
    ----------
    projection
        Model and slide.
    expression
        Counts of all genes that a clamp sets, reads or hides.
    to_unclamped
        Whether the highest level of a clamp is compared with the neighbors as they are, not with the lowest level.
    """

    projection: Projection
    expression: Expression
    to_unclamped: bool

    def with_graph(self, graph: sparse.csr_matrix) -> Responder:
        """The same with other neighbors."""
        return replace(self, projection=self.projection.with_graph(graph))

    def count(
        self,
        clamps: Sequence[Clamp],
        masks: Collection[int],
        libraries: Libraries,
        n_outputs: int,
        desc: str,
        *,
        spots: Ints | None = None,
        n_doses: int = 0,
        store_spots: bool = False,
    ) -> ResponseCounts:
        """Try all clamps on every spot, or on some, and count what the outputs do.

        Parameters
        ----------
        clamps
            What to set and read.
        masks
            Sets of the projection that are hidden in the center.
        libraries
            Library of every spot.
        n_outputs
            Outputs of all clamps together.
        desc
            Text of the progress bar.
        spots
            Row numbers of the spots to try; all by default.
        n_doses
            Levels to add up predictions at; 0 for none.
        store_spots
            Keep the change at every spot.
        """
        used = libraries.codes if spots is None else libraries.codes[spots]
        shape = (len(libraries), n_outputs)
        counts = ResponseCounts(
            n_spots=np.bincount(used, minlength=len(libraries))[:, None],
            n_up=np.zeros(shape),
            n_down=np.zeros(shape),
            change=np.zeros(shape),
            doses=np.zeros((n_doses, n_outputs)),
            spots=np.empty((len(used), n_outputs), dtype=np.float32) if store_spots else None,
        )
        if not clamps:
            return counts
        clamping = Clamping(self.projection, self.expression, clamps, masks, unclamped=self.to_unclamped)

        def respond(rows: Rows) -> list[tuple[Floats32, Floats | None]]:
            return list(self._respond(clamping, clamps, rows, n_doses))

        for rows, found in self.projection.map(respond, desc, spots):
            members = libraries.members(rows)
            for clamp, (change, doses) in zip(clamps, found, strict=True):
                counts.n_up[:, clamp.outputs] += members @ (change > CHANGED)
                counts.n_down[:, clamp.outputs] += members @ (change < -CHANGED)
                counts.change[:, clamp.outputs] += members @ change.astype(np.float64)
                if doses is not None:
                    counts.doses[:, clamp.outputs] += doses
                if counts.spots is not None:
                    counts.spots[np.arange(len(used))[rows][:, None], clamp.outputs] = change
        return counts

    def _respond(
        self, clamping: Clamping, clamps: Sequence[Clamp], rows: Rows, n_doses: int
    ) -> Iterator[tuple[Floats32, Floats | None]]:
        """Change of the outputs under each clamp, shape (spots, outputs), and their sums at every level."""
        predictions = progress(clamping.predict(rows), "Clamps", total=len(clamps), unit="clamp")
        for clamp, prediction in zip(clamps, predictions, strict=True):
            doses = None
            if n_doses:
                # A complex is as high as its lowest subunit.
                low = [prediction.levels[:, :, column].amin(2).sum(1) for column in clamp.columns]
                doses = torch.stack(low, 1).cpu().numpy().astype(np.float64)
            yield self._change(clamp, prediction).cpu().numpy(), doses

    def _change(self, clamp: Clamp, prediction: Prediction) -> Tensor:
        """Highest level against what it is compared with, shape (spots, outputs)."""
        low = prediction.unclamped if self.to_unclamped else prediction.levels[0]
        change = prediction.levels[-1] - low
        combined = change.new_empty(len(change), len(clamp.columns))
        for readouts, columns in clamp.by_size:
            combined[:, readouts] = combine_subunits(change[:, columns])
        return combined
