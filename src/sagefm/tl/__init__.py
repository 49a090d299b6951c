"""Tools: embed, impute, cluster, annotate, perturb."""

from sagefm.tl._annotate import annotate
from sagefm.tl._baselines import mofa_embed, nichepca_embed
from sagefm.tl._cluster import cluster
from sagefm.tl._cluster_genes import cluster_composition, cluster_markers
from sagefm.tl._composition import composition
from sagefm.tl._embed import sage_embed
from sagefm.tl._histology import histology_embed
from sagefm.tl._impute import impute
from sagefm.tl._join import join_representations
from sagefm.tl._overlap import perturbation_overlap
from sagefm.tl._perturb import perturb_lr
from sagefm.tl._predict_expression import predict_expression
from sagefm.tl._sections import embed_sections
from sagefm.tl._sensitivity import gene_sensitivity
from sagefm.tl._superresolve import superresolve_expression
from sagefm.tl._targets import perturb_targets

__all__ = [
    "annotate",
    "cluster",
    "cluster_composition",
    "cluster_markers",
    "composition",
    "embed_sections",
    "gene_sensitivity",
    "histology_embed",
    "impute",
    "join_representations",
    "mofa_embed",
    "nichepca_embed",
    "perturb_lr",
    "perturb_targets",
    "perturbation_overlap",
    "predict_expression",
    "sage_embed",
    "superresolve_expression",
]
