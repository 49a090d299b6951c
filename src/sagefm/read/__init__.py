"""Readers of slides as sequencing software writes them."""

from sagefm.read._visium import visium

__all__ = ["visium"]
