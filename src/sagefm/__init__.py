"""SAGE-FM, a graph foundation model of spatial transcriptomics, on AnnData.

Import it as ``import sagefm as sg``. Functions live in the scverse namespaces: :mod:`sagefm.pp`
(neighbourhoods, genes), :mod:`sagefm.tl` (embed, impute, cluster) and :mod:`sagefm.pl` (figures); models
come from :mod:`sagefm.models`, toy slides from :mod:`sagefm.datasets`.
"""

from importlib.metadata import version

from sagefm import datasets, models, pl, pp, tl
from sagefm._settings import settings

__version__ = version("sagefm")
__all__ = ["datasets", "models", "pl", "pp", "settings", "tl"]
