"""Results as tidy tables."""

from sagefm.get._tables import assessment, marker_sets, markers, perturb_lr, perturb_targets, reliability

__all__ = ["assessment", "marker_sets", "markers", "perturb_lr", "perturb_targets", "reliability"]
