"""Around Lightning's trainer: where it logs, what it keeps to itself, and how it is interrupted."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from sagefm._settings import logger

# What Lightning warns of that is meant so, or its own affair.
ADVICE = (
    ".*does not have many workers",
    ".*lr_scheduler.step",
    ".*treespec",
    ".*smaller than the logging interval",
    ".*sync_dist",  # every process validates on everything
    ".*Checkpoint directory .* exists",
    ".*dataloader is not resumable",  # ours goes on where it was
)


def loggers(folder: Path) -> list[Any]:
    """CSV always, TensorBoard where it is installed."""
    loggers: list[Any] = [CSVLogger(folder, name="logs")]
    with contextlib.suppress(ModuleNotFoundError):
        loggers.append(TensorBoardLogger(folder, name="tensorboard"))
    return loggers


@contextlib.contextmanager
def interruptible(trainer: lightning.Trainer, mend: str) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, where Lightning exits the interpreter and ignores further ones.

    ``mend`` says how to go on.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        logger.info("Interrupted at step %d; %s.", trainer.global_step, mend)
        raise KeyboardInterrupt from None
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's advice on things that are meant."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in ADVICE:
            warnings.filterwarnings("ignore", message)
        yield
