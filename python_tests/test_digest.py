"""The hash that tells tensors from others."""

import pytest
import torch

from amun_ext import digest as module
from amun_ext.digest import digest


def test_depends_on_every_name_shape_type_and_byte() -> None:
    tensors = {
        "a": torch.rand(3, 2),
        "b": torch.arange(4),
        "c": torch.zeros((), dtype=torch.bool),
        "d": torch.rand(0, 3),
    }
    others = [
        {**tensors, "a": tensors["a"].view(2, 3)},
        {**tensors, "b": tensors["b"].view(torch.float64)},
        {**tensors, "d": torch.rand(0, 4)},
        {("e" if name == "d" else name): tensor for name, tensor in tensors.items()},
        {name: tensors[name] for name in "bacd"},
        {name: tensors[name] for name in "abc"},
    ]
    for name in "abc":
        changed = tensors[name].clone()
        changed.view(-1)[-1] = 1 - changed.view(-1)[-1].int()
        others.append({**tensors, name: changed})
    known = {digest(tensors), digest(tensors, "text"), *map(digest, others)}
    assert len(known) == 2 + len(others)


def test_does_not_depend_on_the_memory_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    transposed = torch.rand(40, 3).T
    made = digest({"a": transposed})
    assert made == digest({"a": transposed.contiguous()})
    monkeypatch.setattr(module, "PART_BYTES", 1000)
    assert made == digest({"a": transposed})


def test_types_that_numpy_lacks() -> None:
    assert digest({"a": torch.rand(2).bfloat16()}) != digest({"a": torch.rand(2).bfloat16()})
