"""Gradients of the cross-entropy by batches of a set, summed over them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from amun_ext.models.state import placement
from amun_ext.progress import progress_bar
from amun_ext.random_state import own_random_state
from amun_ext.saliency import batch_gradients, check_finite, zeros_for
from amun_ext.training import DataPart, RunOptions
from amun_ext.training.parts import BatchLoader, split_sizes


def sum_over_batches(
    model: nn.Module,
    weights: dict[str, nn.Parameter],
    data: Dataset[Any],
    batch_size: int,
    run: RunOptions,
    description: str,
    term: Callable[[Tensor, int], Tensor],
) -> tuple[list[Tensor], int]:
    """For each of the weights the sum of `term` over the batches, and their number.

    `term` is a function of the gradient of a batch's summed cross-entropy, in eval mode, and of the batch's size.
    FloatingPointError for a gradient that is not finite.
    """
    device, dtype = placement(model, next(iter(weights.values())))
    feed = BatchLoader([DataPart(data)], device, dtype, run.num_workers)
    sizes = split_sizes(len(feed), batch_size)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.Generator().manual_seed(run.seed)
        read = feed.batches(0, batch_size, order)
        for x, labels, _ in progress_bar(run.progress, read, description, unit="batch", total=len(sizes)):
            yield x, labels

    sums = zeros_for(weights.values())
    with own_random_state([device] if device.type == "cuda" else []):
        torch.manual_seed(run.seed)  # of transforms that draw
        for size, grads in zip(sizes, batch_gradients(model, [*weights.values()], batches()), strict=True):
            for total, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    total += term(grad.to(total.dtype), size)
    check_finite(description, dict(zip(weights, sums, strict=True)))
    return sums, len(sizes)
