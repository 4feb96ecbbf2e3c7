"""The field's methods with chosen options beside AMUN and distillation: python benchmarks/bench_unlearning_methods.py

The demo's network, data and recipes, with the retain set. The options of each method are those of GRID with the least
gap to retraining over the requests of --chosen-on; the table is of other requests. Those of AMUN and distillation are
bench_distill.py's, whose cells, originals and targets this one shares: a stopped benchmark goes on where it was.
"""

import argparse
from itertools import product
from typing import Any

import numpy as np
import torch
from bench_distill import FINE_TUNING, configs, gaps, over_seeds, prepared
from common import write

from amun_ext.data import load
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


COSINE = ["cosine"]
GRID = {  # around the authors' values, up to learning rates that forget too much
    "scrub": grid({"lr": [0.002, 0.005, 0.01, 0.03], "schedule": COSINE}),
    "neggrad+": grid({"lr": [0.01, 0.03, 0.1], "schedule": COSINE}, beta=[0.9, 0.95]),
    "bad-teacher": grid({"lr": [1e-4, 5e-4, 2e-3], "epochs": [1, 3]}),
    "ssd": grid({}, selection=[1.0, 3.0, 10.0], dampening=[0.1, 1.0]),
    "msg": grid({"lr": [0.003, 0.01, 0.03, 0.1]}, reset_fraction=[0.3, 0.6]),
    "ct": grid({"lr": [0.003, 0.01, 0.03, 0.1], "epochs": [3, 10]}),
    "amun+salun": grid({"lr": [0.01, 0.03, 0.1], "schedule": COSINE}, include_forget=[False]),
}


def chosen(splits: Any, seeds: list[int]) -> dict[str, dict[str, Any]]:
    """Method -> its options with the least mean gap, that gap, and how many there were to choose from."""
    named = {f"{method}:{number}": (method, each) for method, some in GRID.items() for number, each in enumerate(some)}
    rows: dict[str, MethodConfig | None] = {
        name: resolve_config(method, **options) for name, (method, options) in named.items()
    }
    tables = [gaps(splits, seed, 1, {"with": rows})["with"] for seed in seeds]
    best = {}
    for method, tried in GRID.items():
        mean = {name: float(np.mean([title_row(table, name)["gap"] for table in tables])) for name in of(named, method)}
        name = min(mean, key=lambda each: mean[each] if np.isfinite(mean[each]) else np.inf)
        best[method] = {"options": named[name][1], "gap": mean[name], "tried": len(tried)}
    return best


def of(named: dict[str, tuple[str, Any]], method: str) -> list[str]:
    return [name for name, (its, _) in named.items() if its == method]


def title_row(table: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    """A table of `compare` names rows of one method by their title and name."""
    return next(row for title, row in table.items() if title.endswith(f"({name})"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="requests of the table")
    parser.add_argument("--chosen-on", default="100,101", help="requests that the options are chosen on")
    parser.add_argument("--repeats", type=int, default=2, help="models of every row and request")
    options = parser.parse_args()
    torch.set_num_threads(1)
    splits = load(demo.DATA)
    best = chosen(splits, [*map(int, options.chosen_on.split(","))])
    fixed = {name: resolve_config(name, **each["options"]) for name, each in best.items()}
    runs = {}
    for seed in map(int, options.seeds.split(",")):
        rows = {**configs(True, prepared(splits, seed)), **fixed}
        runs[seed] = gaps(splits, seed, options.repeats, {"with": rows})
        result = {
            "repeats": options.repeats,
            "chosen_on": options.chosen_on,
            "chosen": {METHODS[name].title: each for name, each in best.items()},
            "others": {"recipes": FINE_TUNING},
            "table": over_seeds([*runs.values()])["with"],
            "runs": runs,
        }
        write("unlearning_methods", {name: to_jsonable(value) for name, value in result.items()})


if __name__ == "__main__":
    main()
