"""The closest adversarial example of each sample, and the methods that look for it."""

from amun_ext.search.adversarial_set import AdversarialSet, Transfer
from amun_ext.search.find import find_min_adversarial
from amun_ext.search.methods import METHODS, Iterate, PythonRule

__all__ = ["METHODS", "AdversarialSet", "Iterate", "PythonRule", "Transfer", "find_min_adversarial"]
