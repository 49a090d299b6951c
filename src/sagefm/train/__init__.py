"""Training: a corpus of sections, and pretraining on it. Needs ``pip install sagefm[train]``."""

from typing import TYPE_CHECKING, Any

from sagefm.train._calibrate import calibrate
from sagefm.train._corpus import Corpus
from sagefm.train._prepare import prepare_corpus
from sagefm.train._recipe import PRESETS, Recipe

if TYPE_CHECKING:
    from sagefm.train._pretrain import pretrain

__all__ = ["PRESETS", "Corpus", "Recipe", "calibrate", "prepare_corpus", "pretrain"]


def __getattr__(name: str) -> Any:
    # Lightning is an extra, which preparing a corpus doesn't need.
    if name == "pretrain":
        try:
            from sagefm.train._pretrain import pretrain
        except ModuleNotFoundError as error:
            if error.name != "lightning":
                raise
            raise ModuleNotFoundError("pretraining needs Lightning: pip install 'sagefm[train]'.") from error

        return pretrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
