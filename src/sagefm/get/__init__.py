"""Results as tidy tables."""

from sagefm.get._tables import assessment, markers, perturb_lr, perturb_targets, reliability

__all__ = ["assessment", "markers", "perturb_lr", "perturb_targets", "reliability"]
