"""Toy slides."""

from sagefm.datasets._simulated import simulated_visium

__all__ = ["simulated_visium"]
