"""Five requests of 2 % one after another, next to retraining after each, as section 6.3 of AMUN's paper has them.

It also counts the training samples that a request would name as such that the model was not trained on.

The demo's network and recipes on the embedded images. Each request goes to the model of the request before. All is
measured of the samples that were forgotten so far, by confidence.
"""

import argparse
import statistics
from dataclasses import replace

import torch
from common import write
from torch import nn

from amun_ext import data, models
from amun_ext.data.images import ImageDataset
from amun_ext.deletion import Record, Request, forget, split
from amun_ext.deletion.request import ORIGINAL, RETRAIN, retraining
from amun_ext.deletion.unfamiliar import unfamiliar
from amun_ext.experiments import demo
from amun_ext.metrics.auc import auc
from amun_ext.metrics.signals import scaled_logit
from amun_ext.models import accuracy, predict
from amun_ext.training import DataPart, Pass, RunOptions, fit
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.config import resolve_config

REQUESTS, SIZE = 5, 40
AMUN = METHODS["amun"].title
SHORT = 5  # epochs of a model that knows its training samples less well


def train(splits: data.Splits, seed: int, epochs: int = demo.TRAINING.epochs) -> nn.Module:
    torch.manual_seed(seed)
    model = models.build(demo.MODEL, num_classes=len(splits.classes), in_channels=1)
    recipe = replace(demo.TRAINING, epochs=epochs)
    fit(model, [Pass([DataPart(splits.train)])], recipe, RunOptions(seed=seed))
    return model


def measured(model: nn.Module, sets: dict[str, ImageDataset]) -> dict[str, float]:
    logits = {name: predict(model, dataset) for name, dataset in sets.items()}
    sure = {name: scaled_logit(answer, sets[name].labels) for name, answer in logits.items()}
    ft, fr = auc(sure["forget"], sure["test"]).value, auc(sure["retain"], sure["forget"]).value
    accuracies = {short: accuracy(logits[name], sets[name].labels) for short, name in NAMES.items()}
    return {**accuracies, "FT AUC": ft, "FR AUC": fr, "FR - FT": fr - ft}


NAMES = {"UA": "forget", "RA": "retain", "TA": "test"}


def chain(splits: data.Splits, first: nn.Module, seed: int) -> list[dict[str, dict[str, float]]]:
    """Row by row after each request."""
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))
    record = Record(arch=demo.MODEL, recipe=demo.TRAINING, seed=seed)
    options = {"include_forget": False, "recipe": demo.FINE_TUNING}
    config = resolve_config("amun", default=options)
    model, told = first, []
    for number in range(REQUESTS):
        ids = order[number * SIZE : (number + 1) * SIZE]
        made = forget(model, splits, Request(ids, True, config, False, seed, record))
        model, record = made.model, Record.read(made.metadata, "the new model")
        gone, retain = split(splits.train, torch.tensor(record.forgotten_ids))
        sets = {"forget": gone, "retain": retain, "test": splits.test}
        again = retraining(first, record).unlearn(first, gone, retain, seed=seed + 1000)
        told.append(
            {name: measured(each, sets) for name, each in {ORIGINAL: first, AMUN: model, RETRAIN: again}.items()}
        )
        print(seed, number + 1, told[-1], flush=True)
    return told


def named(model: nn.Module, splits: data.Splits, seed: int) -> dict[str, float]:
    """Percent of the training samples that are named, as they are and with a wrong label."""
    images, labels = splits.train.tensors
    shift = torch.randint(1, len(splits.classes), labels.shape, generator=torch.Generator().manual_seed(seed))
    wrong = ImageDataset(images, (labels + shift) % len(splits.classes))
    shares = {"as they are": splits.train, "with a wrong label": wrong}
    rows = {name: unfamiliar(model, dataset, splits.test) for name, dataset in shares.items()}
    return {name: 100 * len(found) / len(labels) for name, (found, _) in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    splits = data.load(demo.DATA)
    runs, unfamiliar_samples = [], {}
    for seed in range(options.seeds):
        model = train(splits, seed)
        rates = {f"{demo.TRAINING.epochs} epochs": model, f"{SHORT} epochs": train(splits, seed, SHORT)}
        for name, each in rates.items():
            unfamiliar_samples.setdefault(name, []).append(named(each, splits, seed))
        runs.append(chain(splits, model, seed))
    table = [
        {
            row: {
                key: [statistics.mean(of), statistics.stdev(of)]
                for key in value
                if (of := [run[at][row][key] for run in runs])
            }
            for row, value in runs[0][at].items()
        }
        for at in range(REQUESTS)
    ]
    write("chain", {"seeds": options.seeds, "table": table, "runs": runs, "unfamiliar": unfamiliar_samples})


if __name__ == "__main__":
    main()
