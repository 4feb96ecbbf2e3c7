"""Distillation, AMUN and NegGrad+ on a ResNet-18 of width 8 and 4,000 images: python benchmarks/bench_resnet.py

The data are bench_compare.py's larger draw of Fashion-MNIST (apt-get install dataset-fashion-mnist), measured on 5,000
test images; a tenth is forgotten. Every request has its own original, forget set, cross-fit and two retrained models,
and one model of each method. Where a method has several options, those with the least expected gap on the request of
--chosen-on are taken. Logits are kept under build/resnet: a stopped benchmark goes on where it was.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_compare import larger
from common import timed, write
from safetensors import safe_open
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import models
from amun_ext.data import Splits
from amun_ext.deletion import forget_ids, split
from amun_ext.deletion.request import RETRAIN_SEED
from amun_ext.experiments.cache import Cache
from amun_ext.files import to_jsonable, write_tensors
from amun_ext.metrics import MEASURES, Observation, gap, log_odds
from amun_ext.models import predict
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.tuning.objectives import expected
from amun_ext.unlearning import METHODS, prepare
from amun_ext.unlearning.config import MethodConfig, resolve_config

FOLDER = Path(__file__).parent.parent / "build/resnet"
TRAINING = Recipe(epochs=15, lr=0.1, schedule="cosine", batch_size=64)
FRACTION, TESTED, RETRAINED = 0.1, 5000, 2
MEASURE = {each.name: each for each in MEASURES}
MEASURED = ("UA", "RA", "TA", "FT AUC")  # of which the gap is the mean distance
Row = tuple[str, bool]  # method, with the retain set
Options = dict[str, Any]
Values = dict[str, float]
AMUN: Options = {"include_forget": False}
CHOICES: dict[Row, list[Options]] = {
    ("amun", True): [{**AMUN, "recipe": {"lr": 0.073, "schedule": "step:5"}}],  # what bench_compare.py has found
    ("distill", True): [{"recipe": {"lr": 0.03}}],  # this and the last: found on other requests, as the docs say
    ("neggrad+", True): [{"beta": 0.8, "recipe": {"lr": rate, "schedule": "cosine"}} for rate in (0.03, 0.1)],
    ("amun", False): [{**AMUN, "recipe": {"lr": rate, "schedule": "cosine"}} for rate in (0.001, 0.003, 0.01)],
    ("distill", False): [{"recipe": {"lr": 0.01}}],
}


def observations(
    splits: Splits, seed: int, folds: int, rows: list[tuple[Row, Options]], retrained: int
) -> list[list[Observation]]:
    """Of a request: the models of retraining, of the no-op and of the rows."""
    folder = FOLDER / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    cells = Cache(folder / "logits", folder)
    forget, retain = split(splits.train, forget_ids(len(splits.train), fraction=FRACTION, seed=seed))
    sets = {"forget": forget, "retain": retain, "test": splits.test}
    original = trained(splits, seed, folder / "original.safetensors")

    def observed(identity: object, config: MethodConfig | None, seed: int) -> Observation:
        def make() -> nn.Module:
            return original if config is None else config.unlearn(original, forget, retain, seed=seed)

        return observe(cells, [asdict(TRAINING), identity, seed], make, sets)

    def unlearned(row: Row, options: Options) -> Observation:
        method, with_retain = row
        needs, out = "targets" in METHODS[method].inputs, folder / f"targets-{folds}.safetensors"
        targets = prepare(original, splits, TRAINING, out=out, folds=folds, seed=seed, progress=True) if needs else None
        config = resolve_config(method, with_retain, targets=targets, **options)
        return observed([method, with_retain, options, folds * needs], config, seed)

    retraining = resolve_config("retrain", default={"recipe": TRAINING})
    seeds = [RETRAIN_SEED + seed + 100 * number for number in range(retrained)]
    theirs = [observed("retrain", retraining, each) for each in seeds]
    return [theirs, [observed("no-op", None, seed)], *([unlearned(*row)] for row in rows)]


def choose(splits: Splits, seed: int, folds: int) -> tuple[dict[Row, Options], list[dict[str, Any]]]:
    """The options of each row, and what was tried where there is a choice: `amun tune`'s expected gap."""
    tried = [(row, options) for row, each in CHOICES.items() for options in each if len(each) > 1]
    _, (original,), *made = observations(splits, seed, folds, tried, retrained=0)
    ideal = expected(values(original))
    ranked = sorted(
        ((*row, gap(values(model), ideal)) for row, (model,) in zip(tried, made, strict=True)), key=itemgetter(2)
    )
    best = {row: options for row, options, _ in reversed(ranked)}
    chosen = {row: best.get(row, each[0]) for row, each in CHOICES.items()}
    return chosen, [
        {"method": row[0], "with D_R": row[1], "options": of, "expected gap": least} for row, of, least in ranked
    ]


def trained(splits: Splits, seed: int, checkpoint: Path) -> nn.Module:
    torch.manual_seed(seed)
    model = models.build("resnet18", num_classes=len(splits.classes), in_channels=1, width=8)
    if checkpoint.exists():
        models.load_checkpoint(checkpoint, model)
    else:
        fit(model, [Pass([DataPart(splits.train)])], TRAINING, RunOptions(seed=seed))
        models.save_checkpoint(checkpoint, model, {})
    return model


def observe(
    cells: Cache, identity: object, make: Callable[[], nn.Module], sets: dict[str, TensorDataset]
) -> Observation:
    """Of the model that is made, with the CPU seconds that this takes."""

    def keep(path: Path) -> None:
        model, taken = timed(make)
        logits = {name: predict(model, data) for name, data in sets.items()}
        write_tensors(path, logits, {"seconds": str(taken["cpu"])})

    with safe_open(cells.file("logits", identity, ".safetensors", keep), "pt") as file:
        logits = {name: file.get_tensor(name) for name in sets}
        seconds = float(file.metadata()["seconds"])
    labels = {name: torch.as_tensor(data.labels) for name, data in sets.items()}
    scores = {name: log_odds(logits[name], labels[name]).numpy() for name in sets}
    return Observation(logits, labels, {"confidence": scores}, seconds)


def values(model: Observation) -> Values:
    return {name: MEASURE[name].value(model).value for name in MEASURED}


def means(row: list[Observation], retrained: list[Observation]) -> Values:
    """Over the models of a row: the gap to the mean of the retrained models, the divergence as a mean over them."""
    own, theirs = ([values(model) for model in of] for of in (row, retrained))
    middle = {name: float(np.mean([each[name] for each in theirs])) for name in MEASURED}
    pairs = [(model, each) for model in row for each in retrained if each is not model]
    return {
        **{name: float(np.mean([each[name] for each in own])) for name in MEASURED},
        "gap": float(np.mean([gap(each, middle) for each in own])),
        "JS, forget": float(np.mean([MEASURE["JS, forget"].value(*pair).value for pair in pairs])),
        "seconds": float(np.mean([model.seconds for model in row])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--chosen-on", type=int, default=100, help="request that options are chosen on")
    parser.add_argument("--folds", type=int, default=2, help="of the cross-fit; two cost one training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    splits = larger()
    splits = Splits(splits.train, TensorDataset(*splits.test[:TESTED]), splits.classes)
    chosen, tried = choose(splits, options.chosen_on, options.folds)
    print(chosen, tried, flush=True)
    settings = {True: "with D_R", False: "D_F only"}
    titles = [METHODS["retrain"].title, "no-op", *(f"{METHODS[row[0]].title}, {settings[row[1]]}" for row in chosen)]
    runs = {}
    for seed in options.seeds.split(","):
        models = observations(splits, int(seed), options.folds, [*chosen.items()], RETRAINED)
        runs[seed] = {title: means(each, models[0]) for title, each in zip(titles, models, strict=True)}
        print(seed, runs[seed], flush=True)
    facts = {"retrained": RETRAINED, "images": len(splits.train), "test": TESTED, "folds": options.folds}
    write("resnet", to_jsonable({**facts, "chosen on": options.chosen_on, "tried": tried, "runs": runs}))


if __name__ == "__main__":
    main()
