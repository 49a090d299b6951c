"""Pseudo-spots, and the regions of a SpatialData."""
