"""Adversarial machine unlearning (AMUN) for PyTorch: search, forget, measure."""

import sys

__version__ = "0.2.0"

if sys.argv[:1] == ["-m"]:  # python -m amun_ext, which runs __main__ after all of these imports
    import amun_command  # noqa: F401

from amun_ext import ops  # first: it loads the extension, or says why it cannot
from amun_ext.auditing import audit
from amun_ext.evaluation import evaluate
from amun_ext.metrics import rmia
from amun_ext.ops import sm_taylor_softmax
from amun_ext.optim import MaskedSGD
from amun_ext.saliency import saliency_mask
from amun_ext.search import AdversarialSet, find_min_adversarial
from amun_ext.unlearning import unlearn
from amun_ext.validation import InputError

__all__ = [
    "AdversarialSet",
    "InputError",
    "MaskedSGD",
    "audit",
    "evaluate",
    "find_min_adversarial",
    "ops",
    "rmia",
    "saliency_mask",
    "sm_taylor_softmax",
    "unlearn",
]
