"""Boundary shrink (BS): move the forget set over its nearest boundary (Chen et al. 2023)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.models.state import eval_mode, logits_of, placement
from amun_ext.tensor_checks import check_images
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.validation import InputError, is_number, require

# Its authors' code is used with learning rates from 1e-8 on for random forget sets, which change next to nothing.
RECIPE = Recipe(epochs=10, lr=1e-4)
TEACHERS = ("frozen", "per_epoch")
BATCH_SIZE = 256


def boundary_shrink(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    eps: float = 0.1,
    teacher: str = "frozen",
    require_wrong: bool = True,
    bounds: tuple[float, float] = (0.0, 1.0),
    recipe: Recipe = RECIPE,
) -> None:
    """In every epoch train on D_R, if it is there, then on D_F with the label that a teacher gives its FGSM image.

    Args:
        eps: length of the FGSM step in every pixel; the image is clamped to `bounds` and rounded to 8 bits within them.
        teacher: "frozen", the model as it was at first (the authors' code); "per_epoch", as it is when the pass over
            D_F begins (the code of AMUN's authors).
        require_wrong: where the teacher still answers the true label take its second choice, for the method wants the
            nearest *wrong* class; the published codes do not look, and then teach the true label.
    """
    pair = isinstance(bounds, Sequence) and len(bounds) == 2 and -math.inf < bounds[0] < bounds[1] < math.inf
    require(pair, "bounds", "a pair of finite numbers, the smaller one first", bounds)
    starts = range(0, len(forget), BATCH_SIZE)
    for start in starts:
        check_images("forget", forget[start : start + BATCH_SIZE][0], bounds)
    require(is_number(eps) and 0 < eps < float("inf"), "eps", "a positive, finite number", repr(eps))
    require(isinstance(require_wrong, bool), "require_wrong", "True or False", repr(require_wrong))
    require(teacher in TEACHERS, "teacher", f"one of {TEACHERS}", repr(teacher))

    def nearest(epoch: int) -> Tensor:
        with eval_mode(model):
            batches = (forget[start : start + BATCH_SIZE] for start in starts)
            return torch.cat([_neighbour(model, x, y, eps, bounds, require_wrong) for x, y in batches])

    def at_first() -> Callable[[int], Tensor]:
        found = nearest(0)
        return lambda epoch: found

    part = DataPart(forget, labels=at_first() if teacher == "frozen" else nearest)
    passes = [] if retain is None else [Pass([DataPart(retain)])]
    settings = eps, teacher, require_wrong, bounds
    fit(model, [*passes, Pass([part])], recipe, run, settings=settings, description="BS")


def _neighbour(
    model: nn.Module, x: Tensor, labels: Tensor, eps: float, bounds: tuple[float, float], require_wrong: bool
) -> Tensor:
    """The class [B] of each of `x` [B, ...] after one step of FGSM."""
    low, high = bounds
    device, dtype = placement(model, x)
    labels = labels.to(device, copy=True)  # autograd refuses those of an inference mode
    with torch.enable_grad():
        start = x.to(device, dtype, copy=True).requires_grad_()
        loss = F.cross_entropy(logits_of(model, start), labels, reduction="sum")
        grad = torch.autograd.grad(loss, start, allow_unused=True)[0] if loss.requires_grad else None
    if grad is None:
        raise InputError("model must be differentiable in its inputs, got logits without a gradient")
    with torch.no_grad():
        moved = (start + eps * grad.sign()).clamp(low, high)
        logits = logits_of(model, low + ((moved - low) / (high - low) * 255).round() / 255 * (high - low)).float()
        if require_wrong:
            logits.scatter_(1, labels[:, None], -torch.inf)
        choice: Tensor = logits.argmax(dim=1).cpu()
        return choice
