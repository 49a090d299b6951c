"""Plots: what the tools of the same name found."""

from typing import TYPE_CHECKING

from sagefm import _lazy
from sagefm.pl._annotation import annotation, composition
from sagefm.pl._assessment import assessment
from sagefm.pl._benchmark import benchmark_violin, missingness_curve
from sagefm.pl._clusters import cluster, cluster_markers, cluster_proportions
from sagefm.pl._heterogeneity import centroid_distances, distance_error
from sagefm.pl._imputation import imputation
from sagefm.pl._perturb.overlap import perturbation_overlap, perturbation_scatter
from sagefm.pl._perturb.pairs import dose_response, perturbation_lollipop
from sagefm.pl._perturb.sensitivity import sensitivity_heatmap
from sagefm.pl._perturb.spatial import perturbation_spatial
from sagefm.pl._perturb.targets import target_controls, target_effects, target_replicates
from sagefm.pl._reliability import reliability
from sagefm.pl._tsne import tsne

if TYPE_CHECKING:
    from sagefm.histology.plot_expression import predicted_expression, superresolved_expression
    from sagefm.histology.plot_patches import histology_patches

__all__ = [
    "annotation",
    "assessment",
    "benchmark_violin",
    "centroid_distances",
    "cluster",
    "cluster_markers",
    "cluster_proportions",
    "composition",
    "distance_error",
    "dose_response",
    "histology_patches",
    "imputation",
    "missingness_curve",
    "perturbation_lollipop",
    "perturbation_overlap",
    "perturbation_scatter",
    "perturbation_spatial",
    "predicted_expression",
    "reliability",
    "sensitivity_heatmap",
    "superresolved_expression",
    "target_controls",
    "target_effects",
    "target_replicates",
    "tsne",
]

__getattr__ = _lazy.attach(
    __name__,
    {
        "histology_patches": "sagefm.histology.plot_patches",
        "predicted_expression": "sagefm.histology.plot_expression",
        "superresolved_expression": "sagefm.histology.plot_expression",
    },
)
