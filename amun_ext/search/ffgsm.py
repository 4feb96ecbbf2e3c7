"""FFGSM: the weak attack of the paper's appendix E.5, to measure how much the quality of the examples matters.

The appendix describes it in words: one gradient, then growing steps along its sign until the sample is misclassified;
after too many steps it starts again from a slightly perturbed image with a new gradient. The rest is decided here:
lengths are L2 norms, the first step is `eps_init` long and each further one `eps_growth` times as long, there are TRIES
tries of `steps` steps, and each but the first starts `eps_init` away from the image in a random direction.
"""

from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from amun_ext.ops import Status, shortest_step
from amun_ext.search.loop import Search

TRIES = 5


def ffgsm(search: Search, queue: Tensor, bar: "tqdm[Any]") -> None:
    """Search the samples `queue` [Q] of the table. The result of a sample does not depend on the others."""
    table, config = search.table, search.config
    table.status[queue] = Status.EXHAUSTED
    for batch in queue.split(search.batch_size):
        left = batch
        for attempt in range(TRIES):
            x = table.inputs[left]
            if attempt:
                noise = table.eps[left].view(search.per_sample) * _directions(search.first_row + left, attempt, x)
                x = (x + noise).clamp(*search.bounds)
            attack, grad = search.gradient(x, table.labels[left])
            table.grad_evals[left] += 1
            direction = _unit(grad.sign())  # zero without a gradient: such a sample does not move
            if attempt == 0:
                stuck = left[~direction.flatten(1).any(1) & ~attack.adversarial]
                table.status[stuck] = Status.NO_GRADIENT
                estimate = torch.nan_to_num(config.start * attack.margin / grad.flatten(1).norm(dim=1)).to(table.eps)
                estimate = torch.maximum(estimate, shortest_step(x)).clamp(max=config.eps_max)
                table.eps[left] = torch.where(table.eps[left] == 0, estimate, table.eps[left])
            length = table.eps[left]
            for step in range(config.steps + 1):
                hit = attack.adversarial
                search.replace(left[hit], x[hit], attack.predicted[hit])
                table.status[left[hit]] = Status.FOUND
                left, x, direction, length = left[~hit], x[~hit], direction[~hit], length[~hit]
                if step == config.steps or not len(left):
                    break
                x = (x + length.view(search.per_sample) * direction).clamp(*search.bounds)
                length = (length * config.eps_growth).clamp(max=config.eps_max)
                attack = search.evaluate(x, table.labels[left])
            if not len(left):
                break
        bar.update(len(batch))


def _directions(rows: Tensor, attempt: int, like: Tensor) -> Tensor:
    """A random direction for each row, the same in any batch."""
    noise = [
        torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(TRIES * int(row) + attempt), device="cpu")
        for row in rows
    ]
    return _unit(torch.stack(noise).to(like)) if noise else like


def _unit(vectors: Tensor) -> Tensor:
    norm = vectors.flatten(1).norm(dim=1).view(-1, *[1] * (vectors.dim() - 1))
    return torch.nan_to_num(vectors / norm)
