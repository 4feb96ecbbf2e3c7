"""ReGUn: learn for D_F what the original says of samples that it has never seen (Mirlach et al. 2026)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.data import find_duplicates
from amun_ext.data.images import stored
from amun_ext.data.splits import checked_dataset
from amun_ext.digest import digest
from amun_ext.models import predict
from amun_ext.models.state import count_classes
from amun_ext.tensor_checks import check_labels
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.validation import is_number, require

# Its authors' code (jmirlach/ReGUn): SGD without weight decay, in a step 128 samples of D_F beside 128 of D_R.
RECIPE = Recipe(epochs=10, lr=0.01, weight_decay=0.0, batch_size=256)


def regun(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    held_out: TensorDataset,
    forget_weight: float = 0.5,
    recipe: Recipe = RECIPE,
) -> None:
    """Minimise forget_weight * KL(q || model) on D_F and (1 - forget_weight) * cross-entropy on D_R, if it is there.

    q is the mean softmax of the original over held-out samples with the class counts of the batch, and one for all of
    D_F in a batch. arXiv 2603.11210, at its temperature of 1. Its authors draw the held-out samples for every batch.
    Here each class has the mean over all of its samples: the mean of q over the draws, and so of the gradient. An epoch
    goes through D_F once, beside as many samples of D_R, drawn anew.

    Args:
        held_out: inputs and labels that the original was not trained on, of every class in D_F. They should have no
            other use: the accuracy on them is no longer that on unseen samples.
        forget_weight: 0.5 in the paper; without D_R it is the only term.
    """
    require(is_number(forget_weight) and 0 < forget_weight <= 1, "forget_weight", "in (0, 1]", repr(forget_weight))
    classes = count_classes(model, forget[:2][0])
    samples = checked_dataset(held_out, "held_out")
    images, labels = stored(samples)
    shape, actual = tuple(stored(forget)[0].shape[1:]), tuple(images.shape[1:])
    require(shape == actual, "held_out", f"of the forget set's input shape {shape}", actual)
    check_labels("held_out labels", labels, len(images), classes)
    missing = sorted({*stored(forget)[1].tolist()} - {*labels.tolist()})
    require(not missing, "held_out", "of every class in the forget set", f"none of {missing}")
    copies = len(find_duplicates(forget, samples))
    require(copies == 0, "held_out", "free of the forget samples", f"{copies} of them")
    means = class_means(predict(model, samples).double().softmax(1), labels, classes)
    count = len(forget) if retain is None else min(len(forget), len(retain))  # type: ignore[arg-type]
    share = 1.0 if retain is None else (len(forget) + count) / len(forget) * forget_weight

    def reference(x: Tensor, labels: Tensor) -> Tensor:
        q = means.to(x.device)[labels].mean(0)
        return share * q.expand(len(labels), -1)

    parts = [DataPart(forget, targets=reference)]
    if retain is not None:
        weight = (len(forget) + count) / count * (1 - forget_weight)
        parts.append(
            DataPart(retain, targets=lambda x, labels: weight * F.one_hot(labels, classes).double(), count=count)
        )
    settings = forget_weight, digest({"means": means})
    fit(model, [Pass(parts)], recipe, run, settings=settings, description="ReGUn")


def class_means(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean of the rows [N, ...] of each class, 0 of one without rows."""
    members = F.one_hot(labels.to(rows.device), classes).to(rows.dtype)
    return members.T @ rows / members.sum(0).clamp(min=1)[:, None]
