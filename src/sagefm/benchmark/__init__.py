"""Evaluation: masked-gene prediction beside plain baselines."""

from sagefm.benchmark._imputation import evaluate_imputation
from sagefm.benchmark._metrics import imputation_metrics

__all__ = ["evaluate_imputation", "imputation_metrics"]
