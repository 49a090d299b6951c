"""Evaluation: masked genes, clusters, distances and annotation, beside plain baselines."""

from sagefm.benchmark._annotation import compare_representations, evaluate_annotation
from sagefm.benchmark._clustering import evaluate_clustering
from sagefm.benchmark._composition import evaluate_composition
from sagefm.benchmark._heterogeneity import centroid_distances, summarize_distances
from sagefm.benchmark._imputation import evaluate_imputation
from sagefm.benchmark._metrics import imputation_metrics
from sagefm.benchmark._missingness import missingness_curve
from sagefm.benchmark._protocol.protocol import run_protocol
from sagefm.benchmark._smoothers import compare_imputation

__all__ = [
    "centroid_distances",
    "compare_imputation",
    "compare_representations",
    "evaluate_annotation",
    "evaluate_clustering",
    "evaluate_composition",
    "evaluate_imputation",
    "imputation_metrics",
    "missingness_curve",
    "run_protocol",
    "summarize_distances",
]
