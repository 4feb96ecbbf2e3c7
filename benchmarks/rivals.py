"""What the searches and the step are measured against, written for this purpose in plain PyTorch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amun_ext.reference import pgd_step

MAX_ROUNDS = 12


def published_loop(model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int = 128) -> tuple[Tensor, Tensor]:
    """The logic of the published search, written anew: examples [N, ...] and radii [N].

    Per batch: 50 steps of eps/10 at a radius, mean cross-entropy, gradient over (norm + 1e-10), finished samples
    dropped at once, the radius of the others doubled and the ascent continued; no refill of the batch. Its one change
    is an end after MAX_ROUNDS, since the published one has none.
    """
    examples, radii = inputs.clone(), inputs.new_full((len(inputs),), math.inf)
    for rows in torch.arange(len(inputs), device=inputs.device).split(batch_size):
        x, x0, y = inputs[rows].clone(), inputs[rows], labels[rows]
        eps = 0.04
        for _ in range(MAX_ROUNDS):
            for step in range(51):
                x.requires_grad_(True)
                logits = model(x)
                right = logits.argmax(1) == y
                examples[rows[~right]], radii[rows[~right]] = x[~right].detach(), eps
                if step == 50 or not right.any():
                    x, x0, y, rows = x[right].detach(), x0[right], y[right], rows[right]
                    break
                (grad,) = torch.autograd.grad(F.cross_entropy(logits[right], y[right]), x)
                x, x0, y, rows, grad = x[right].detach(), x0[right], y[right], rows[right], grad[right]
                norm = grad.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))
                delta = x + eps / 10 * grad / (norm + 1e-10) - x0
                length = delta.flatten(1).norm(dim=1).view(norm.shape)
                x = (x0 + delta * (eps / length).clamp(max=1)).clamp(0, 1)
            if not len(rows):
                break
            eps *= 2
    return examples, radii


class PlainPGD:
    """PGD of growing radius as a careful user writes it: whole batches, a radius per sample, sum-reduced loss.

    `compiled` puts the step and the model through torch.compile.
    """

    def __init__(self, model: nn.Module, compiled: bool = False) -> None:
        self.model = torch.compile(model) if compiled else model
        self.step = torch.compile(pgd_step) if compiled else pgd_step

    def __call__(self, inputs: Tensor, labels: Tensor, batch_size: int = 128) -> tuple[Tensor, Tensor]:
        results = [self.batch(x0, y) for x0, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True)]
        return torch.cat([examples for examples, _ in results]), torch.cat([radii for _, radii in results])

    def batch(self, x0: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, found, eps = x0.clone(), torch.zeros(len(x0), dtype=torch.bool), torch.full((len(x0),), 0.04)
        for iteration in range(50 * MAX_ROUNDS + 1):
            x.requires_grad_(True)
            logits = self.model(x)
            found |= logits.argmax(1) != y
            if found.all():
                break
            if iteration and iteration % 50 == 0:
                eps = torch.where(found, eps, 2 * eps)
            (grad,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
            moved = self.step(x.detach(), x0, grad, eps, 0.1, (0.0, 1.0))
            x = torch.where(found.view(-1, *[1] * (x.dim() - 1)), x.detach(), moved)
        return x.detach(), eps.masked_fill(~found, math.inf)


def ddn_step(
    x: Tensor,  # [B, ...]
    eps: Tensor,  # [B]
    best: Tensor,  # [B] distance of the closest example so far
    images: Tensor,  # [B, ...] that example
    found_labels: Tensor,  # [B] its label
    x0: Tensor,  # [B, ...]
    grad: Tensor,  # [B, ...]
    adversarial: Tensor,  # [B]
    predicted: Tensor,  # [B]
    margin: Tensor,  # [B]
    step_fraction: float,
    change: float,
    overshoot: float,
    eps_max: float,
    bounds: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rule "ddn" of search_step_ as a careful user writes it for whole batches: the first five arguments anew."""
    per_sample = (-1, *[1] * (x.dim() - 1))
    delta = x - x0
    distance = delta.flatten(1).norm(dim=1)
    closer = adversarial & (distance < best)
    best = torch.where(closer, distance, best)
    images = torch.where(closer.view(per_sample), x, images)
    found_labels = torch.where(closer, predicted, found_labels)

    grad = grad.masked_fill((x <= bounds[0]) & (grad < 0) | (x >= bounds[1]) & (grad > 0), 0)
    delta_ahead = delta + (step_fraction * eps / grad.flatten(1).norm(dim=1)).view(per_sample) * grad
    direction = delta_ahead / delta_ahead.flatten(1).norm(dim=1).view(per_sample)
    slope, gained = (grad * direction).flatten(1).sum(1), (grad * delta).flatten(1).sum(1)
    tightest = torch.minimum(eps, best)
    crossing = torch.where(slope > 0, overshoot * (margin + gained) / slope, eps)
    shrunk = crossing.clamp(tightest * (1 - 2 * change), tightest * (1 - change))
    eps = torch.where(adversarial, shrunk, eps * (1 + change)).clamp(max=eps_max)
    return (x0 + eps.view(per_sample) * direction).clamp(*bounds), eps, best, images, found_labels
