"""The fused search step on a CPU against the same step in eager PyTorch and under torch.compile, rules "pgd" and "ddn".

Images of 3x32x32, one thread, CPU time per step. The three are checked to give the same results first. With "ddn" every
second slot is adversarial, so that the step keeps its iterate as the closest example and then moves it.
"""

from collections.abc import Callable

import torch
from common import microseconds, write
from rivals import ddn_step
from torch import Tensor

from amun_ext import ops, reference

BATCHES, SHAPE, REPEATS = (64, 512), (3, 32, 32), 200
FRACTION, CHANGE, OVERSHOOT, EPS_MAX, BOUNDS = 0.1, 1e-6, 1.01, 1e3, (0.0, 1.0)
# Steps without end and radii that hardly change: every call has the same work to do.
PGD = ops.StepConfig(
    rule="pgd",
    steps=2**31 - 1,
    step_fraction=FRACTION,
    last_step_fraction=FRACTION,
    eps_growth=1 + CHANGE,
    last_eps_growth=1 + CHANGE,
    eps_max=EPS_MAX,
    overshoot=OVERSHOOT,
)


def state(batch: int) -> tuple[ops.SlotBatch, ops.SampleTable, Tensor]:
    """A batch in full swing: every slot runs, off its original by about its radius."""
    inputs, eps = torch.rand(batch, *SHAPE), torch.full((batch,), 0.5)
    x = (inputs + 0.3 * torch.randn_like(inputs) / inputs[0].numel() ** 0.5).clamp(*BOUNDS)
    rows, none = torch.arange(batch), torch.zeros(batch, dtype=torch.long)
    made = torch.ones(batch, dtype=torch.int32)
    slots = ops.SlotBatch(x, rows.clone(), none.clone())
    table = ops.SampleTable(
        inputs, none, x.clone(), none.clone(), eps, eps + torch.inf, made, made.clone(), none.to(torch.int8)
    )
    return slots, table, torch.randn_like(inputs)


def bench(rule: str, batch: int) -> dict[str, object]:
    slots, table, grad = state(batch)
    queue, queue_position = torch.zeros(0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    adversarial = torch.arange(batch) % 2 == 1 if rule == "ddn" else torch.zeros(batch, dtype=torch.bool)
    predicted, margin = torch.ones(batch, dtype=torch.long), torch.where(adversarial, -0.5, 0.5)
    config, feedback = PGD._replace(rule=rule), ops.Feedback(grad, adversarial, predicted, margin)
    start = [tensor.clone() for tensor in (slots.x, table.eps, table.distance, table.images, table.found_labels)]

    def fused() -> None:
        ops.search_step_(slots, feedback, table, queue, queue_position, config, BOUNDS)

    def pgd(step: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return (step(start[0], table.inputs, grad, start[1], FRACTION, BOUNDS),)

    def ddn(step: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return step(*start, table.inputs, *feedback, FRACTION, CHANGE, OVERSHOOT, EPS_MAX, BOUNDS)

    plain, step = (pgd, reference.pgd_step) if rule == "pgd" else (ddn, ddn_step)
    compiled = torch.compile(step)
    fused()
    results = (slots.x, table.eps, table.distance, table.images, table.found_labels)
    for expected in (plain(step), plain(compiled)):
        for result, result_expected in zip(results, expected, strict=False):  # of "pgd" the iterates only
            torch.testing.assert_close(result, result_expected, rtol=0, atol=1e-6)

    works = {"fused": fused, "eager": lambda: plain(step), "torch.compile": lambda: plain(compiled)}
    times = microseconds(works, REPEATS)
    ratios = {name: times[name]["median"] / times["fused"]["median"] for name in ("eager", "torch.compile")}
    return {"microseconds": times, "times the fused step": ratios}


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    results = {f"{batch}": bench("pgd", batch) for batch in BATCHES}
    results |= {f"{batch}, ddn": bench("ddn", batch) for batch in BATCHES}
    write("search_step", {"shape": SHAPE, "repeats": REPEATS, "batch": results})
    for batch, result in results.items():
        print(f"batch {batch}: {result}")
