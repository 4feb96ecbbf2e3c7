"""What methods need beside their sets, for tests that go through all of METHODS."""

import torch
from torch.utils.data import Dataset

from amun_ext.unlearning import METHODS


def needs(method: str, forget: Dataset, classes: int = 3) -> dict[str, object]:
    """Further arguments of `unlearn`: some targets, where the method trains on them."""
    targets = torch.linspace(-1, 1, len(forget) * classes).view(-1, classes)
    return {"targets": targets} if METHODS[method].needs_targets else {}
