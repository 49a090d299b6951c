"""Evaluation: masked-gene prediction beside plain baselines."""

from sagefm.benchmark._imputation import evaluate_imputation
from sagefm.benchmark._metrics import imputation_metrics
from sagefm.benchmark._missingness import missingness_curve

__all__ = ["evaluate_imputation", "imputation_metrics", "missingness_curve"]
