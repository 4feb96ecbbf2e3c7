"""The closest adversarial example of each sample, and the attacks that search for it."""

from amun_ext.search.adversarial_set import AdversarialSet, Transfer
from amun_ext.search.attacks import ATTACKS, Attack, Iterate, PythonRule
from amun_ext.search.find import find_min_adversarial

__all__ = ["ATTACKS", "AdversarialSet", "Attack", "Iterate", "PythonRule", "Transfer", "find_min_adversarial"]
