"""unlearn: a copy of a model that has forgotten some of its training samples."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from amun_ext.data import as_tensors, find_duplicates
from amun_ext.data.images import stored, subset
from amun_ext.data.splits import checked_dataset
from amun_ext.models.reinitialise import deep_copy
from amun_ext.models.state import count_classes
from amun_ext.random_state import same_random_state
from amun_ext.saliency import saliency_mask
from amun_ext.tensor_checks import check_images, check_labels
from amun_ext.training import Epoch, Recipe, RunOptions
from amun_ext.training.loop import check
from amun_ext.training.parts import has_rows
from amun_ext.unlearning.methods import METHODS
from amun_ext.unlearning.presets import preset_options
from amun_ext.validation import InputError, is_number, require


def unlearn(
    model: nn.Module,
    forget: Dataset[Any],
    retain: Dataset[Any] | None = None,
    *,
    method: str = "amun",
    preset: str | None = None,
    mask: Mapping[str, Tensor] | float | None = None,
    mask_gradient_only: bool | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    eval_sets: Mapping[str, TensorDataset] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    num_workers: int = 0,
    progress: bool = False,
    copy: bool = True,
    **options: Any,
) -> nn.Module:
    """Return a copy of `model` that has unlearned the `forget` set; the model itself is not changed.

    Args:
        model: the trained classifier, [N, ...] to logits [N, K].
        forget, retain: map-style datasets of (input, true label); retain is all other training data, or None if it is
            no longer available. A TensorDataset, or a Subset of one, is kept on the model's device. Any other forget
            set is read once, so a random transform is applied once; any other retain set is read once to look for
            copies, and then in every epoch through a DataLoader.
        method: a name in METHODS; `options` are its own (see the function in `amun_ext.unlearning`), `recipe` of all.
        preset: a name in PRESETS, for published options; options that you pass override them.
        mask: only the weights where it is True may change: name -> bool tensor, or the fraction for `saliency_mask`.
            "salun" and "amun+salun" are "rl" and "amun" with the fraction 0.5. BatchNorm's running statistics are no
            weights; `batch_norm` of the recipe decides about them.
        mask_gradient_only: mask only the gradient, as in older code: weight decay then changes masked weights as well.
            None means False, or the value of the preset.
        seed: of all randomness. The random state belongs to the process: trainings in several threads wait for each
            other, and other threads must not run models that draw random numbers in eval mode.
        checkpoint: a file to resume a stopped fine-tuning from. Remove it afterwards: it depends on the forget set.
        eval_sets: name -> TensorDataset of inputs and labels, whose accuracy every epoch reports.
        on_epoch: called with an `Epoch` after every epoch.
        num_workers: processes that read a retain set through a DataLoader.
        progress: show bars.
        copy: False changes the model itself and returns it, as a model under `fully_shard` needs; a failure leaves it
            in between.

    Raises:
        InputError: unknown method, preset or option, a method that needs the retain set without one, a checkpoint,
            eval_sets or on_epoch for one without epochs ("ssd"), empty or overlapping sets, inputs and labels that do
            not fit, before any work. A copy of a forget input in the retain set is an overlap, under any label: the
            model would still be trained on it.
        FloatingPointError: the loss diverges.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from amun_ext import unlearn
        >>> from amun_ext.training import Recipe
        >>> model = torch.nn.Linear(2, 2, bias=False)  # class 0 where the first number is the larger one
        >>> _ = model.load_state_dict({"weight": torch.eye(2)})
        >>> inputs = torch.rand(40, 2)
        >>> labels = inputs.argmax(1)
        >>> forget, retain = TensorDataset(inputs[:4], labels[:4]), TensorDataset(inputs[4:], labels[4:])
        >>> unlearned = unlearn(model, forget, retain, method="amun", recipe=Recipe(epochs=2, lr=0.1))
        >>> bool((unlearned.weight == model.weight).all()), model.weight.tolist()  # the model itself stays as it is
        (False, [[1.0, 0.0], [0.0, 1.0]])
    """
    require(isinstance(model, nn.Module), "model", "an nn.Module", type(model).__name__)
    require(isinstance(copy, bool), "copy", "True or False", repr(copy))
    require(method in tuple(METHODS), "method", f"one of {tuple(METHODS)}", repr(method))
    row = METHODS[method]
    options = {**({} if preset is None else preset_options(preset, method)), **options}
    published = options.pop("mask_gradient_only", False)
    mask_gradient_only = published if mask_gradient_only is None else mask_gradient_only
    for name, value in options.items():
        expected = f"left out: method {method} has the options {sorted(row.options)}"
        if name in Recipe.__dataclass_fields__:
            expected = f"in the recipe, as recipe=Recipe({name}=...)"
        require(name in row.options, name, expected, value)
    expected = f"given: method {method} trains on it"
    require(retain is not None or not row.needs_retain, "retain", expected, "None")
    for name in row.inputs:
        require(name in options, name, expected, "None")
    for name, value in {"checkpoint": checkpoint, "eval_sets": eval_sets, "on_epoch": on_epoch}.items():
        require(row.trains or not value, name, f"left out: method {method} has no epochs", value)
    mask = row.fraction if mask is None else mask
    named = mask if isinstance(mask, Mapping) else None
    keep = float(mask) if is_number(mask) else math.nan
    expected = "bool tensors by name, or a fraction in (0, 1]"
    require(mask is None or named is not None or 0 < keep <= 1, "mask", expected, repr(mask))
    run = RunOptions(
        seed=seed,
        # a fraction becomes a mask when all else has been found right
        mask=named if math.isnan(keep) else lambda: saliency_mask(model, forget_tensors, keep, progress=progress),
        mask_gradient_only=bool(mask_gradient_only),
        checkpoint=None if checkpoint is None else Path(checkpoint),
        eval_sets={} if eval_sets is None else eval_sets,
        on_epoch=on_epoch,
        num_workers=num_workers,
        progress=progress,
    )

    with same_random_state():  # an item may be drawn by a transform
        forget_tensors = checked_dataset(forget, "forget")
        like = forget_tensors[:2][0]
        num_classes = count_classes(model, like)
        _check_fits("forget", forget_tensors, like, num_classes)
        retain = None if retain is None else _checked_retain(retain, forget_tensors, num_classes)
    for name, data in run.eval_sets.items():
        _check_fits(f"eval_sets[{name!r}]", data, like, num_classes)
    check(model, options.get("recipe", row.options["recipe"].default), run, like[0])
    with torch.inference_mode(False):
        unlearned = _copied(model) if copy else model
        row.function(unlearned, forget_tensors, retain, run, **options)
    return unlearned


def _copied(model: nn.Module) -> nn.Module:
    try:
        copied = deep_copy(model)
    except Exception as error:  # it is the user's, and may raise anything
        raise InputError(f"model must be one that copy.deepcopy can copy, got {error}") from error
    can_train = all(parameter.is_leaf for parameter in copied.parameters())  # not so of TorchScript
    expected = "one whose deep copy can be trained, such as the module that a script was made from"
    require(can_train, "model", expected, type(model).__name__)
    return copied


def _check_fits(name: str, dataset: TensorDataset, like: Tensor, num_classes: int) -> None:
    """InputError for inputs of another shape than `like` [N, ...], and labels that are no classes."""
    inputs, labels = stored(dataset)
    check_labels(f"{name} labels", labels, len(inputs), num_classes)
    shape, actual = tuple(like.shape[1:]), tuple(inputs.shape[1:])
    require(actual == shape, name, f"of the forget set's input shape {shape}", actual)


def _checked_retain(retain: Dataset[Any], forget: TensorDataset, num_classes: int) -> Dataset[Any]:
    """`retain`, in memory where it is made of tensors. InputError also where it has copies of forget inputs."""
    tensors, like = _tensors_of(retain), forget[:1][0]
    if tensors is not None:
        retain = checked_dataset(tensors, "retain")
        _check_fits("retain", retain, like, num_classes)
        shared = find_duplicates(forget, retain)
    else:
        shared = find_duplicates(forget, _items(retain, tuple(like.shape[1:]), num_classes))
    expected = "free of the forget samples"
    require(not shared, "retain", expected, f"{len(shared)} of them (forget, retain): {shared[:5]}")
    return retain


def _tensors_of(dataset: Dataset[Any]) -> TensorDataset | None:
    """A TensorDataset, or a Subset of one; None of all others."""
    if has_rows(dataset):
        return dataset
    whole_set = _tensors_of(dataset.dataset) if type(dataset) is Subset else None
    if whole_set is None:
        return None
    rows = torch.tensor([int(index) for index in dataset.indices], dtype=torch.int64, device="cpu")  # type: ignore[attr-defined]
    return subset(whole_set, rows)


def _items(retain: Dataset[Any], shape: tuple[int, ...], num_classes: int) -> Iterator[Tensor]:
    """The inputs [...] of a dataset, one at a time, each checked like those in memory."""
    map_style = hasattr(retain, "__len__") and hasattr(retain, "__getitem__")
    require(map_style, "retain", "a map-style dataset (__len__ and __getitem__)", type(retain).__name__)
    require(len(retain) > 0, "retain", "non-empty", "no items")  # type: ignore[arg-type]
    for index in range(len(retain)):  # type: ignore[arg-type]
        images, labels = as_tensors(retain, "retain", range(index, index + 1))
        check_images(f"retain[{index}]", images, (-math.inf, math.inf))
        check_labels(f"retain[{index}] label", labels, 1, num_classes)
        actual = tuple(images.shape[1:])
        require(actual == shape, f"retain[{index}]", f"of the forget set's input shape {shape}", actual)
        yield images[0]
