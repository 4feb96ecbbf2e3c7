"""Checks of tensors that are arguments."""

import math

import torch
from torch import Tensor

from amun_ext.validation import require

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def check_images(name: str, images: Tensor, bounds: tuple[float, float]) -> None:
    """InputError for anything but a finite floating-point tensor [N, ...] inside `bounds`."""
    require(isinstance(images, Tensor), name, "a tensor [N, ...]", type(images).__name__)
    require(images.dim() >= 2, name, "a batch [N, ...] of at least two dimensions", f"shape {tuple(images.shape)}")
    require(not images.is_meta, name, "a tensor with values", "one on the device meta")
    require(images.is_floating_point(), name, "floating point (divide 8-bit images by 255)", images.dtype)
    require(len(images) > 0, name, "a non-empty batch", f"shape {tuple(images.shape)}")
    require(images.layout == torch.strided and images[0].numel() > 0, name, "dense, with elements", images.shape)
    low, high = (float(edge) for edge in images.aminmax())  # NaN propagates into both
    require(low == low and high == high, name, "free of NaN", "NaN")
    require(math.isfinite(low) and math.isfinite(high), name, "finite", f"values from {low} to {high}")
    require(
        bounds[0] <= low and high <= bounds[1],
        name,
        f"inside bounds {bounds} (put normalisation into the model)",
        f"values from {low!r} to {high!r}",  # with all digits, since a value may be outside by the last one
    )


def check_labels(name: str, labels: Tensor, count: int, num_classes: int | None = None) -> None:
    """InputError for anything but an integer tensor [count] of classes in [0, num_classes), or just not negative."""
    require(isinstance(labels, Tensor), name, "a tensor [N]", type(labels).__name__)
    require(not labels.is_meta, name, "a tensor with values", "one on the device meta")
    integral = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    require(integral, name, "integers", labels.dtype)
    require(labels.shape == (count,), name, f"of shape ({count},), one per input", f"shape {tuple(labels.shape)}")
    if count:
        numbers = labels.cpu().numpy() if labels.dtype in UNSIGNED else labels  # which torch does not compare
        low, high = int(numbers.min()), int(numbers.max())
        expected = "not negative" if num_classes is None else f"in [0, {num_classes})"
        fits = low >= 0 and (num_classes is None or high < num_classes)
        require(fits, name, expected, f"values from {low} to {high}")
