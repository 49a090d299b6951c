"""SAGE-FM, a graph foundation model of spatial transcriptomics, on AnnData.

Import it as ``import sagefm as sg``. Functions live in the scverse namespaces: :mod:`sagefm.pp`
(neighbourhoods, genes), :mod:`sagefm.tl` (embed, impute, cluster) and :mod:`sagefm.pl` (figures); models
come from :mod:`sagefm.models`, toy slides from :mod:`sagefm.datasets`. :mod:`sagefm.benchmark` evaluates
models, :mod:`sagefm.train` makes them.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

from sagefm import datasets, models, pl, pp, tl
from sagefm._settings import settings

__version__ = version("sagefm")
__all__ = ["benchmark", "datasets", "models", "pl", "pp", "settings", "tl", "train"]


def __getattr__(name: str) -> Any:
    # These import torch, so they come when asked for.
    if name in ("benchmark", "train"):
        return import_module(f"sagefm.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
