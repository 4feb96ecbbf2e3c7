"""Soft labels of a model, of the very inputs that are trained on: augmented ones have no others."""

import torch
from torch import Tensor, nn

from amun_ext.models.reinitialise import deep_copy
from amun_ext.models.state import logits_of
from amun_ext.training import Teacher


def soft_labels_of(model: nn.Module) -> Teacher:
    """The softmax of what `model` as it is now, in eval mode, says of inputs [B, ...]: [B, classes]."""
    teacher = deep_copy(model).eval()

    def soft_labels(x: Tensor, labels: Tensor) -> Tensor:
        logits = logits_of(teacher, x)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)

    return soft_labels
