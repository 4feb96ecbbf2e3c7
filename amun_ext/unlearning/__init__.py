"""Unlearning methods: one file and one row of METHODS each, all through one loop (`amun_ext.training.fit`)."""

from amun_ext.unlearning.methods import METHODS, UnlearningMethod
from amun_ext.unlearning.presets import PRESETS
from amun_ext.unlearning.unlearn import unlearn

__all__ = ["METHODS", "PRESETS", "UnlearningMethod", "unlearn"]
