"""One way to refuse bad input: name the argument, what it must be, and what it was."""

import torch
from torch import Tensor


class InputError(ValueError):
    """An argument is not what it must be. Raised before any work starts; the command line prints it as one line."""


def require(condition: bool, argument: str, must_be: str, got: object) -> None:
    """Raise `InputError("<argument> must be <must_be>, got <got>")` unless `condition` holds."""
    if not condition:
        raise InputError(f"{argument} must be {must_be}, got {got}")


def check_images(name: str, images: Tensor, bounds: tuple[float, float]) -> None:
    """Refuse anything but a finite floating-point tensor [N, ...] inside `bounds`."""
    require(isinstance(images, Tensor), name, "a tensor [N, ...]", type(images).__name__)
    require(images.dim() >= 2, name, "a batch [N, ...] of at least two dimensions", f"shape {tuple(images.shape)}")
    require(images.is_floating_point(), name, "floating point (divide 8-bit images by 255)", images.dtype)
    require(len(images) > 0, name, "a non-empty batch", f"shape {tuple(images.shape)}")
    low, high = (float(edge) for edge in images.aminmax())  # NaN propagates into both
    require(low == low and high == high, name, "free of NaN", "NaN")
    require(
        bounds[0] <= low and high <= bounds[1],
        name,
        f"inside bounds {bounds} (put normalisation into the model)",
        f"values from {low:.6g} to {high:.6g}",
    )


def check_labels(name: str, labels: Tensor, count: int, num_classes: int | None = None) -> None:
    """Refuse anything but an integer tensor [count] of classes in [0, num_classes)."""
    require(isinstance(labels, Tensor), name, "a tensor [N]", type(labels).__name__)
    integral = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    require(integral, name, "integers", labels.dtype)
    require(labels.shape == (count,), name, f"of shape ({count},), one per input", f"shape {tuple(labels.shape)}")
    if num_classes is not None and count:
        low, high = (int(edge) for edge in labels.aminmax())
        require(0 <= low <= high < num_classes, name, f"in [0, {num_classes})", f"values from {low} to {high}")
