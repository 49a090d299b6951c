"""Training: a corpus of sections, and pretraining on it. Needs ``pip install sagefm[train]``."""

import importlib
from typing import TYPE_CHECKING, Any

from sagefm.train._calibrate import calibrate
from sagefm.train._corpus import Corpus
from sagefm.train._prepare import prepare_corpus
from sagefm.train._recipe import PRESETS, Recipe

if TYPE_CHECKING:
    from sagefm.train._pretrain import pretrain
    from sagefm.train._pretrain_histology import HISTOLOGY_PRESETS, HistologyRecipe, pretrain_histology

__all__ = [
    "HISTOLOGY_PRESETS",
    "PRESETS",
    "Corpus",
    "HistologyRecipe",
    "Recipe",
    "calibrate",
    "prepare_corpus",
    "pretrain",
    "pretrain_histology",
]
# Lightning is an extra, which preparing a corpus doesn't need.
WITH_LIGHTNING = {
    "pretrain": "_pretrain",
    "pretrain_histology": "_pretrain_histology",
    "HistologyRecipe": "_pretrain_histology",
    "HISTOLOGY_PRESETS": "_pretrain_histology",
}


def __getattr__(name: str) -> Any:
    if name not in WITH_LIGHTNING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"sagefm.train.{WITH_LIGHTNING[name]}")
    except ModuleNotFoundError as error:
        if error.name != "lightning":
            raise
        raise ModuleNotFoundError("pretraining needs Lightning: pip install 'sagefm[train]'.") from error
    return getattr(module, name)
