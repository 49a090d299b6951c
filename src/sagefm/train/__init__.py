"""Training: a corpus of sections, and pretraining on it. Needs Lightning: ``pip install lightning``."""

from typing import TYPE_CHECKING

from sagefm import _lazy
from sagefm.train._calibrate import calibrate
from sagefm.train._corpus import Corpus
from sagefm.train._prepare import prepare_corpus
from sagefm.train._recipe import PRESETS, Recipe

if TYPE_CHECKING:
    from sagefm.histology.pretrain import pretrain_histology
    from sagefm.histology.recipe import HISTOLOGY_PRESETS, HistologyRecipe
    from sagefm.train._pretrain import pretrain
    from sagefm.train._sweep import sweep

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
    "sweep",
]
# Lightning is an extra, which preparing a corpus doesn't need.
__getattr__ = _lazy.attach(
    __name__,
    {
        "pretrain": "sagefm.train._pretrain",
        "pretrain_histology": "sagefm.histology.pretrain",
        "sweep": "sagefm.train._sweep",
        "HistologyRecipe": "sagefm.histology.recipe",
        "HISTOLOGY_PRESETS": "sagefm.histology.recipe",
    },
)
