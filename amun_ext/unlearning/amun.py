"""AMUN: fine-tune on the closest adversarial examples of the forget set, with their wrong labels (paper, section 4)."""

import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.data.images import ImageDataset, stored, subset
from amun_ext.data.lazy import LazyImages, fits_memory
from amun_ext.search import ATTACKS, AdversarialSet, PythonRule, find_min_adversarial
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.validation import require

# Ten epochs of SGD as in the paper's appendix C. It does not publish the learning rates it selected; 0.01, a tenth of
# it every epoch, is the one that the authors' README uses, for 10 % of CIFAR-10 with the retain set.
RECIPE = Recipe(epochs=10, lr=0.01, schedule="step:1")
CHECKED_AT_ONCE = 32  # images


def amun(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    include_forget: bool = True,
    adversarial: AdversarialSet | None = None,
    search: str | PythonRule = "ddn",
    recipe: Recipe = RECIPE,
    **settings: Any,
) -> None:
    """Fine-tune `model` in place on D_R + D_F + D_A, D_F + D_A without a retain set, or D_R + D_A, D_A.

    D_A has for each forget sample the closest adversarial example with the label that the model gives it. A sample
    without one is reported as a warning and left out altogether: its true label alone would be remembering.

    Args:
        include_forget: train on D_F with its true labels beside D_A (paper, section 4.2). Without it is the paper's
            form for large requests (section 6.1).
        adversarial: the result of `find_min_adversarial` for `forget`, row by row; searched for if None.
        recipe: the fine-tuning; augmentation applies to D_R and D_F, never to D_A.
        search: the method of `find_min_adversarial`; `settings` are further ones of its arguments. "pgd" is the
            paper's; the models forget equally well with "ddn", at a tenth of the gradients
            (docs/benchmarks/unlearning.md).
    """
    require(isinstance(include_forget, bool), "include_forget", "True or False", repr(include_forget))
    valid = callable(search) or search in tuple(ATTACKS)
    require(valid, "search", f"one of {tuple(ATTACKS)} or a function", repr(search))
    if adversarial is None:
        adversarial = find_min_adversarial(model, forget, method=search, progress=run.progress, **settings)
    else:
        require(isinstance(adversarial, AdversarialSet), "adversarial", "an AdversarialSet", type(adversarial).__name__)
        require(not settings, "settings of the search", "absent when the examples are given", sorted(settings))
    adversarial = adversarial.to(stored(forget)[1].device)
    check_examples(adversarial, forget)
    rows = adversarial.found
    require(bool(rows.any()), "forget", "a set with an adversarial example for at least one sample", "none found")
    if not rows.all():
        missing = (~rows).nonzero()[:, 0].tolist()
        warnings.warn(
            f"{len(missing)} of {len(rows)} forget samples have no adversarial example and are left out: rows "
            f"{missing[:10]}{' ...' if len(missing) > 10 else ''}",
            RuntimeWarning,
            stacklevel=3,
        )
    parts = [DataPart(_wrongly_labelled(adversarial), augment=False)]
    if include_forget:
        parts.append(DataPart(subset(forget, rows)))
    if retain is not None:
        parts.append(DataPart(retain))
    fit(model, [Pass(parts)], recipe, run, description="AMUN")


def _wrongly_labelled(adversarial: AdversarialSet) -> TensorDataset:
    """The examples that were found, with their wrong labels; many are read from their file when they are used."""
    images, labels = adversarial.images, adversarial.labels[adversarial.found]
    if fits_memory(len(labels), images[0].nbytes):
        return TensorDataset(images[adversarial.found], labels)
    rows = torch.arange(len(labels), device="cpu")
    lazy = LazyImages(adversarial, images.shape[1:], images.dtype, rows).to(images.device)
    return ImageDataset(lazy, labels, "adversarial", bounds=None)


def check_examples(adversarial: AdversarialSet, forget: TensorDataset) -> None:
    """Refuse examples that are not those of these very samples, or that would teach the true label."""
    images, labels = stored(forget)
    expected = f"a row for each of the {len(images)} forget samples"
    shapes = adversarial.images.shape == images.shape and adversarial.found.shape == labels.shape
    require(shapes, "adversarial", expected, f"images {tuple(adversarial.images.shape)}")
    rows = adversarial.found
    wrong = bool((adversarial.labels != labels)[rows].all())
    require(wrong, "adversarial", "examples with wrong labels", "true ones")
    same = torch.equal(adversarial.true_labels, labels)
    for start in range(0, len(forget), CHECKED_AT_ONCE):
        part = slice(start, start + CHECKED_AT_ONCE)
        inputs, found = forget[part][0], rows[part]
        moved = (adversarial.images[part].to(inputs.dtype) - inputs)[found].flatten(1).norm(dim=1)
        distance = adversarial.distance[part][found].to(inputs.dtype)
        same = same and torch.allclose(moved, distance, rtol=1e-2, atol=1e-4)
    require(same, "adversarial", "the examples of these forget samples, in their order", "those of others")
