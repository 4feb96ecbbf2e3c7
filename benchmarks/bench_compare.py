"""Every unlearning method in both settings, for requests of a tenth and of half of the data: `amun compare`'s tables.

The command line does it all: amun train makes the original, amun tune chooses each method's options by the gap to a
model retrained without other samples than the request's (as the paper does), amun compare sets the methods beside each
other, measured on test images that the tuning has not seen. Each step is kept under build/compare: a killed benchmark
can be resumed by the same command.
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import read, write
from torch.utils.data import TensorDataset

from amun_ext import cli
from amun_ext.data import Splits, load
from amun_ext.tuning import tunable
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.config import resolve_config, save_tuned_options

FOLDER = Path(__file__).parent.parent / "build/compare"
PAPER = Path(__file__).parent.parent / "amun_ext/experiments/paper"
LARGER = 4000


def larger() -> Splits:
    """A larger draw of Fashion-MNIST than the embedded one."""
    splits = load("fashion-mnist")
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))[:LARGER]
    return Splits(TensorDataset(*splits.train[order]), splits.test, splits.classes)


@dataclass(frozen=True)
class Case:
    data: str
    training: str
    tuning: str
    seeds: int
    trials: int


CASES = {
    "small CNN, 2,000 images": Case(
        "fashion-mnist-mini",
        "--model small-cnn --epochs 30 --lr 0.05 --schedule cosine --batch-size 64",
        "",
        seeds=5,
        trials=20,
    ),
    "ResNet-18, 4,000 images": Case(
        "bench_compare:larger",
        "--model resnet18 --width 8 --epochs 15 --lr 0.1 --schedule cosine --channels-last",
        "--channels-last",
        seeds=3,
        trials=8,
    ),
}
SETTINGS = {"with": [], "without": ["--without-retain"]}


def amun(*arguments: object) -> None:
    """Exit status 3 tells of samples without an example, or of methods without a feasible trial; the table has both."""
    status = cli.main([str(argument) for argument in arguments])
    if status not in (0, 3):
        sys.exit(status)


def run(name: str, case: Case, fraction: float) -> dict[str, Any]:
    folder = FOLDER / name.replace(" ", "-").replace(",", "")
    original = folder / "original.safetensors"
    if not original.exists():
        amun("train", "--data", case.data, *case.training.split(), "--out", original)
    targets = folder / "targets.safetensors"
    amun("prepare", "--model", original, "--data", case.data, "--out", targets)
    request = ("--model", original, "--data", case.data, "--fraction", fraction, "--targets", targets)
    tuned = []
    for setting, flags in SETTINGS.items():
        out = folder / f"tuned-{fraction}-{setting}"
        methods = ",".join(tunable(with_retain=setting == "with"))
        how = (*flags, *case.tuning.split(), "--methods", methods, "--trials", case.trials, "--objective", "retrain")
        amun("tune", *request, *how, "--out", out)
        tuned += ["--tuned", out / "tuned.json"]
    out = folder / f"compared-{fraction}"
    methods = ",".join(tunable())
    amun("compare", *request, "--methods", methods, *tuned, "--seeds", case.seeds, "--out", out)
    compared: dict[str, Any] = json.loads((out / "compare.json").read_text())
    return compared


def save_for_reproduce(name: str, scale: str, fraction: float) -> None:
    """What was chosen here, and by bench_unlearning_methods.py for the other methods: `amun reproduce` takes it."""
    settings = (read("compare") or {})["tables"][f"{name}, {fraction:.0%} forgotten"]["tables"]
    tuned: dict[tuple[str, bool], dict[str, Any]] = {}
    for setting, rows in settings.items():
        for method, row in rows.items():
            if row["options_source"] == "tuned":
                own = {key: value for key, value in row["options"].items() if key in METHODS[method].options}
                mask = {key: row["options"][key] for key in ("mask",) if key in row["options"]}
                tuned[method, setting == "with"] = {**own, **mask}
    others = (read("unlearning_methods") or {})["chosen"]["methods"]  # for a tenth
    tuned = {(method, True): dict(row["options"]) for method, row in others.items()} | tuned
    for (method, retain), options in tuned.items():
        renamed = {"accumulate": "accumulation_steps"}  # since the first results
        recipe = {renamed.get(key, key): value for key, value in options.pop("recipe").items()}
        default = resolve_config(method, retain).recipe
        tuned[method, retain] = {
            **{key: value for key, value in options.items() if key not in ("search", "bounds")},
            "recipe": replace(default, **recipe),
        }
    save_tuned_options(PAPER / f"tuned-{scale}-{fraction:g}.json", tuned, {"made_by": Path(__file__).name})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=";".join(CASES), help="separated by semicolons")
    parser.add_argument("--fractions", default="0.1,0.5")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in filter(None, options.cases.split(";")):
        for fraction in map(float, options.fractions.split(",")):
            compared = run(name, CASES[name], fraction)
            before = read("compare") or {}
            tables = before.get("tables", {}) | {f"{name}, {fraction:.0%} forgotten": compared}
            write("compare", {"tables": tables})
    for fraction in (0.1, 0.5):
        save_for_reproduce(next(iter(CASES)), "small", fraction)


if __name__ == "__main__":
    main()
