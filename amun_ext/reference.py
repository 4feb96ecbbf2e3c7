"""The ops in plain PyTorch: the oracle of tests and benchmarks, never a fallback. Same names, same signatures."""

import torch
from torch import Tensor

from amun_ext.ops import AttackLoss, Book, Pool, Schedule, Status, accumulate_dtype


def attack_loss(
    logits: Tensor,  # [B, K]
    labels: Tensor,  # [B]
    loss: str = "cross_entropy",
) -> AttackLoss:
    """Twin of csrc/attack_loss: the same four results."""
    wide = logits.to(accumulate_dtype(logits.dtype))
    own = wide.gather(1, labels[:, None])  # [B, 1]
    others = wide.scatter(1, labels[:, None], -torch.inf)  # [B, K]
    rival, rival_index = others.max(1, keepdim=True)
    margin = (own - rival)[:, 0]

    nan = wide.isnan().any(1)
    predicted = wide.argmax(1).masked_fill(nan, -1)
    adversarial = (predicted != labels) & ~nan

    ascent = others.softmax(1) if loss == "cross_entropy" else torch.zeros_like(wide).scatter(1, rival_index, 1.0)
    ascent = ascent.scatter(1, labels[:, None], -1.0)
    directed = rival.isfinite() & ~nan[:, None]
    grad_logits = torch.where(directed, ascent, torch.zeros_like(ascent)).to(logits.dtype)
    return AttackLoss(adversarial, predicted, margin, grad_logits)


def pgd_step(
    x: Tensor,  # [B, ...]
    x0: Tensor,  # [B, ...]
    grad: Tensor,  # [B, ...]
    eps: Tensor,  # [B]
    step_fraction: float,
    bounds: tuple[float, float],
) -> Tensor:
    """The arithmetic of a running slot, as a careful user would write it; differentiates nothing."""
    wide = accumulate_dtype(x.dtype)
    per_sample = (-1, *[1] * (x.dim() - 1))
    direction = grad.to(wide) / grad.to(wide).flatten(1).norm(dim=1).view(per_sample)
    delta = x.to(wide) - x0.to(wide) + (step_fraction * eps).view(per_sample) * direction
    shrink = (eps / delta.flatten(1).norm(dim=1)).clamp(max=1.0).view(per_sample)
    moved: Tensor = x0.to(wide) + shrink * delta
    return moved.clamp(*bounds).to(x.dtype)


def grown(eps: Tensor, schedule: Schedule) -> Tensor:
    """The radius after `eps`; the same one when there is no larger."""
    return (eps * schedule.eps_growth).clamp(max=schedule.eps_max)


def search_step_(
    pool: Pool,
    book: Book,
    queue: Tensor,  # [Q]
    cursor: Tensor,  # [1]
    grad: Tensor,  # [B, ...]
    adversarial: Tensor,  # [B]
    predicted: Tensor,  # [B]
    schedule: Schedule,
    bounds: tuple[float, float],
) -> None:
    """Twin of csrc/search_step: slot after slot, as the op's docstring has it."""
    for slot, sample in enumerate(pool.slots.tolist()):
        if sample < 0:
            continue
        book.grad_evals[sample] += 1
        x, x0, g = pool.x[slot], book.inputs[sample], grad[slot].to(book.eps.dtype)
        distance = (x.to(g.dtype) - x0.to(g.dtype)).norm()
        squared_norm = g.square().sum()
        if adversarial[slot]:
            book.images[sample], book.found_labels[sample] = x, predicted[slot]
            book.distance[sample], book.status[sample] = distance, Status.FOUND
        elif not (squared_norm > 0 and squared_norm.isfinite()):
            book.status[sample] = Status.NO_GRADIENT
        elif book.round_step[sample] == schedule.steps and not grown(book.eps[sample], schedule) > book.eps[sample]:
            book.status[sample] = Status.EXHAUSTED
        else:
            if book.round_step[sample] == schedule.steps:
                book.eps[sample] = grown(book.eps[sample], schedule)
                book.round_step[sample] = 0
            book.round_step[sample] += 1
            eps = book.eps[sample : sample + 1]
            pool.x[slot] = pgd_step(x[None], x0[None], g[None], eps, schedule.step_fraction, bounds)[0]
            continue
        pool.slots[slot] = -1

    for slot in (pool.slots < 0).nonzero().flatten().tolist():
        if cursor < len(queue):
            sample = int(queue[cursor])
            pool.slots[slot], pool.slot_labels[slot], pool.x[slot] = sample, book.labels[sample], book.images[sample]
            cursor += 1
