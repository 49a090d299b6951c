"""Lightning's trainer as every training here uses it: logs, checkpoints, interruption and resuming."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from sagefm._io.files import atomic
from sagefm._settings import logger, settings

CHECKPOINT_STEPS = 200
# What Lightning warns of that is meant so, or its own affair.
ADVICE = (
    ".*does not have many workers",
    ".*lr_scheduler.step",
    ".*treespec",
    ".*smaller than the logging interval",
    ".*sync_dist",  # every process validates on everything
    ".*Checkpoint directory .* exists",
    ".*dataloader is not resumable",  # ours goes on where it was
    ".*GPU available but not used",
)


class ResumableModule(lightning.LightningModule):
    """A module whose training can go on in the middle of an epoch.

    ``first_batch`` is the batch that its data has to begin with in the first epoch of a run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first_batch = 0
        self._batches_done = 0

    def settings(self) -> dict[str, Any]:
        """What tells one training from another, by name."""
        raise NotImplementedError

    def check_loss(self, loss: Tensor) -> Tensor:
        """Refuse a loss that is not finite."""
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"the loss is {loss.item()} at step {self.global_step}. Lower learning_rate, or train with "
                "precision='32-true'; the last checkpoint is from before."
            )
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Count batches. Checkpoints are written before Lightning's own count goes up."""
        self._batches_done = batch_idx + 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record where in the epoch the data is, and which training this is."""
        checkpoint["batches_done"] = self._batches_done
        checkpoint["training"] = self.settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the data was; not from an earlier training in the same folder.

        Raises
        ------
        ValueError
            If it is the checkpoint of a training with other settings.
        """
        settings = self.settings()
        found = checkpoint["training"]
        if changed := [name for name in settings if settings[name] != found.get(name)]:
            raise ValueError(
                f"the last checkpoint is of another training: {changed[0]} is {settings[changed[0]]!r} here and was "
                f"{found.get(changed[0])!r} there. Resume with the same settings, or leave resume (--resume) out to "
                "train from the start."
            )
        self.first_batch = checkpoint["batches_done"]


def derive_seed(*place: int) -> int:
    """Seed of one place in a training, such as a step on a device."""
    return hash(place) & 0x7FFF_FFFF_FFFF_FFFF


def find_folder(out: str | Path, run_dir: str | Path | None, resume: bool) -> tuple[Path, Path]:
    """Return the file to write and the folder of checkpoints and logs, checked before anything is read."""
    out = Path(out).expanduser()
    if out.suffix != ".safetensors":
        raise ValueError(f"out={str(out)!r} has to end with .safetensors.")
    folder = out.with_suffix("") if run_dir is None else Path(run_dir).expanduser()
    if resume and not (last := last_checkpoint(folder)).exists():
        raise FileNotFoundError(f"no checkpoint at {last} to resume from.")
    return out, folder


def fit(
    module: lightning.LightningModule,
    folder: Path | None,
    batches: Any = None,
    *,
    max_epochs: int,
    resume: bool = False,
    checkpoint_steps: int = CHECKPOINT_STEPS,
    callbacks: Sequence[Callback] = (),
    **trainer_options: Any,
) -> lightning.Trainer:
    """Train a module, with checkpoints and logs in a folder; with neither where there is none.

    ``batches`` are needed where the module has no ``train_dataloader``.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C, where Lightning would exit the interpreter.
    """
    last = None if folder is None else last_checkpoint(folder)
    checkpoints = [] if last is None else [_LastCheckpoint(last, checkpoint_steps)]
    with _quiet():
        trainer = lightning.Trainer(
            max_epochs=max_epochs,
            log_every_n_steps=10,
            callbacks=[*checkpoints, *callbacks],
            logger=False if folder is None else _loggers(folder),
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=folder is not None,
            enable_progress_bar=settings.progress_bars,
            enable_model_summary=False,
            **trainer_options,
        )
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        with _interruptible(trainer):
            trainer.fit(module, batches, ckpt_path=last if resume else None, weights_only=True)
    return trainer


def last_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def _loggers(folder: Path) -> list[Any]:
    """CSV always, TensorBoard where it is installed."""
    loggers: list[Any] = [CSVLogger(folder, name="logs")]
    with contextlib.suppress(ModuleNotFoundError):
        loggers.append(TensorBoardLogger(folder, name="tensorboard"))
    return loggers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice on things that are meant."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in ADVICE:
            warnings.filterwarnings("ignore", message)
        yield


@contextlib.contextmanager
def _interruptible(trainer: lightning.Trainer) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, where Lightning exits the interpreter and ignores further ones."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        mend = "resume=True goes on from the last checkpoint" if trainer.checkpoint_callbacks else "nothing was written"
        logger.info("Interrupted at step %d; %s.", trainer.global_step, mend)
        raise KeyboardInterrupt from None
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)


class _LastCheckpoint(Checkpoint):
    """Save every so many steps, or at the next where the run can go on from: in the middle of an epoch.

    Lightning (2.6) resumes after the last batch of an epoch without what is due then, validation, average and schedule,
    and without the epoch that comes next.
    """

    def __init__(self, path: Path, n_steps: int) -> None:
        self._path, self._n_steps, self._saved = path, n_steps, 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        n_batches = arguments[-1] + 1
        is_step = n_batches % trainer.accumulate_grad_batches == 0  # gradients of half a step would be lost
        if is_step and not trainer.is_last_batch and trainer.global_step >= self._saved + self._n_steps:
            trainer.save_checkpoint(self._path, weights_only=False)
            self._saved = trainer.global_step


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the last checkpoint: Lightning writes in the system's folder, from where moving may be copying."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as partial:
            torch.save(checkpoint, partial)
