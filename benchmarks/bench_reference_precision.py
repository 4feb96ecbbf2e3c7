"""What do references in bfloat16 change in an audit? python benchmarks/bench_reference_precision.py

The cases of bench_audit. Every seed has its own original, retrained and AMUN model, in float32, and its own references,
trained in float32 and in bfloat16 from the same weights on the same halves in the same order. A change of precision
matters only where the differences of the areas are larger than those between sets of references. CPU seconds are those
of a reference, on one thread.
"""

import statistics
import tempfile
from dataclasses import replace
from typing import Any

import torch
from bench_audit import CASES, Case, areas, audited
from common import timed, write

from amun_ext import models
from amun_ext.auditing import train_references
from amun_ext.data import Splits
from amun_ext.experiments import demo

PRECISIONS = {"float32": None, "bfloat16": "bfloat16"}
COUNTS = {"embedded images": (8, 2), "digits, 20 % of the labels random": (16, 3)}  # of references and of seeds
SHOWN = {"original": "RT", "retrained": "FT", "AMUN": "FT"}


def run(case: Case, splits: Splits, seed: int, count: int) -> dict[str, Any]:
    """Precision -> CPU seconds of a reference, and model -> attack -> area."""
    channels = splits.train.tensors[0].shape[1]
    like = models.build(demo.MODEL, num_classes=len(splits.classes), in_channels=channels)
    signals, groups = audited(case, splits, seed)
    found = {}
    for name, precision in PRECISIONS.items():
        recipe = replace(case.training, precision=precision)
        with tempfile.TemporaryDirectory() as folder:
            # seeds far apart: the halves of one set follow from its seed
            references, taken = timed(
                lambda recipe=recipe, folder=folder: train_references(
                    like, splits, recipe, out=f"{folder}/references", models=count, seed=10_000 * seed
                )
            )
        told = {
            model: {attack: each[key] for attack, each in areas(signals[model], references, groups).items()}
            for model, key in SHOWN.items()
        }
        found[name] = {"cpu": taken["cpu"] / count, "areas": told}
        print(seed, name, found[name], flush=True)
    return found


def table(runs: list[dict[str, Any]], references: int) -> dict[str, Any]:
    """Model -> attack -> mean in float32, its deviation over seeds, and the difference in bfloat16 of each seed."""
    first, second = ([each[name]["areas"] for each in runs] for name in PRECISIONS)
    areas = {
        model: {
            attack: {
                "mean": statistics.mean(each[model][attack] for each in first),
                "deviation": statistics.stdev(each[model][attack] for each in first),
                "differences": [b[model][attack] - a[model][attack] for a, b in zip(first, second, strict=True)],
            }
            for attack in first[0][model]
        }
        for model in SHOWN
    }
    cpu = {name: statistics.mean(each[name]["cpu"] for each in runs) for name in PRECISIONS}
    return {"references": references, "seeds": len(runs), "cpu": cpu, "areas": areas}


def main() -> None:
    torch.set_num_threads(1)
    tables = {}
    for name, case in CASES.items():
        references, seeds = COUNTS[name]
        splits = case.splits()
        tables[name] = table([run(case, splits, seed, references) for seed in range(seeds)], references)
        write("reference_precision", {"tables": tables})


if __name__ == "__main__":
    main()
