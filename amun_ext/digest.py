"""Digests of tensors, which identify a model or data."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amun_ext.sharded import whole

PART_BYTES = 2**24


def digest(tensors: Mapping[Any, Tensor], text: str = "") -> str:
    """A hash of a text and of tensors, with their names, shapes, types and order."""
    hashed = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in tensors.items():
        hashed.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        for part in parts(whole(tensor).detach()):
            hashed.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def architecture(model: nn.Module) -> str:
    """A hash of the modules and the shapes of the weights."""
    shapes = {name: tensor.new_zeros(tensor.shape, device="cpu") for name, tensor in model.state_dict().items()}
    return digest(shapes, str(model))


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """`tensor` in parts of some rows, so that a memory map need not be copied as a whole."""
    if not isinstance(tensor, Tensor) or tensor.dim() == 0 or tensor.numel() == 0:
        return (tensor,)
    split: tuple[Tensor, ...] = tensor.split(max(1, PART_BYTES // tensor[:1].nbytes))
    return split
