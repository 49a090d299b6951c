"""Data to try things on, and tables of genes."""

from sagefm.datasets._interactions import paper_interactions, textbook_targets
from sagefm.datasets._simulated import simulated_visium

__all__ = ["paper_interactions", "simulated_visium", "textbook_targets"]
