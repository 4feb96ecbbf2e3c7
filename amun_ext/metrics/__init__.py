"""Measures of forgetting and attacks of membership inference, as functions of arrays (paper sections 3 and 7)."""

from amun_ext.metrics.auc import Auc, auc, auc_difference, auc_interval, roc, tpr_at_fpr
from amun_ext.metrics.klom import klom
from amun_ext.metrics.lira import lira
from amun_ext.metrics.measures import MEASURES, Estimate, Measure, Observation, gap
from amun_ext.metrics.mis import mis, mis_threshold
from amun_ext.metrics.rmia import DEFAULT_PRESET, PRESETS, RmiaResult, rmia
from amun_ext.metrics.signals import log_odds

__all__ = [
    "DEFAULT_PRESET",
    "MEASURES",
    "PRESETS",
    "Auc",
    "Estimate",
    "Measure",
    "Observation",
    "RmiaResult",
    "auc",
    "auc_difference",
    "auc_interval",
    "gap",
    "klom",
    "lira",
    "log_odds",
    "mis",
    "mis_threshold",
    "rmia",
    "roc",
    "tpr_at_fpr",
]
