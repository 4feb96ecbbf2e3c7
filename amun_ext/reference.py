"""The ops in plain PyTorch, with the same signatures: the reference of tests and benchmarks, never a fallback."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from amun_ext.ops import (
    AttackLoss,
    Feedback,
    SampleTable,
    SlotBatch,
    Status,
    StepConfig,
    accumulate_dtype,
    shortest_step,
)


def attack_loss(
    logits: Tensor,  # [B, K]
    labels: Tensor,  # [B]
    loss: str = "cross_entropy",
    min_margin: float = 0.0,
) -> AttackLoss:
    """As csrc/attack_loss."""
    wide = logits.to(accumulate_dtype(logits.dtype))
    own = wide.gather(1, labels[:, None])  # [B, 1]
    others = wide.scatter(1, labels[:, None], -torch.inf)  # [B, K]
    rival, rival_index = others.max(1, keepdim=True)
    margin = (own - rival)[:, 0] + min_margin

    nan = wide.isnan().any(1)
    predicted = wide.argmax(1).masked_fill(nan, -1)
    adversarial = (predicted != labels) & ~nan & ((margin <= 0) | (min_margin == 0))
    # at a tie the label wins, so the margin is at least a rounding of the logits
    larger = torch.maximum(own.abs(), rival.abs())[:, 0]
    least = torch.finfo(wide.dtype).eps * torch.where(larger > 0, larger, torch.ones_like(larger))
    margin = torch.where(adversarial | ~(margin < least), margin, least)

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
    """Projected gradient ascent in the L2 ball (paper, Algorithm 1)."""
    wide = accumulate_dtype(x.dtype)
    per_sample = (-1, *[1] * (x.dim() - 1))
    direction = grad.to(wide) / grad.to(wide).flatten(1).norm(dim=1).view(per_sample)
    delta = x.to(wide) - x0.to(wide) + (step_fraction * eps).view(per_sample) * direction
    shrink = (eps / delta.flatten(1).norm(dim=1)).clamp(max=1.0).view(per_sample)
    moved: Tensor = x0.to(wide) + shrink * delta
    return moved.clamp(*bounds).to(x.dtype)


def inward(grad: Tensor, x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """`grad` without the elements that point out of the box from its bounds."""
    outward = (x <= bounds[0]) & (grad < 0) | (x >= bounds[1]) & (grad > 0)
    return grad.masked_fill(outward, 0)


def scheduled(first: float, last: float, step: int, steps: int) -> float:
    """From `first` at step 0 to `last` at the last of `steps`, by a constant factor."""
    return float(first * (last / first) ** (step / (steps - 1))) if steps > 1 else first


def ddn_step(
    x: Tensor,  # [...], one sample
    x0: Tensor,
    grad: Tensor,
    margin: Tensor,
    adversarial: bool,
    eps: Tensor,
    best: Tensor,
    step: int,
    config: StepConfig,
    bounds: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Decoupled direction and norm (Rony et al. 2019): the next iterate and its radius."""
    grad, delta = inward(grad, x, bounds), x - x0
    fraction = scheduled(config.step_fraction, config.last_step_fraction, step, config.steps)
    change = scheduled(config.eps_growth - 1, config.last_eps_growth - 1, step, config.steps)
    moved = delta + fraction * eps * grad / grad.norm()
    direction = moved / moved.norm() if moved.any() else moved
    if step and adversarial:
        crossing = config.overshoot * (margin + (grad * delta).sum()) / (grad * direction).sum()
        crossing = crossing if (grad * direction).sum() > 0 else eps
        tightest = torch.minimum(eps, best)
        eps = crossing.clamp(tightest * (1 - 2 * change), tightest * (1 - change))
    elif step:
        eps = eps * (1 + change)
    eps = eps.clamp(max=config.eps_max)
    return (x0 + eps * direction).clamp(*bounds), eps


def deepfool_step(
    x: Tensor,  # [...], one sample
    x0: Tensor,
    grad: Tensor,
    margin: Tensor,
    adversarial: bool,
    config: StepConfig,
    bounds: tuple[float, float],
) -> Tensor:
    """To the linearised boundary (Moosavi-Dezfooli et al. 2016), from a point nearer to x0 if adversarial."""
    grad, delta = inward(grad, x, bounds), x - x0
    pulled = (config.pull_back if adversarial else 1.0) * delta
    left = margin + (grad * (delta - pulled)).sum()  # of the margin, at the pulled point
    norm = grad.norm()
    length = config.overshoot * left / norm
    if not adversarial:
        length = length.clamp(min=shortest_step(x[None])[0])
    most = torch.finfo(grad.dtype).max  # 0 times infinity would be NaN
    next_x: Tensor = (x0 + pulled + (length / norm).clamp(-most, most) * grad).clamp(*bounds)
    return next_x


def search_step_(
    batch: SlotBatch,
    feedback: Feedback,
    samples: SampleTable,
    queue: Tensor,  # [Q]
    queue_position: Tensor,  # [1]
    config: StepConfig,
    bounds: tuple[float, float],
) -> None:
    """As csrc/search_step, slot by slot."""
    (grad, adversarial, predicted, margin), real, rule = feedback, samples.eps.dtype, config.rule
    edges = torch.tensor(bounds, dtype=batch.x.dtype).tolist()  # rounded as the iterates on them are
    bounds = (edges[0], edges[1])
    for slot, sample in enumerate(batch.sample_index.tolist()):
        if sample < 0:
            continue
        x, x0, g, hit = batch.x[slot].to(real), samples.inputs[sample].to(real), grad[slot].to(real), adversarial[slot]
        distance = (x - x0).norm()
        if hit and distance < samples.distance[sample]:
            samples.images[sample], samples.found_labels[sample] = batch.x[slot], predicted[slot]
            samples.distance[sample] = distance

        steps_spent = rule != "pgd" and samples.step_count[sample] >= config.steps
        samples.grad_evals[sample] += not steps_spent
        ascent = inward(g, x, bounds) if rule in ("ddn", "deepfool") else g
        squared = ascent.square().sum()
        if steps_spent or (hit and (rule == "pgd" or distance == 0)):
            ended = Status.EXHAUSTED
        elif not squared.isfinite() or (rule != "external" and (squared == 0 or margin[slot].isnan())):
            ended = Status.NO_GRADIENT
        else:
            ended = Status.PENDING
            if samples.eps[sample] == 0 and rule != "external":
                estimate = config.start * margin[slot] / squared.sqrt()
                samples.eps[sample] = estimate.clamp(min=shortest_step(x[None])[0]).clamp(max=config.eps_max)
        if rule == "pgd" and ended == Status.PENDING and samples.step_count[sample] == config.steps:
            larger = (samples.eps[sample] * config.eps_growth).clamp(max=config.eps_max)
            if larger > samples.eps[sample]:
                samples.eps[sample], samples.step_count[sample] = larger, 0
            else:
                ended = Status.EXHAUSTED
        if ended:
            samples.status[sample] = Status.FOUND if samples.distance[sample].isfinite() else ended
            batch.sample_index[slot] = -1
            continue

        step, eps, best = int(samples.step_count[sample]), samples.eps[sample].clone(), samples.distance[sample]
        if rule == "pgd":
            x = pgd_step(x[None], x0[None], g[None], eps[None], config.step_fraction, bounds)[0]
        elif rule == "ddn":
            x, samples.eps[sample] = ddn_step(x, x0, g, margin[slot], bool(hit), eps, best, step, config, bounds)
        elif rule == "deepfool":
            x = deepfool_step(x, x0, g, margin[slot], bool(hit), config, bounds)
        else:
            x = g.clamp(*bounds)
        batch.x[slot] = x
        samples.step_count[sample] += 1

    for slot in (batch.sample_index < 0).nonzero().flatten().tolist():
        if queue_position < len(queue):
            sample = int(queue[queue_position])
            batch.sample_index[slot], batch.slot_labels[slot], batch.x[slot] = (
                sample,
                samples.labels[sample],
                samples.images[sample],
            )
            queue_position += 1


@torch.no_grad()
def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    masks: Sequence[Tensor],
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first: bool = False,
    gradient_only: bool = False,
) -> None:
    """As csrc/masked_sgd, parameter by parameter."""
    for i, param in enumerate(params):
        wide, grad = param.to(accumulate_dtype(param.dtype)), grads[i]
        mask = masks[i] if masks else torch.ones_like(param, dtype=torch.bool)
        grad = grad.where(mask, 0.0) if gradient_only else grad
        step = (-grad if maximize else grad).to(wide.dtype) + (weight_decay * wide if weight_decay else 0.0)
        moves = mask | gradient_only
        if momentum:
            before = torch.zeros_like(momentum_buffers[i]) if first else momentum_buffers[i].clone()
            moved = step if first else momentum * before.to(wide.dtype) + (1 - dampening) * step
            momentum_buffers[i].copy_(moved.to(before.dtype).where(moves, before))
            step = step + momentum * moved if nesterov else moved
        param.copy_((wide - lr * step).to(param.dtype).where(moves, param))


def sm_taylor_softmax(
    logits: Tensor,  # [..., N, C]
    labels: Tensor,  # [N]
    order: int = 4,
    margin: float = 0.6,
    temperature: float = 2.0,
    floor: float | None = None,
) -> Tensor:
    """As csrc/sm_taylor_softmax, as a sum of powers."""

    def taylor(z: Tensor) -> Tensor:
        total = torch.ones_like(z)
        for k in range(1, order):
            total = total + z**k / math.factorial(k)
        return total if floor is None else total.clamp(min=floor)

    scaled = logits.to(accumulate_dtype(logits.dtype)) / temperature
    known = (labels >= 0) & (labels < logits.shape[-1])
    index = labels.where(known, 0).expand(logits.shape[:-1])[..., None]  # [..., N, 1]
    own = taylor(scaled.gather(-1, index)[..., 0] - margin)
    others = taylor(scaled).scatter(-1, index, 0.0).sum(-1)
    return (own / (own + others)).where(known, torch.nan)
