"""Forget images beside their adversarial examples: statistics of the search, and a few pairs for the page."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from amun_ext.data.images import stored
from amun_ext.search import AdversarialSet
from amun_ext.tensor_checks import check_images, check_labels
from amun_ext.validation import require

SHOWN = 8
CHECKED_AT_ONCE = 32  # images


@dataclass(frozen=True, eq=False)
class Example:
    """An image [C, H, W] in [0, 1] and its adversarial example, the names of their classes, their L2 distance."""

    image: NDArray[np.float32]
    adversarial: NDArray[np.float32]
    true: str
    wrong: str
    distance: float


def check_examples(examples: AdversarialSet, forget: TensorDataset, classes: int | None) -> None:
    """InputError for examples that do not belong to the `forget` images [N, C, H, W], or are not finite."""
    images, _ = stored(forget)
    require(len(images.shape) == 4, "forget images", "[N, C, H, W] to be shown", f"shape {tuple(images.shape)}")
    fields = dict.fromkeys(("labels", "distance", "found", "eps", "grad_evals"), (len(images),))
    for field, aligned in (fields | {"images": tuple(images.shape)}).items():
        shape = tuple(getattr(examples, field).shape)
        require(shape == aligned, f"adversarial.{field}", f"of shape {aligned}, as forget", f"shape {shape}")
    found = examples.found.bool()
    if found.any():
        for rows in found.nonzero()[:, 0].split(CHECKED_AT_ONCE):
            check_images("adversarial.images", examples.images[rows], (0.0, 1.0))
        check_labels("adversarial.labels", examples.labels[found], int(found.sum()), classes)
        broken = int((~examples.distance[found].isfinite()).sum())
        require(broken == 0, "adversarial.distance", "finite where found", f"{broken} not finite")


def summarize_search(examples: AdversarialSet) -> dict[str, float]:
    """Number of examples found, their cost, and medians over those found (NaN if none)."""
    found = examples.found.bool()
    return {
        "samples": len(found),
        "found": int(found.sum()),
        "median_distance": float(examples.distance[found].double().nanmedian()) if found.any() else torch.nan,
        "median_eps": float(examples.eps[found].double().nanmedian()) if found.any() else torch.nan,
        "grad_evals": int(examples.grad_evals.sum()),
    }


def pick_examples(examples: AdversarialSet, forget: TensorDataset, classes: Sequence[str]) -> list[Example]:
    """At most `SHOWN` pairs, evenly spread from the closest to the farthest."""
    found = examples.found.bool().nonzero().squeeze(1)
    ordered = found[examples.distance[found].argsort(stable=True)]
    spread = torch.linspace(0, len(ordered) - 1, min(SHOWN, len(ordered)), device="cpu").round().long()

    def named(label: Tensor) -> str:
        return classes[int(label)] if classes else str(int(label))

    return [
        Example(
            image.float().cpu().numpy(),
            examples.images[row].float().cpu().numpy(),
            named(label),
            named(examples.labels[row]),
            float(examples.distance[row]),
        )
        for row in ordered[spread.to(ordered.device)].tolist()
        for image, label in [forget[row]]
    ]
