"""The parts of RMIA on a CPU against PyTorch: python benchmarks/bench_rmia.py

signal: sm_taylor_softmax of every model at once, against the same written as it is published, a pass over the logits
for every power, in eager PyTorch and under torch.compile. These go model by model, where their temporaries are small.
One thread in CPU time, two in wall time.

score: the share of other samples that a sample's ratio exceeds, against the matrix of all pairs (rmia_score.py).

The rivals are checked to give equal results first.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import rmia_score
import torch
from common import microseconds, write
from torch import Tensor

from amun_ext import sm_taylor_softmax

ORDER, MARGIN, TEMPERATURE = 4, 0.6, 2.0
SHAPES, REPEATS = ((128, 60_000, 10), (16, 60_000, 200)), 7


def taylor(z: Tensor) -> Tensor:
    total = 1 + z
    for k in range(2, ORDER):
        total = total + z**k / math.factorial(k)
    return total


def published(logits: Tensor, labels: Tensor) -> Tensor:
    """Of one model, [N, C] -> [N]: the true class is taken off the sum again, and put back with its margin."""
    scaled = logits / TEMPERATURE
    own = scaled.gather(1, labels[:, None])[:, 0]
    ahead = taylor(own - MARGIN)
    return ahead / (taylor(scaled).sum(1) - taylor(own) + ahead)


def draw(models: int, samples: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits of models that are often right. Positive but for a few: else rounding is large where terms cancel."""
    labels = torch.randint(classes, (samples,))
    logits = torch.empty(models, samples, classes)
    for each in logits:
        each.normal_(1.0, 0.7).scatter_add_(1, labels[:, None], torch.full((samples, 1), 5.0))
    return logits, labels


def signal() -> dict[str, Any]:
    compiled = torch.compile(published, dynamic=False)  # for each shape anew
    table = {}
    for models, samples, classes in SHAPES:
        logits, labels = draw(models, samples, classes)

        def model_by_model(
            signal: Callable[[Tensor, Tensor], Tensor], logits: Tensor = logits, labels: Tensor = labels
        ) -> Tensor:
            return torch.stack([signal(each, labels) for each in logits])

        works = {
            "op": lambda logits=logits, labels=labels: sm_taylor_softmax(logits, labels, ORDER, MARGIN, TEMPERATURE),
            "eager": lambda each=model_by_model: each(published),
            "torch.compile": lambda each=model_by_model: each(compiled),
        }
        expected = works["op"]()
        for work in works.values():
            torch.testing.assert_close(work(), expected, rtol=1e-5, atol=1e-6)
        for threads, clock in ((1, time.process_time_ns), (2, time.perf_counter_ns)):
            torch.set_num_threads(threads)
            times = microseconds(works, REPEATS, calls=1, clock=clock)
            ratios = {name: times[name]["median"] / times["op"]["median"] for name in works if name != "op"}
            row = f"{models} x {samples:,} x {classes}, {threads} thread{'s' * (threads > 1)}"
            table[row] = {"microseconds": times, "times the op": ratios}
            print(f"{row}: {table[row]}")
    return {"order": ORDER, "margin": MARGIN, "temperature": TEMPERATURE, "repeats": REPEATS, "table": table}


PARTS = {"signal": signal, "score": rmia_score.measure}

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    write("rmia", {name: part() for name, part in PARTS.items()})
