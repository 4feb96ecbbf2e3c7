"""Digests of tensors, to check that a file belongs to a model and its data."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

PART_BYTES = 2**24


def digest(tensors: Mapping[Any, Tensor], text: str = "") -> str:
    """A hash of a text and of tensors: names, shapes, types and contents, in the order that they come in."""
    made = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in tensors.items():
        made.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        for part in parts(tensor.detach()):
            made.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()


def architecture(model: nn.Module) -> str:
    """A hash of its modules and the shapes of its weights."""
    shapes = {name: tensor.new_zeros(tensor.shape, device="cpu") for name, tensor in model.state_dict().items()}
    return digest(shapes, str(model))


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """`tensor` by its rows, some at a time: a memory map whose order is not its own is not to be copied as a whole."""
    if not isinstance(tensor, Tensor) or tensor.dim() == 0 or tensor.numel() == 0:
        return (tensor,)
    split: tuple[Tensor, ...] = tensor.split(max(1, PART_BYTES // tensor[:1].nbytes))
    return split
