"""Preprocessing: neighbourhoods, genes, pseudo-spots, and whether a model can be trusted on a slide."""

from sagefm.pp._assess import assess
from sagefm.pp._from_pseudospots import from_pseudospots
from sagefm.pp._genes import align_genes
from sagefm.pp._graph import neighborhood_graph
from sagefm.pp._histology import histology_patches
from sagefm.pp._pseudospots import pseudospots

__all__ = ["align_genes", "assess", "from_pseudospots", "histology_patches", "neighborhood_graph", "pseudospots"]
