"""Preprocessing: neighbourhoods and genes."""

from sagefm.pp._genes import align_genes
from sagefm.pp._graph import neighborhood_graph

__all__ = ["align_genes", "neighborhood_graph"]
