"""The fused search step on a CPU against the same step in eager PyTorch and under torch.compile.

Images of 3x32x32, one thread, CPU time per step. The three are checked to give the same iterates first.
"""

import torch
from common import microseconds, write

from amun_ext import ops, reference

BATCHES, SHAPE, REPEATS = (64, 512), (3, 32, 32), 200
BOUNDS, SCHEDULE = (0.0, 1.0), ops.Schedule(steps=2**31 - 1, step_fraction=0.1, eps_growth=2.0, eps_max=1e3)


def state(batch: int) -> tuple[ops.Pool, ops.Book, torch.Tensor]:
    """A pool in full swing: every slot runs, off its original by about its radius."""
    inputs, eps = torch.rand(batch, *SHAPE), torch.full((batch,), 0.5)
    x = (inputs + 0.3 * torch.randn_like(inputs) / inputs[0].numel() ** 0.5).clamp(*BOUNDS)
    rows, none = torch.arange(batch), torch.zeros(batch, dtype=torch.long)
    small = torch.zeros(batch, dtype=torch.int32)
    pool = ops.Pool(x, rows.clone(), none.clone())
    book = ops.Book(inputs, none, x.clone(), none.clone(), eps, eps.clone(), small, small.clone(), none.char())
    return pool, book, torch.randn_like(inputs)


def bench(batch: int) -> dict[str, object]:
    pool, book, grad = state(batch)
    queue, cursor = torch.zeros(0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    no, predicted = torch.zeros(batch, dtype=torch.bool), torch.zeros(batch, dtype=torch.long)
    start = pool.x.clone()
    compiled = torch.compile(reference.pgd_step)

    def fused() -> None:
        ops.search_step_(pool, book, queue, cursor, grad, no, predicted, SCHEDULE, BOUNDS)

    def plain(step=reference.pgd_step) -> torch.Tensor:
        return step(start, book.inputs, grad, book.eps, 0.1, BOUNDS)

    fused()
    for step in (reference.pgd_step, compiled):
        torch.testing.assert_close(pool.x, plain(step), rtol=0, atol=1e-6)

    times = microseconds({"fused": fused, "eager": plain, "torch.compile": lambda: plain(compiled)}, REPEATS)
    ratios = {name: times[name]["median"] / times["fused"]["median"] for name in ("eager", "torch.compile")}
    return {"microseconds": times, "times the fused step": ratios}


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    results = {f"{batch}": bench(batch) for batch in BATCHES}
    write("search_step", {"shape": SHAPE, "repeats": REPEATS, "batch": results})
    for batch, result in results.items():
        print(f"batch {batch}: {result}")
