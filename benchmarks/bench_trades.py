"""Whether TRADES makes networks robust: accuracy under the PGD of torchattacks, for the trainings of table 5.

pip install --no-deps -r benchmarks/peers.txt
python benchmarks/bench_trades.py
"""

import argparse
import statistics
from dataclasses import replace

import torch
from common import write
from peers import imported, in_batches
from torch import Tensor, nn

from amun_ext.data import load
from amun_ext.experiments.lab import PLAIN, TRAININGS, untrained
from amun_ext.experiments.scales import SCALES
from amun_ext.models import accuracy, predict
from amun_ext.recipe import TRADES
from amun_ext.training import DataPart, Pass, RunOptions, fit

IMAGES, STEPS = 1000, 20
ATTACKS = {"linf": "PGD", "l2": "PGDL2"}


def pgd(model: nn.Module, x: Tensor, y: Tensor, name: str, eps: float) -> Tensor:
    attacked: Tensor = getattr(imported("torchattacks"), name)(model, eps=eps, alpha=eps / 4, steps=STEPS)(x, y)
    return attacked


def accuracies(training: str, seed: int, epochs: int) -> dict[str, float]:
    """Percent of the first test images classified correctly, as they are and under the attack of each norm."""
    scale, splits = SCALES["small"], load(SCALES["small"].data)
    torch.manual_seed(seed)
    model = untrained(scale, training, num_classes=len(splits.classes), in_channels=1)
    recipe = replace(scale.training, **TRAININGS[training].recipe, epochs=epochs)
    fit(model, [Pass([DataPart(splits.train)])], recipe, RunOptions(seed=seed))
    images, labels = splits.test[:IMAGES]
    found = {"clean": accuracy(predict(model, images), labels)}
    for how in TRADES.values():
        attacked = in_batches(pgd, name=ATTACKS[how.norm], eps=how.eps)(model.eval(), images, labels)
        found[f"{how.norm}, radius {how.eps:.3f}"] = accuracy(predict(model, attacked), labels)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=SCALES["small"].training.epochs)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for training in (PLAIN, *(name for name, of in TRAININGS.items() if "robust" in of.recipe)):
        runs = [accuracies(training, seed, options.epochs) for seed in range(options.seeds)]
        columns = {name: [run[name] for run in runs] for name in runs[0]}
        rows[training] = {
            name: {"mean": statistics.mean(each), "deviation": statistics.stdev(each) if len(each) > 1 else None}
            for name, each in columns.items()
        }
        write("trades", {"rows": rows, "seeds": options.seeds, "epochs": options.epochs, "images": IMAGES})


if __name__ == "__main__":
    main()
