"""find_min_adversarial, all methods, against the published loop's logic, plain PyTorch and other packages' searches.

    pip install --no-deps -r benchmarks/peers.txt      # those packages; without them their rows say so
    python benchmarks/bench_search.py [--samples 100] [--seed 1] [--networks resnet18,...]

The same network, samples, threads and success test for all, in one process: an example counts when it is inside the box
and the network's class of it is wrong, looked at by us. The published loop runs first and last. Four networks of
benchmarks/zoo.py, training and test images; the constants of our methods were chosen on the networks of seed 0 and
other images than those of seed 1. Each network's rows are kept as soon as they are there.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import zoo
from common import read, timed, write
from peers import PEERS
from rivals import PlainPGD, published_loop
from torch import Tensor, nn

from amun_ext import find_min_adversarial
from amun_ext.search.loop import Search as Engine
from amun_ext.validation import InputError

BATCH_SIZE = 128  # the published loop's, and that of all rivals
FIRST, LAST = "published loop", "published loop, again"
OURS: dict[str, dict[str, Any]] = {
    "pgd": {},
    "pgd, on the model itself": {"optimize_model": False},
    "pgd, 20 steps a radius": {"steps": 20},
    "pgd, estimated start, 10 steps": {"eps_init": "estimate", "steps": 10},
    "pgd, the same, 8 bisections": {"eps_init": "estimate", "steps": 10, "refine": 8},
    "ddn, 5 steps": {"method": "ddn", "steps": 5},
    "ddn, 10 steps": {"method": "ddn", "steps": 10},
    "ddn": {"method": "ddn"},
    "ddn, on the model itself": {"method": "ddn", "optimize_model": False},
    "ddn, bfloat16": {"method": "ddn", "precision": "bfloat16"},
    "ddn, 8 bisections": {"method": "ddn", "refine": 8},
    "ddn, 8 bit": {"method": "ddn", "quantize": 255},
    "ddn, 20 steps": {"method": "ddn", "steps": 20},
    "ddn, 40 steps": {"method": "ddn", "steps": 40},
    "ddn, 100 steps": {"method": "ddn", "steps": 100},
    "deepfool, 5 steps": {"method": "deepfool", "steps": 5},
    "deepfool": {"method": "deepfool"},
    "deepfool, 20 steps": {"method": "deepfool", "steps": 20},
    "ffgsm": {"method": "ffgsm"},
}


class Counts:
    """Forward and backward evaluations, in samples."""

    forwards = backwards = 0


class Counting(nn.Module):
    """A network that keeps count for rivals, which call it as it is."""

    def __init__(self, model: nn.Module, counts: Counts) -> None:
        super().__init__()
        self.model, self.counts = model, counts

    def forward(self, x: Tensor) -> Tensor:
        self.counts.forwards += len(x)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self._count)
        return self.model(x)

    def _count(self, grad: Tensor) -> None:
        self.counts.backwards += len(grad)


@contextlib.contextmanager
def counted(counts: Counts) -> Iterator[None]:
    """Keeps count of our own searches, which run on a copy of the network."""
    logits, gradient = Engine._logits, Engine.gradient

    def counted_logits(self: Engine, x: Tensor) -> Tensor:
        counts.forwards += len(x)
        return logits(self, x)

    def counted_gradient(self: Engine, x: Tensor, labels: Tensor) -> Any:
        counts.backwards += len(x)
        return gradient(self, x, labels)

    Engine._logits, Engine.gradient = counted_logits, counted_gradient  # type: ignore[method-assign]
    try:
        yield
    finally:
        Engine._logits, Engine.gradient = logits, gradient  # type: ignore[method-assign]


def searches(model: nn.Module, counts: Counts, plain: bool) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Every row: examples [N, ...] from inputs and labels."""
    counting = Counting(model, counts).eval()  # some rivals put back the mode that they found

    def ours(options: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        def search(inputs: Tensor, labels: Tensor) -> Tensor:
            with counted(counts):
                return find_min_adversarial(model, inputs, labels, **options).images

        return search

    rows: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        FIRST: lambda inputs, labels: published_loop(counting, inputs, labels, BATCH_SIZE)[0]
    }
    rows |= {f"amun_ext {name}": ours(options) for name, options in OURS.items()}
    if plain:
        whole, compiled = PlainPGD(counting), PlainPGD(model, compiled=True)
        rows["plain PyTorch PGD"] = lambda inputs, labels: whole(inputs, labels, BATCH_SIZE)[0]
        rows["plain PyTorch PGD, torch.compile"] = lambda inputs, labels: compiled(inputs, labels, BATCH_SIZE)[0]
    for name, peer in PEERS.items():
        rows[name] = lambda inputs, labels, peer=peer: peer(counting, inputs, labels)  # type: ignore[misc]
    return rows | {LAST: rows[FIRST]}


def bench(model: nn.Module, inputs: Tensor, labels: Tensor, plain: bool) -> dict[str, dict[str, Any]]:
    counts, table = Counts(), {}
    for name, search in searches(model, counts, plain).items():
        try:
            if name != FIRST and name != LAST:
                search(inputs[:2], labels[:2])  # imports, compiles; not timed
            counts.forwards = counts.backwards = 0
            examples, seconds = timed(lambda search=search: search(inputs, labels))  # type: ignore[misc]
        except (InputError, RuntimeError) as error:
            table[name] = {"failed": str(error).splitlines()[0]}
        else:
            table[name] = {
                **measured(model, inputs, labels, examples),
                "forwards": counts.forwards / len(inputs) or None,
                "backwards": counts.backwards / len(inputs) or None,
                **seconds,
            }
        print(f"  {name:42}", *(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in table[name].items()))
    base = {key: (table[FIRST][key] + table[LAST][key]) / 2 for key in ("mean", "median", "p95", "cpu", "wall")}
    for row in table.values():
        row |= {f"{key} ratio": row[key] / base[key] for key in base if row.get(key) is not None}
        row |= {key: round(value, 4) for key, value in row.items() if isinstance(value, float)}
    return table


@torch.no_grad()
def measured(model: nn.Module, inputs: Tensor, labels: Tensor, examples: Tensor) -> dict[str, float | None]:
    found = torch.cat([model(batch) for batch in examples.split(BATCH_SIZE)]).argmax(1) != labels
    found &= ((examples >= 0) & (examples <= 1)).flatten(1).all(1)
    distance = (examples - inputs).flatten(1).norm(dim=1)[found]
    statistics = {"mean": distance.mean, "median": distance.median, "p95": lambda: distance.quantile(0.95)}
    some = bool(found.any())
    return {
        "found": float(found.float().mean()),
        **{name: float(value()) if some else None for name, value in statistics.items()},
    }


def check(table: dict[str, dict[str, Any]]) -> None:
    """What is the same search has the same results, before times are compared; what finds less is no rival."""
    base = table[FIRST]
    for name in ("amun_ext pgd", "amun_ext pgd, on the model itself", "plain PyTorch PGD"):
        if name in table:
            assert table[name]["found"] == base["found"] == 1.0, (name, table[name], base)
            for key in ("mean", "median"):
                assert abs(table[name][key] / base[key] - 1) < 0.01, (name, key, table[name], base)
    assert table["amun_ext pgd"]["backwards"] <= 1.01 * base["backwards"], (table["amun_ext pgd"], base)
    for name in ("amun_ext ddn", "amun_ext deepfool"):
        assert table[name]["found"] == 1.0, (name, table[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of networks and samples")
    parser.add_argument("--networks", default=",".join(zoo.NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {"samples": options.samples, "seed": options.seed, "batch_size": BATCH_SIZE}
    before = read("search") or {}
    same = all(before.get(key) == value for key, value in settings.items())
    tables = before["tables"] if same else {}
    for name in options.networks.split(","):
        model = zoo.network(name, options.seed)
        for part, (images, labels) in zoo.images_of(name).items():
            torch.manual_seed(0)
            print(f"{name}, {part} images", flush=True)
            chosen = zoo.correct(model, images, labels, options.samples, seed=1000 + options.seed)
            with torch.no_grad():
                top = model(chosen[0]).topk(2).values
            table = bench(model, *chosen, plain=name == "resnet18")
            check(table)
            gap = float((top[:, 0] - top[:, 1]).median())
            tables[f"{name}, {part} images"] = {"median logit gap": round(gap, 2), "rows": table}
            write("search", {**settings, "tables": tables})


if __name__ == "__main__":
    main()
