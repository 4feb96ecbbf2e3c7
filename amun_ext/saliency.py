"""The SalUn mask: the parameters with the largest gradients on the forget set, and its file of one bit each."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset

from amun_ext.data.images import stored
from amun_ext.data.splits import checked_dataset
from amun_ext.files import write_tensors
from amun_ext.models.state import count_classes, eval_mode, logits_of, placement
from amun_ext.progress import progress_bar
from amun_ext.sharded import check_shards, gathered, is_shard, not_finite, scattered, write_whole
from amun_ext.tensor_checks import check_labels
from amun_ext.validation import InputError, check_integer, is_number, listed, require

SCORES = ("abs_sum", "sum_abs")
FORMAT = {"format": "amun_ext.saliency_mask", "version": "1"}


def saliency_mask(
    model: nn.Module,
    forget: Dataset[Any],
    fraction: float = 0.5,
    *,
    score: str = "abs_sum",
    batch_size: int = 256,
    progress: bool = False,
) -> dict[str, Tensor]:
    """True for the parameters with the largest gradients of the loss on the forget set; only they are to be trained.

    The mask of SalUn (Fan et al., ICLR 2024, equation 4; AMUN paper, appendix D), 1(|grad L(D_F)| >= gamma) with the
    cross-entropy of the true labels for L, and with gamma such that this fraction of all parameters passes. All
    parameters are in one ranking, BatchNorm's and biases as well.

    The model runs in eval mode and is left as it was: training flags, gradients, buffers and the random state.
    Gradients in half precision are summed in float32.

    Args:
        model: maps [N, ...] to logits [N, K].
        forget: a map-style dataset of (input, true label), taken as it is, without augmentation.
        fraction: of the parameters that are True, in (0, 1]: int(fraction * n) of n. Equal scores go by the order of
            `named_parameters()`, then of elements.
        score: "abs_sum", the published |sum over samples of the gradient|; or "sum_abs", the sum over batches of
            |gradient of the batch|, as SalUn's code had it until December 2023 and as others still have it.
        batch_size: with "abs_sum" of no influence beyond rounding; with "sum_abs" part of the definition. Both sum over
            samples, where SalUn's code sums means of batches: there those of a smaller last batch weigh more.
        progress: show a bar.

    Returns:
        name -> bool tensor of the parameter's shape and device, and divided as it is under `fully_shard`, for each
        parameter that requires a gradient. One that the logits do not depend on has score 0.

    Raises:
        InputError: an argument is not what it must be; `fraction` leaves no parameter.
        FloatingPointError: a gradient is NaN or infinite.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from amun_ext import saliency_mask
        >>> model = torch.nn.Linear(4, 3)  # 15 parameters
        >>> forget = TensorDataset(torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        >>> masks = saliency_mask(model, forget, 0.2)
        >>> {name: tuple(mask.shape) for name, mask in masks.items()}
        {'weight': (3, 4), 'bias': (3,)}
        >>> sum(int(mask.sum()) for mask in masks.values())
        3
    """
    require(isinstance(model, nn.Module), "model", "an nn.Module", type(model).__name__)
    require(is_number(fraction) and 0 < fraction <= 1, "fraction", "in (0, 1]", repr(fraction))
    require(score in SCORES, "score", f"one of {SCORES}", repr(score))
    batch_size = check_integer("batch_size", batch_size, 1)
    check_shards(model)
    parameters = trainable(model)
    count = sum(parameter.numel() for parameter in parameters.values())
    require(fraction * count >= 1, "fraction", f"at least one of the {count} parameters", fraction)
    data = checked_dataset(forget, "forget")
    check_labels("forget labels", stored(data)[1], len(data), count_classes(model, data[:2][0]))

    with torch.inference_mode(False):  # the masks are used in training
        weights = [*parameters.values()]
        sums = zeros_for(weights)
        starts = progress_bar(progress, range(0, len(data), batch_size), "saliency", unit="batch")
        for grads in batch_gradients(model, weights, (data[start : start + batch_size] for start in starts)):
            for total, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    total += grad.abs() if score == "sum_abs" else grad
        check_finite("saliency", dict(zip(parameters, sums, strict=True)))
        scores = gathered({name: total.abs() for name, total in zip(parameters, sums, strict=True)}).values()
        chosen = torch.empty(count, dtype=torch.bool, device="cpu")
        if scores:  # one ranking of all shards, by the first rank
            chosen = _largest(torch.cat([score.flatten().cpu() for score in scores]), int(fraction * count))
        parts = chosen.split([weight.numel() for weight in weights])
        return {
            name: scattered(part.view(weight.shape), weight)
            for name, weight, part in zip(parameters, weights, parts, strict=True)
        }


def save_mask(path: str | os.PathLike[str], mask: Mapping[str, Tensor]) -> None:
    """Write a mask to a safetensors file, eight parameters a byte, completely or not at all.

    The file contains information about the forget set: delete it with the forget set.
    """
    by_name = isinstance(mask, Mapping) and len(mask) > 0
    bools = by_name and all(isinstance(part, Tensor) and part.dtype == torch.bool for part in mask.values())
    require(bools, "mask", "bool tensors by name, as saliency_mask returns them", type(mask).__name__)
    shapes = json.dumps({name: list(part.shape) for name, part in mask.items()})

    def write(parts: dict[str, Tensor]) -> None:
        bits = {name: torch.from_numpy(np.packbits(part.cpu().flatten().numpy())) for name, part in parts.items()}
        write_tensors(path, bits, FORMAT | {"shapes": shapes})

    write_whole(write, mask)


def load_mask(path: str | os.PathLike[str], model: nn.Module) -> dict[str, Tensor]:
    """Read what `save_mask` wrote, onto the devices of the parameters of `model`.

    InputError for any other file, and unless names and shapes are those of the model's trainable parameters.
    """
    require(isinstance(model, nn.Module), "model", "an nn.Module", type(model).__name__)
    parameters = trainable(model)
    bits, shapes = _read(path)
    problems = {
        "missing": [name for name in parameters if name not in shapes],
        "unexpected": [name for name in shapes if name not in parameters],
        "other shape": [
            f"{name} ({shapes[name]} in the file, {list(parameter.shape)} in the model)"
            for name, parameter in parameters.items()
            if name in shapes and shapes[name] != list(parameter.shape)
        ],
    }
    found = "; ".join(f"{kind}: {listed(names)}" for kind, names in problems.items() if names)
    require(not found, "path", "a mask of the model's trainable parameters", f"{os.fspath(path)}, {found}")
    return {
        name: torch.from_numpy(np.unpackbits(bits[name].numpy(), count=parameter.numel()).view(np.bool_))
        .view(parameter.shape)
        .to(parameter.device)
        for name, parameter in parameters.items()
    }


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    require(bool(parameters), "model", "trainable in some parameter", "all frozen")
    return parameters


def batch_gradients(
    model: nn.Module, weights: Sequence[nn.Parameter], batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor | None, ...]]:
    """The gradients of the summed cross-entropy of each batch of inputs [B, ...] and labels [B], in eval mode; None for
    weights that the logits do not depend on."""
    with eval_mode(model), torch.enable_grad():
        for x, y in batches:
            device, dtype = placement(model, x)
            # copies: the model may change its input in place, and autograd refuses inference tensors
            logits = logits_of(model, x.to(device, dtype, copy=True))
            loss = F.cross_entropy(logits, y.to(logits.device, copy=True), reduction="sum")
            grads = _gradients(loss, weights) if loss.requires_grad else ()
            depends = any(grad is not None for grad in grads)
            require(depends, "model", "a map to logits that depend on its trainable parameters", "others")
            yield grads


def _gradients(loss: Tensor, weights: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...]:
    if not any(map(is_shard, weights)):
        return torch.autograd.grad(loss, weights, allow_unused=True)
    before = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    loss.backward()  # alone it reaches shards, as means over the ranks, which are equal here
    grads = tuple(weight.grad for weight in weights)
    for weight, grad in zip(weights, before, strict=True):
        weight.grad = grad
    return grads


def zeros_for(weights: Iterable[Tensor]) -> list[Tensor]:
    """A zero tensor for each weight, at least in float32, for sums."""
    return [torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in weights]


def check_finite(what: str, sums: Mapping[str, Tensor]) -> None:
    """FloatingPointError with the names of parameters whose gradients are not finite."""
    broken = not_finite(sums)
    if broken:
        raise FloatingPointError(f"{what}: the gradient is NaN or infinite in {listed(broken)}")


def _largest(scores: Tensor, count: int) -> Tensor:
    """True for the `count` largest of `scores` [n], the first of equal ones."""
    least = scores.kthvalue(len(scores) - count + 1).values
    chosen = scores > least
    equal = (scores == least).nonzero()[:, 0]
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    try:
        with safe_open(path, framework="pt") as file:
            about, names = file.metadata() or {}, file.keys()
            bits = {name: file.get_tensor(name) for name in names}
        shapes = json.loads(about.get("shapes", "{}"))
        sizes = {name: ((math.prod(shape) + 7) // 8,) for name, shape in shapes.items()}
        whole_bytes = all(part.dtype == torch.uint8 for part in bits.values())
        ours = FORMAT.items() <= about.items() and whole_bytes
        ours = ours and sizes == {name: tuple(part.shape) for name, part in bits.items()}
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"path must be a file that save_mask wrote, got {os.fspath(path)}: {error}") from error
    require(ours, "path", "a file that save_mask wrote", os.fspath(path))
    return bits, shapes
