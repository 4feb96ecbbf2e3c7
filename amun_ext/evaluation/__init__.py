"""How well did the model forget? Accuracy, membership inference, and a page that shows both (paper section 3)."""

from amun_ext.evaluation.accuracy import accuracy, predict
from amun_ext.evaluation.metrics import COMPARISONS, MEASURES, gap
from amun_ext.evaluation.mia import Auc, auc, log_odds
from amun_ext.evaluation.report import Report, evaluate

__all__ = ["COMPARISONS", "MEASURES", "Auc", "Report", "accuracy", "auc", "evaluate", "gap", "log_odds", "predict"]
