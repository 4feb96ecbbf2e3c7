"""Distances of our own methods on many samples: with 80, as bench_search has them, a median is known to a few percent.

    python benchmarks/bench_distances.py [--samples 500] [--seed 1]

"pgd" stands for the published loop, whose distances it has: bench_search checks that. Networks of seed 1 of zoo.py, on
which no constant was chosen. "ddn" also as it was before it made more steps for some samples than for others, and both
on linear models of three inputs: there a sample may have its only examples in a corner of the box.
"""

import argparse
import itertools
import warnings
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import zoo
from bench_search import Counts, counted
from common import timed, write
from torch import Tensor, nn

from amun_ext import find_min_adversarial
from amun_ext.search import ATTACKS, AdversarialSet

DDN = ATTACKS["ddn"]
BEFORE = "ddn, 14 steps for all"
DDN_BEFORE = replace(
    DDN,
    options=DDN.options | {"eps_growth": 1.3, "steps": 14},
    constants=DDN.constants | {"last_step_fraction": 0.2},
    more_rounds=0,
    last_bisections=0,
)
SEARCHES: dict[str, dict[str, Any]] = {
    "ddn": {"method": "ddn"},
    BEFORE: {"method": "ddn"},
    "ddn, 10 steps": {"method": "ddn", "steps": 10},
    "ddn, 20 steps": {"method": "ddn", "steps": 20},
    "ddn, 40 steps": {"method": "ddn", "steps": 40},
    "deepfool": {"method": "deepfool"},
}
LINEAR_MODELS, SAMPLES_EACH, CLASSES = 27, 50, (2, 3, 4, 10)


def search(row: str, model: nn.Module, inputs: Tensor, labels: Tensor) -> AdversarialSet:
    with mock.patch.dict(ATTACKS, ddn=DDN_BEFORE if row == BEFORE else DDN):
        return find_min_adversarial(model, inputs, labels, **SEARCHES[row])


def measure(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """Each search against "pgd" on the same samples."""
    base, base_time = timed(lambda: find_min_adversarial(model, inputs, labels))
    assert base.found.all()
    rows = {}
    for row in SEARCHES:
        counts = Counts()
        with counted(counts):
            result, time = timed(lambda row=row: search(row, model, inputs, labels))  # type: ignore[misc]
        low, middle, high = (result.distance / base.distance).quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
        rows[row] = {
            "found": float(result.found.float().mean()),
            "gradients": float(result.grad_evals.float().mean()),
            "passes": (counts.forwards + counts.backwards) / len(inputs),
            "cpu ratio": time["cpu"] / base_time["cpu"],
            "median ratio": float(result.distance.median() / base.distance.median()),
            "p95 ratio": float(result.distance.quantile(0.95) / base.distance.quantile(0.95)),
            "ratio p5": low,
            "ratio p50": middle,
            "ratio p95": high,
        }
        print(row, rows[row], flush=True)
    return rows


def on_linear_models(classes: int) -> dict[str, dict[str, float]]:
    """The samples without an example, of those that have one: then a corner of the box is of another class."""
    corners = torch.tensor([*itertools.product((0.0, 1.0), repeat=3)])
    rows = {row: {"samples": 0, "without": 0, "gradients": 0.0} for row in ("ddn", BEFORE)}
    for seed in range(LINEAR_MODELS):
        torch.manual_seed(seed)
        model, inputs = nn.Linear(3, classes).requires_grad_(False), torch.rand(SAMPLES_EACH, 3)
        labels = model(inputs).argmax(1)
        reachable = (model(corners).argmax(1) != labels[:, None]).any(1)
        for row, values in rows.items():
            with warnings.catch_warnings(action="ignore"):  # of zero gradients
                result = search(row, model, inputs, labels)
            values["samples"] += int(reachable.sum())
            values["without"] += int((reachable & ~result.found).sum())
            values["gradients"] += float(result.grad_evals[reachable].sum())
    return {row: {**values, "gradients": values["gradients"] / values["samples"]} for row, values in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = {}
    for name in zoo.NETWORKS:
        model = zoo.network(name, options.seed)
        for part, (images, labels) in zoo.images_of(name).items():
            print(f"{name}, {part}", flush=True)
            chosen = zoo.correct(model, images, labels, options.samples, seed=2000 + options.seed)
            tables[f"{name}, {part}"] = measure(model, *chosen)
    linear = {str(classes): on_linear_models(classes) for classes in CLASSES}
    write("distances", {"samples": options.samples, "seed": options.seed, "tables": tables, "linear": linear})


if __name__ == "__main__":
    main()
