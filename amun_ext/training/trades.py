"""TRADES (Zhang et al. 2019): the answer to an input and that to its worst neighbour are kept close."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amun_ext.models.state import eval_mode, logits_of
from amun_ext.recipe import Trades

START = 1e-3  # deviation of the first step


def robust_loss(model: nn.Module, x: Tensor, logits: Tensor, how: Trades) -> Tensor:
    """beta * KL(p(x) || p(worst neighbour of x)), summed over the batch; `logits` [B, K] are those of x."""
    neighbour = worst_neighbour(model, x, logits.detach(), how)
    return how.beta * _divergence(logits_of(model, neighbour), logits)


def worst_neighbour(model: nn.Module, x: Tensor, logits: Tensor, how: Trades) -> Tensor:
    """Projected gradient ascent of the divergence from `logits`, in eval mode; images [B, ...] in [0, 1]."""
    found = x + START * torch.randn_like(x)
    with eval_mode(model):
        for _ in range(how.steps):
            found = found.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(_divergence(logits_of(model, found), logits), found)
            found = found.detach() + how.step * _direction(gradient, how.norm)
            found = (x + _inside(found - x, how)).clamp(0.0, 1.0)
    return found.detach()


def _divergence(answer: Tensor, own: Tensor) -> Tensor:
    return F.kl_div(answer.float().log_softmax(1), own.float().softmax(1), reduction="sum")


def _direction(gradient: Tensor, norm: str) -> Tensor:
    return gradient.sign() if norm == "linf" else gradient / _lengths(gradient).clamp(min=1e-12)


def _inside(moved: Tensor, how: Trades) -> Tensor:
    if how.norm == "linf":
        return moved.clamp(-how.eps, how.eps)
    return moved * (how.eps / _lengths(moved).clamp(min=how.eps))


def _lengths(x: Tensor) -> Tensor:
    """L2, [B, 1, ...]."""
    lengths: Tensor = x.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))
    return lengths
