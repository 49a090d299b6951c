"""Plots: what the tools of the same name found."""

from sagefm.pl._embedding import cluster
from sagefm.pl._impute import impute

__all__ = ["cluster", "impute"]
