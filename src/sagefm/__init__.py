"""SAGE-FM, a graph foundation model of spatial transcriptomics, on AnnData.

Import it as ``import sagefm as sg``. Functions live in the scverse namespaces: :mod:`sagefm.pp`
(neighborhoods, genes), :mod:`sagefm.tl` (embed, impute, cluster) and :mod:`sagefm.pl` (figures); models
come from :mod:`sagefm.models`, toy slides from :mod:`sagefm.datasets`. :mod:`sagefm.read` reads slides,
:mod:`sagefm.get` returns results as tables, :func:`sagefm.report` writes them as a page. :mod:`sagefm.benchmark`
evaluates models, :mod:`sagefm.train` makes them.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sagefm._settings import settings

if TYPE_CHECKING:
    from sagefm import benchmark, datasets, get, models, pl, pp, read, tl, train
    from sagefm._report.report import report

__version__ = version("sagefm")
__all__ = ["benchmark", "datasets", "get", "models", "pl", "pp", "read", "report", "settings", "tl", "train"]


def __getattr__(name: str) -> Any:
    # Namespaces come when they are asked for, so that the import costs nothing.
    if name == "report":
        return import_module("sagefm._report.report").report
    if name in __all__:
        return import_module(f"sagefm.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
