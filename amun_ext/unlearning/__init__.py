"""Unlearning methods: one file and one row of METHODS each, all through one loop (`amun_ext.training.fit`)."""

from amun_ext.unlearning.cross_fit import Targets, load_targets, prepare
from amun_ext.unlearning.methods import METHODS, UnlearningMethod
from amun_ext.unlearning.presets import PRESETS
from amun_ext.unlearning.unlearn import unlearn

__all__ = ["METHODS", "PRESETS", "Targets", "UnlearningMethod", "load_targets", "prepare", "unlearn"]
