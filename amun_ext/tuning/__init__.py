"""Tune the options of unlearning methods on a proxy forget set in place of the request."""

from amun_ext.tuning.context import split_test_set
from amun_ext.tuning.objectives import OBJECTIVES
from amun_ext.tuning.result import Trial, Tuning, write
from amun_ext.tuning.tune import tunable, tune

__all__ = ["OBJECTIVES", "Trial", "Tuning", "split_test_set", "tunable", "tune", "write"]
