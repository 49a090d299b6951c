"""Preprocessing: neighbourhoods, genes, and whether a model can be trusted on a slide."""

from sagefm.pp._assess import assess
from sagefm.pp._genes import align_genes
from sagefm.pp._graph import neighborhood_graph

__all__ = ["align_genes", "assess", "neighborhood_graph"]
