"""Adversarial machine unlearning (AMUN) for PyTorch: search, forget, measure."""

__version__ = "0.1.0"

from . import ops  # first: it loads the extension, or says why it cannot

__all__ = ["ops"]
