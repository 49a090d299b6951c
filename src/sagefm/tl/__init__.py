"""Tools: embed, impute, cluster, annotate, perturb."""

from typing import TYPE_CHECKING

from sagefm import _lazy
from sagefm.tl._baselines import mofa_embed, nichepca_embed
from sagefm.tl._clusters.cluster import cluster
from sagefm.tl._clusters.genes import cluster_markers, cluster_proportions
from sagefm.tl._clusters.leiden import leiden
from sagefm.tl._embed import sage_embed
from sagefm.tl._impute.predict import impute
from sagefm.tl._join import join_representations
from sagefm.tl._labels.annotate import annotate
from sagefm.tl._labels.composition import composition
from sagefm.tl._perturb.levels import ligand_levels
from sagefm.tl._perturb.lr import perturb_lr
from sagefm.tl._perturb.overlap import perturbation_overlap
from sagefm.tl._perturb.sections import perturb_sections
from sagefm.tl._perturb.sensitivity import gene_sensitivity
from sagefm.tl._perturb.targets import perturb_targets
from sagefm.tl._sections.embed import embed_sections

if TYPE_CHECKING:
    from sagefm.histology.embed import histology_embed
    from sagefm.histology.predict import predict_expression
    from sagefm.histology.superresolve import superresolve_expression

__all__ = [
    "annotate",
    "cluster",
    "cluster_markers",
    "cluster_proportions",
    "composition",
    "embed_sections",
    "gene_sensitivity",
    "histology_embed",
    "impute",
    "join_representations",
    "leiden",
    "ligand_levels",
    "mofa_embed",
    "nichepca_embed",
    "perturb_lr",
    "perturb_sections",
    "perturb_targets",
    "perturbation_overlap",
    "predict_expression",
    "sage_embed",
    "superresolve_expression",
]

__getattr__ = _lazy.attach(
    __name__,
    {
        "histology_embed": "sagefm.histology.embed",
        "predict_expression": "sagefm.histology.predict",
        "superresolve_expression": "sagefm.histology.superresolve",
    },
)
