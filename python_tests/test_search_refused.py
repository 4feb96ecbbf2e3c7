"""find_min_adversarial: bad input is refused before any work."""

import math

import pytest
import torch
from search_tools import Linear
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, find_min_adversarial

X, Y = torch.rand(4, 5), torch.zeros(4, dtype=torch.long)


BAD = {
    "not a tensor": ({"inputs": [1.0]}, "inputs must be"),
    "8-bit": ({"inputs": torch.zeros(4, 5, dtype=torch.uint8)}, "inputs must be floating point"),
    "rank": ({"inputs": torch.rand(4)}, "inputs must be a batch"),
    "empty": ({"inputs": torch.rand(0, 5), "labels": Y[:0]}, "inputs must be a non-empty batch"),
    "nan": ({"inputs": X * torch.nan}, "inputs must be free of NaN"),
    "infinite": ({"inputs": X + torch.inf}, "inputs must be finite"),
    "outside": ({"inputs": X + 1}, "inputs must be inside bounds"),
    "no labels": ({"labels": None}, "labels must be a tensor"),
    "label too large": ({"labels": Y + 3}, r"labels must be in \[0, 3\), got values from 3 to 3"),
    "label negative": ({"labels": Y - 1}, "labels must be not negative"),
    "labels float": ({"labels": Y.float()}, "labels must be integers"),
    "labels bool": ({"labels": Y.bool()}, "labels must be integers"),
    "labels count": ({"labels": Y[:3]}, r"labels must be of shape \(4,\)"),
    "labels rank": ({"labels": Y[:, None]}, r"labels must be of shape \(4,\)"),
    "labels beside a dataset": ({"inputs": TensorDataset(X, Y)}, "inputs must be a tensor"),
    "method": ({"method": "cw"}, "method must be one of"),
    "loss": ({"loss": "hinge"}, "loss must be one of"),
    "eps_init": ({"eps_init": 0}, "eps_init must be from"),
    "eps_growth": ({"eps_growth": 1}, "eps_growth must be at least"),
    "eps_max": ({"eps_max": 0.01}, "eps_max must be finite and at least"),
    "eps_max inf": ({"eps_max": math.inf}, "eps_max must be finite"),
    "eps_init nan": ({"eps_init": math.nan}, "eps_init must be from"),
    "growth that float32 rounds away": ({"eps_growth": 1 + 1e-9}, "eps_growth must be at least"),
    "steps too many": ({"steps": 2**31}, "steps must be"),
    "a bool": ({"batch_size": True}, "batch_size must be"),
    "step_fraction inf": ({"step_fraction": math.inf}, "step_fraction must be in"),
    "bounds of three": ({"bounds": (0, 1, 2)}, "bounds must be"),
    "steps": ({"steps": 0}, "steps must be"),
    "steps float": ({"steps": 2.5}, "steps must be"),
    "step_fraction": ({"step_fraction": -1}, "step_fraction must be in"),
    "refine": ({"refine": -1}, "refine must be"),
    "batch_size": ({"batch_size": 0}, "batch_size must be"),
    "bounds": ({"bounds": (1.0, 0.0)}, "bounds must be"),
    "no items": ({"inputs": TensorDataset(X[:0], Y[:0]), "labels": None}, "inputs must be non-empty"),
    "a scalar": ({"inputs": torch.tensor(0.5)}, "inputs must be a batch"),
    "method of another type": ({"method": ["pgd"]}, "method must be one of"),
    "eps_init text": ({"eps_init": "guess"}, "eps_init must be a radius or"),
    "eps_init bool": ({"eps_init": True}, "eps_init must be a number"),
    "eps_growth text": ({"eps_growth": "2"}, "eps_growth must be a number"),
    "eps_growth of ddn": ({"method": "ddn", "eps_growth": 1.5}, "eps_growth must be below 1.5 with method ddn"),
    "eps_max text": ({"eps_max": "2"}, "eps_max must be a number"),
    "step_fraction text": ({"step_fraction": "2"}, "step_fraction must be a number"),
    "min_margin negative": ({"min_margin": -1}, "min_margin must be finite and not negative"),
    "min_margin nan": ({"min_margin": math.nan}, "min_margin must be finite"),
    "min_margin text": ({"min_margin": "1"}, "min_margin must be a number"),
    "quantize": ({"quantize": 0}, "quantize must be"),
    "quantize bool": ({"quantize": True}, "quantize must be"),
    "precision": ({"precision": "float16"}, "precision must be one of"),
    "precision without a copy": (
        {"precision": "bfloat16", "optimize_model": False},
        "precision must be None with optimize_model",
    ),
    "optimize_model": ({"optimize_model": 1}, "optimize_model must be True or False"),
    "out": ({"out": "/"}, "out must be a file to be written"),
    "out number": ({"out": 5}, "out must be a file to be written, got 5"),
    "out bytes": ({"out": b"x"}, "out must be a file to be written, got b'x'"),
    "steps above": ({"steps": 2**31}, "steps must be a whole number from 1 on, below 2"),
    "model": ({"model": len}, "model must be an nn.Module"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_before_the_model_runs(change: dict, message: str) -> None:
    class Watched(Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Watched.calls += 1
            return super().forward(x)

    arguments = {"model": Watched(3, 5), "inputs": X, "labels": Y} | change
    with pytest.raises(InputError, match=message):
        find_min_adversarial(**arguments)
    assert Watched.calls <= 1  # one input, to learn the number of classes


@pytest.mark.parametrize(
    "answer",
    [lambda x: (x, x), lambda x: x[:, 0], lambda x: x[:, :1], lambda x: x.argmax(1, keepdim=True), lambda x: x[None]],
    ids=["tuple", "rank", "one class", "integers", "rank 3"],
)
def test_a_model_that_gives_no_logits_is_refused(answer) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor):
            return answer(x)

    with pytest.raises(InputError, match=r"model must be a map to logits \[N, K\]"):
        find_min_adversarial(Odd(), X, Y)
