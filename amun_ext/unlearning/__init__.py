"""Unlearning methods: one file and one row of METHODS each, all through one loop (`amun_ext.training.fit`)."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.checks import check_images, check_labels, require
from amun_ext.data import as_tensors, copies
from amun_ext.models.state import count_classes
from amun_ext.unlearning.amun import amun
from amun_ext.unlearning.retrain import retrain

__all__ = ["METHODS", "amun", "retrain", "unlearn"]

# name -> function(model, forget, retain, *, seed, progress, **options), which changes the model it is given
METHODS: Mapping[str, Callable[..., None]] = {"amun": amun, "retrain": retrain}


def unlearn(
    model: nn.Module,
    forget: Dataset[Any],
    retain: Dataset[Any] | None = None,
    *,
    method: str = "amun",
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> nn.Module:
    """A copy of `model` that has unlearned the `forget` set; the model itself stays as it is.

    Args:
        model: the trained classifier, [N, ...] to logits [N, K].
        forget, retain: map-style datasets of (input, true label); of retain, all that the model was trained on but
            `forget`, or None where that is no longer there.
        method: a name in METHODS; `options` are its own (see `amun_ext.unlearning.amun.amun`).
        seed: of all randomness.
        progress: show bars.

    Raises:
        InputError: unknown method, empty or overlapping sets, inputs and labels that do not fit, before any
            work. A copy of a forget input in the retain set is an overlap, under whatever label: it would go on being
            trained on.
    """
    require(isinstance(model, nn.Module), "model", "an nn.Module", type(model).__name__)
    require(method in METHODS, "method", f"one of {tuple(METHODS)}", repr(method))
    num_classes = count_classes(model, _checked("forget", forget).tensors[0])
    forget_tensors = _checked("forget", forget, num_classes)
    retain_tensors = None if retain is None else _checked("retain", retain, num_classes)
    if retain_tensors is not None:
        shapes = tuple(tuple(part.tensors[0].shape[1:]) for part in (forget_tensors, retain_tensors))
        require(shapes[0] == shapes[1], "retain", f"of the forget set's input shape {shapes[0]}", shapes[1])
        shared = copies(forget_tensors, retain_tensors)
        must_be = "free of the forget samples"
        require(not shared, "retain", must_be, f"{len(shared)} of them (forget, retain): {shared[:5]}")
    with torch.inference_mode(False):
        unlearned = copy.deepcopy(model)
    METHODS[method](unlearned, forget_tensors, retain_tensors, seed=seed, progress=progress, **options)
    return unlearned


def _checked(name: str, dataset: Dataset[Any], num_classes: int | None = None) -> TensorDataset:
    inputs, labels = as_tensors(dataset, name)
    check_images(name, inputs, (-math.inf, math.inf))
    check_labels(f"{name} labels", labels, len(inputs), num_classes)
    return TensorDataset(inputs, labels)
