"""Data to try things on, what the paper was measured on, and tables of genes."""

from sagefm.datasets._glioblastoma import glioblastoma, glioblastoma_samples
from sagefm.datasets._hest1k import hest1k, hest1k_samples
from sagefm.datasets._interactions import paper_interactions, textbook_targets
from sagefm.datasets._oscc import oscc, oscc_classes, oscc_splits
from sagefm.datasets._simulated import simulated_visium

__all__ = [
    "glioblastoma",
    "glioblastoma_samples",
    "hest1k",
    "hest1k_samples",
    "oscc",
    "oscc_classes",
    "oscc_splits",
    "paper_interactions",
    "simulated_visium",
    "textbook_targets",
]
