"""How well did the model forget? Accuracy, membership inference, and a page that shows both (paper section 3)."""

from amun_ext.evaluation.accuracy import accuracy, predict
from amun_ext.evaluation.lira import lira
from amun_ext.evaluation.metrics import COMPARISONS, MEASURES, gap
from amun_ext.evaluation.mia import Auc, auc, log_odds
from amun_ext.evaluation.mis import mis, mis_threshold
from amun_ext.evaluation.report import Report, evaluate
from amun_ext.evaluation.rmia import DEFAULT_PRESET, PRESETS, RmiaResult, rmia
from amun_ext.evaluation.roc import auc_difference, auc_interval, roc, tpr_at_fpr

__all__ = [
    "COMPARISONS",
    "DEFAULT_PRESET",
    "MEASURES",
    "PRESETS",
    "Auc",
    "Report",
    "RmiaResult",
    "accuracy",
    "auc",
    "auc_difference",
    "auc_interval",
    "evaluate",
    "gap",
    "lira",
    "log_odds",
    "mis",
    "mis_threshold",
    "predict",
    "rmia",
    "roc",
    "tpr_at_fpr",
]
