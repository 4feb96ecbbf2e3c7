"""FFGSM: the weak attack of the paper's appendix E.5, to see how much the quality of the examples matters.

The appendix describes it in words: one gradient, then steps along its sign, the step growing until the sample is
misclassified; if that takes too long, from the start again at a slightly perturbed image with a new gradient. What it
leaves open is decided here: lengths are L2 norms, the first step is `eps_init` long and each further one `eps_growth`
times as long, `steps` of them make a try, there are TRIES tries, and each but the first starts at a point `eps_init`
away from the image in a random direction.
"""

from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from amun_ext.ops import Status
from amun_ext.search.engine import Search

TRIES, ROUNDINGS = 5, 16


def ffgsm(search: Search, queue: Tensor, bar: "tqdm[Any]") -> None:
    """Search the samples `queue` [Q] of the book. What a sample gets does not depend on the others."""
    book, schedule = search.book, search.schedule
    book.status[queue] = Status.EXHAUSTED
    for batch in queue.split(search.batch_size):
        left = batch
        for attempt in range(TRIES):
            x = book.inputs[left]
            if attempt:
                aside = book.eps[left].view(search.per_sample) * _directions(search.first_row + left, attempt, x)
                x = (x + aside).clamp(*search.bounds)
            attack, grad = search.gradient(x, book.labels[left])
            book.grad_evals[left] += 1
            direction = _unit(grad.sign())  # zero without a gradient: such a sample stays where it is
            if attempt == 0:
                stuck = left[~direction.flatten(1).any(1) & ~attack.adversarial]
                book.status[stuck] = Status.NO_GRADIENT
                estimate = torch.nan_to_num(schedule.start * attack.margin / grad.flatten(1).norm(dim=1)).to(book.eps)
                shortest = ROUNDINGS * torch.finfo(x.dtype).eps * x.flatten(1).norm(dim=1)  # as in search_step_
                estimate = torch.maximum(estimate, shortest).clamp(max=schedule.eps_max)
                book.eps[left] = torch.where(book.eps[left] == 0, estimate, book.eps[left])
            length = book.eps[left]
            for step in range(schedule.steps + 1):
                hit = attack.adversarial
                _keep(search, left[hit], x[hit], attack.predicted[hit])
                left, x, direction, length = left[~hit], x[~hit], direction[~hit], length[~hit]
                if step == schedule.steps or not len(left):
                    break
                x = (x + length.view(search.per_sample) * direction).clamp(*search.bounds)
                length = (length * schedule.eps_growth).clamp(max=schedule.eps_max)
                attack = search.look(x, book.labels[left])
            if not len(left):
                break
        bar.update(len(batch))


def _keep(search: Search, rows: Tensor, x: Tensor, labels: Tensor) -> None:
    book = search.book
    book.images[rows], book.found_labels[rows], book.status[rows] = x, labels, Status.FOUND
    book.distance[rows] = search.distances(rows)


def _directions(rows: Tensor, attempt: int, like: Tensor) -> Tensor:
    """A random direction for each row, the same in whatever batch."""
    noise = [
        torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(TRIES * int(row) + attempt), device="cpu")
        for row in rows
    ]
    return _unit(torch.stack(noise).to(like)) if noise else like


def _unit(vectors: Tensor) -> Tensor:
    norm = vectors.flatten(1).norm(dim=1).view(-1, *[1] * (vectors.dim() - 1))
    return torch.nan_to_num(vectors / norm)
