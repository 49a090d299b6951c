"""Evaluation: masked-gene prediction beside plain baselines."""

from sagefm.benchmark._imputation import evaluate_imputation
from sagefm.benchmark._metrics import imputation_metrics
from sagefm.benchmark._missingness import missingness_curve
from sagefm.benchmark._smoothers import compare_imputation

__all__ = ["compare_imputation", "evaluate_imputation", "imputation_metrics", "missingness_curve"]
