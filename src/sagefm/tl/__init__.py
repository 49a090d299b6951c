"""Tools: embed, impute, cluster."""

from sagefm.tl._cluster import cluster
from sagefm.tl._embed import sage_embed
from sagefm.tl._impute import impute

__all__ = ["cluster", "impute", "sage_embed"]
