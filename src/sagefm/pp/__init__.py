"""Preprocessing: neighborhoods, genes, pseudo-spots, and whether a model can be trusted on a slide."""

from typing import TYPE_CHECKING

from sagefm import _lazy
from sagefm.pp._assess.assess import assess
from sagefm.pp._genes import align_genes
from sagefm.pp._graph import neighborhood_graph
from sagefm.pp._quality import quality_control
from sagefm.pp._regions.from_pseudospots import from_pseudospots
from sagefm.pp._regions.pseudospots import pseudospots

if TYPE_CHECKING:
    from sagefm.histology.spot_patches import histology_patches

__all__ = [
    "align_genes",
    "assess",
    "from_pseudospots",
    "histology_patches",
    "neighborhood_graph",
    "pseudospots",
    "quality_control",
]

__getattr__ = _lazy.attach(__name__, {"histology_patches": "sagefm.histology.spot_patches"})
