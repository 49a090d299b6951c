"""Where and how a tool computes: its device, its precision, and blocks of spots that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar, get_args

import torch

from sagefm._settings import ROWS_AT_A_TIME, logger
from sagefm._types import Ints, Precision
from sagefm._utils import check_choice, check_whole, get_device, progress_bar

T = TypeVar("T")
Rows = slice | Ints


@dataclass
class Compute:
    """Where and how products are computed. One object for a whole call, so that all of it learns of a full device.

    Attributes
    ----------
    device
        Where products are computed.
    precision
        Of the products; sums over neighbors are float32 always.
    batch_size
        Spots at a time. It shrinks when the device runs out of memory, and stays small for the rest of the call.
    """

    device: torch.device
    precision: Precision = "float32"
    batch_size: int = ROWS_AT_A_TIME

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and products."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def blocks(self, n: int) -> Iterator[slice]:
        """Blocks of n rows, for what happens on the host and needs no retries."""
        for start in range(0, n, self.batch_size):
            yield slice(start, min(start + self.batch_size, n))

    def map(self, fn: Callable[[Rows], T], desc: str, n: int, spots: Ints | None = None) -> Iterator[tuple[Rows, T]]:
        """See :meth:`Projection.map`."""
        start, n = 0, n if spots is None else len(spots)
        with progress_bar(desc, n, "spot") as bar:
            while start < n:
                block = slice(start, min(start + self.batch_size, n))
                rows = block if spots is None else spots[block]
                failure, before = None, torch.get_float32_matmul_precision()
                if self.precision == "tf32":
                    torch.set_float32_matmul_precision("high")
                try:
                    result = fn(rows)
                except torch.OutOfMemoryError as error:
                    failure = error.with_traceback(None)  # its frames hold on to the memory that is to be freed
                finally:
                    torch.set_float32_matmul_precision(before)
                if failure is not None:
                    self._shrink(block.stop - start, failure)
                    continue
                yield rows, result
                start = block.stop
                bar.update(block.stop - block.start)

    def _shrink(self, n: int, error: torch.OutOfMemoryError) -> None:
        """Halve the blocks after one of n spots didn't fit."""
        if n < 2:
            raise error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch_size = -(-n // 2)
        logger.warning("%s: out of memory with %d spots at a time; going on with %d.", self.device, n, self.batch_size)


def get_compute(device: str, batch_size: int | None, dtype: str = "float32", default: int = ROWS_AT_A_TIME) -> Compute:
    """Check what the user said about device, batch size and precision."""
    rows = default if batch_size is None else check_whole("batch_size", batch_size, 1)
    check_choice("dtype", dtype, get_args(Precision))
    found = get_device(device)
    if dtype == "tf32" and found.type != "cuda":
        raise ValueError(f"dtype='tf32' is a mode of CUDA GPUs, and this runs on {found}; use 'float32'.")
    if dtype == "bfloat16" and found.type == "cpu" and not _multiplies_bfloat16():
        logger.warning(
            "This CPU can't multiply bfloat16, so torch does it number by number; dtype='float32' is far faster."
        )
    return Compute(found, dtype, rows)  # type: ignore[arg-type]


def _multiplies_bfloat16() -> bool:
    """Whether oneDNN has kernels for the CPU; without them torch multiplies number by number."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
