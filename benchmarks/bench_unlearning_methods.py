"""The field's methods with chosen options beside AMUN and distillation: python benchmarks/bench_unlearning_methods.py

The demo's network, data and recipes, with the retain set. The options of each method are those of GRID with the least
gap to retraining over the requests of --chosen-on; the table is of other requests. Those of AMUN and distillation are
bench_distill.py's, whose cells, originals and targets this one shares: a stopped benchmark goes on where it was. With
--methods the rows of these are made and the others stay as they are.

ReGUn's held-out samples are 2,000 of Fashion-MNIST that are not embedded; they must be there (apt-get install
dataset-fashion-mnist).
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_distill import configs, gaps, over_seeds, prepared
from common import read, write

from amun_ext.data import ImageDataset, Splits, load
from amun_ext.data.embedded.make import PER_CLASS
from amun_ext.data.fashion_mnist import MINI, find_folder, read_part
from amun_ext.data.splits import image_dataset
from amun_ext.deletion.request import ORIGINAL
from amun_ext.experiments import demo
from amun_ext.files import to_jsonable
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.config import MethodConfig, resolve_config


def grid(recipe: dict[str, list[Any]], **options: list[Any]) -> list[dict[str, Any]]:
    """Every combination, as arguments of `resolve_config`."""
    made = []
    for values in product(*recipe.values(), *options.values()):
        fields = dict(zip(recipe, values, strict=False))
        own = dict(zip(options, values[len(recipe) :], strict=True))
        made.append({"recipe": fields, **own})
    return made


def config(method: str, options: dict[str, Any]) -> MethodConfig:
    inputs = {"held_out": held_out()} if "held_out" in METHODS[method].inputs else {}
    return resolve_config(method, **inputs, **options)


COSINE = ["cosine"]
GRID = {  # around the authors' values, up to learning rates that forget too much; new ones go to the end of a list
    "scrub": grid({"lr": [0.002, 0.005, 0.01, 0.03, 0.1, 0.3], "schedule": COSINE}),
    "neggrad+": [
        *grid({"lr": [0.01, 0.03, 0.1], "schedule": COSINE}, beta=[0.9, 0.95]),
        *grid({"lr": [0.1, 0.3], "schedule": COSINE}, beta=[0.8]),
    ],
    "bad-teacher": grid({"lr": [1e-4, 5e-4, 2e-3], "epochs": [1, 3]}),
    "ssd": [
        *grid({}, selection=[1.0, 3.0, 10.0], dampening=[0.1, 1.0]),
        *grid({}, selection=[1.5, 2.0], dampening=[0.5]),
    ],
    "msg": grid({"lr": [0.003, 0.01, 0.03, 0.1]}, reset_fraction=[0.3, 0.6]),
    "ct": grid({"lr": [0.003, 0.01, 0.03, 0.1], "epochs": [3, 10]}),
    "regun": [
        *grid({"lr": [0.01, 0.03, 0.1], "epochs": [10, 30]}),
        *grid({"lr": [0.0003, 0.001, 0.003], "epochs": [10, 30]}),
    ],
    "amun+salun": grid({"lr": [0.01, 0.03, 0.1, 0.2], "schedule": COSINE}, include_forget=[False]),
}


def held_out() -> ImageDataset:
    """As many of each class as the embedded training set has, and none of them."""
    images, labels = read_part(find_folder(Path("data")), "train")
    with np.load(MINI) as mini:
        others = np.setdiff1d(np.arange(len(labels)), mini["train_rows"])
    rows = np.concatenate([others[labels[others] == label][: PER_CLASS["train"]] for label in range(10)])
    return image_dataset(images[rows], labels[rows])


def choose(splits: Splits, seeds: list[int], methods: list[str]) -> dict[str, Any]:
    """For each method the options with the least mean gap on these requests, that gap, and how many were tried; and
    the gap of the no-op."""
    tried = {f"{method}:{number}": each for method in methods for number, each in enumerate(GRID[method])}
    rows = {name: config(name.partition(":")[0], options) for name, options in tried.items()}
    tables = [gaps(splits, seed, 1, {"with": rows})["with"] for seed in seeds]

    def gap(title: str) -> dict[str, Any]:
        """Of the row whose title ends so: `compare` puts the names of rows of one method behind their title."""
        each = [next(row["gap"] for name, row in table.items() if name.endswith(title)) for table in tables]
        return {"mean": float(np.mean(each)), "deviation": float(np.std(each, ddof=1)), "n": len(each)}

    chosen = {}
    for method in methods:
        some = GRID[method]
        found = [gap(f"({method}:{number})") for number in range(len(some))]
        best = min(range(len(some)), key=lambda number: np.nan_to_num(found[number]["mean"], nan=np.inf))
        chosen[method] = {"options": some[best], "gap": found[best], "tried": len(some)}
    return {"requests": seeds, "no-op": gap(ORIGINAL), "methods": chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="requests of the table; empty: choose the options only")
    parser.add_argument("--chosen-on", default="100,101", help="requests that the options are chosen on")
    parser.add_argument("--repeats", type=int, default=2, help="models of every row and request")
    parser.add_argument("--methods", default=",".join(["amun:no-forget", "distill", *GRID]))
    options = parser.parse_args()
    torch.set_num_threads(1)
    splits, methods = load(demo.DATA), options.methods.split(",")
    before = read("unlearning_methods") or {"chosen": {"methods": {}}, "runs": {}}
    chosen = choose(splits, [*map(int, options.chosen_on.split(","))], [name for name in methods if name in GRID])
    chosen["methods"] = {**before["chosen"]["methods"], **chosen["methods"]}
    result = {"chosen": chosen, "repeats": options.repeats, "runs": before["runs"]}
    fixed = {name: config(name, chosen["methods"][name]["options"]) for name in methods if name in GRID}
    for seed in filter(None, options.seeds.split(",")):
        shared = {} if {*methods} <= {*GRID} else configs(True, prepared(splits, int(seed)))
        rows = {**{name: each for name, each in shared.items() if name in methods}, **fixed}
        made = gaps(splits, int(seed), options.repeats, {"with": rows})["with"]
        result["runs"][seed] = {"with": {**before["runs"].get(seed, {}).get("with", {}), **made}}
    if result["runs"]:
        result["table"] = over_seeds([*result["runs"].values()])["with"]
    write("unlearning_methods", {name: to_jsonable(value) for name, value in result.items()})


if __name__ == "__main__":
    main()
