"""What AMUN is compared with to see what its examples are good for: their images or labels replaced (section 6.2.1)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from amun_ext.data import as_tensors
from amun_ext.search import AdversarialSet
from amun_ext.tensor_checks import check_images, check_labels
from amun_ext.training import Recipe
from amun_ext.unlearning.amun import check_examples
from amun_ext.validation import check_bounds, check_integer, require

# The paper's appendix E.3: twenty epochs at 0.01, a tenth of it every five.
RECIPE = Recipe(epochs=20, lr=0.01, schedule="step:5")

Bounds = tuple[float, float]


class Found(NamedTuple):
    """The M forget samples that have an adversarial example, and what the sets are made with."""

    images: Tensor  # [M, ...], x
    labels: Tensor  # [M] int64, y
    adv_images: Tensor  # [M, ...], x_adv
    adv_labels: Tensor  # [M] int64, y_adv
    distance: Tensor  # [M], delta = |x_adv - x|
    num_classes: int
    bounds: Bounds | None
    random: torch.Generator


def adv(found: Found) -> tuple[Tensor, Tensor]:
    """D_A: (x_adv, y_adv)."""
    return found.adv_images, found.adv_labels


def orig(found: Found) -> tuple[Tensor, Tensor]:
    """D_F: (x, y)."""
    return found.images, found.labels


def adv_rs(found: Found) -> tuple[Tensor, Tensor]:
    """D_ARS: (x', y_adv), x' uniform on the sphere of radius delta around x."""
    return _on_sphere(found), found.adv_labels


def adv_rl(found: Found) -> tuple[Tensor, Tensor]:
    """D_ARL: (x_adv, y'), y' uniform over the classes other than y and y_adv."""
    return found.adv_images, _third_labels(found)


def orig_rl(found: Found) -> tuple[Tensor, Tensor]:
    """D_RL: (x, y'), y' uniform over the classes other than y and y_adv."""
    return found.images, _third_labels(found)


def orig_advl(found: Found) -> tuple[Tensor, Tensor]:
    """D_AdvL: (x, y_adv)."""
    return found.images, found.adv_labels


# the curves of the paper's figures 1 and 5, in their order -> images and labels
ABLATIONS: Mapping[str, Callable[[Found], tuple[Tensor, Tensor]]] = {
    "Adv": adv,
    "Orig": orig,
    "Adv-RS": adv_rs,
    "Adv-RL": adv_rl,
    "Orig-RL": orig_rl,
    "Orig-AdvL": orig_advl,
}


def ablation_set(
    name: str,
    forget: Dataset[Any],
    adversarial: AdversarialSet,
    *,
    num_classes: int,
    seed: int = 0,
    bounds: Bounds | None = (0.0, 1.0),
) -> TensorDataset:
    """What stands in for D_A in an ablation of section 6.2.1: a data set of the images and labels of one curve.

    Samples without an adversarial example are in none of the sets, not even in "Orig", so that all sets have the same
    samples in the same order.

    Args:
        name: one of ABLATIONS.
        forget: a map-style dataset of (input, true label).
        adversarial: the result of `find_min_adversarial` for `forget`, row by row.
        num_classes: K, of which random labels need three at least.
        seed: of random labels and random images, the same on every device. The published code draws labels anew in
            every epoch: ask again with another seed.
        bounds: the box that "Adv-RS" is clamped to, as in the published code, which makes some distances smaller than
            delta; None leaves them equal, and images outside the box.

    Raises:
        InputError: an argument is not what it must be, or there is no example at all.
    """
    require(name in ABLATIONS, "name", f"one of {tuple(ABLATIONS)}", repr(name))
    num_classes, seed = check_integer("num_classes", num_classes, 2), check_integer("seed", seed, 0)
    images, labels = as_tensors(forget, "forget")
    check_images("forget", images, check_bounds(bounds))
    check_labels("forget labels", labels, len(images), num_classes)
    adversarial = adversarial.to(images.device)
    check_examples(adversarial, TensorDataset(images, labels))
    rows = adversarial.found
    require(bool(rows.any()), "forget", "a set with an adversarial example for at least one sample", "none found")
    check_labels("adversarial labels", adversarial.labels, len(images), num_classes)
    found = Found(
        images[rows],
        labels[rows],
        adversarial.images[rows],
        adversarial.labels[rows],
        adversarial.distance[rows],
        num_classes,
        bounds,
        torch.Generator().manual_seed(seed),
    )
    return TensorDataset(*ABLATIONS[name](found))


def _on_sphere(found: Found) -> Tensor:
    """Images [M, ...]; a Gaussian vector has no preferred direction."""
    x = found.images
    precise = torch.promote_types(x.dtype, torch.float32)
    noise = torch.randn(x.shape, generator=found.random, device="cpu").to(x.device, precise)
    length = (found.distance / noise.flatten(1).norm(dim=1)).view(-1, *[1] * (x.dim() - 1))
    moved: Tensor = x + length * noise
    if found.bounds is not None:
        moved = moved.clamp(*found.bounds)
    return moved.to(x.dtype)


def _third_labels(found: Found) -> Tensor:
    """Labels [M] that are neither y nor y_adv, all others with the same probability."""
    require(found.num_classes >= 3, "num_classes", "at least 3: y' is neither y nor y_adv", found.num_classes)
    drawn = torch.randint(found.num_classes - 2, found.labels.shape, generator=found.random, device="cpu").to(
        found.labels.device
    )
    smaller, larger = found.labels.minimum(found.adv_labels), found.labels.maximum(found.adv_labels)
    drawn += drawn >= smaller
    return drawn + (drawn >= larger)
