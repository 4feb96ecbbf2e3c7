"""Ten requests of 1 % one after another, next to retraining after some of them: python benchmarks/bench_chain.py

AMUN's paper has five in a row (section 6.3). The demo's network and recipes on the embedded images; options, originals
and cross-fits are those of bench_distill.py. Each request goes to the model of the request before. A cross-fit is made
once, before the first request, and loses the rows of each. All is measured of the samples that were forgotten so far,
by confidence. What a chain has measured is kept under build/chain: a stopped benchmark goes on where it was.

It also counts the training samples that a request would name as such that the model was not trained on.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from bench_distill import configs, prepared, trained, untrained
from common import write
from torch import nn

from amun_ext import data
from amun_ext.data.images import ImageDataset
from amun_ext.deletion import Record, split
from amun_ext.deletion.request import ORIGINAL, RETRAIN, retraining, sets
from amun_ext.deletion.unfamiliar import unfamiliar
from amun_ext.experiments import demo
from amun_ext.experiments.cache import Cache
from amun_ext.metrics import auc, gap
from amun_ext.metrics.signals import scaled_logit
from amun_ext.models import accuracy, predict
from amun_ext.training import DataPart, Pass, RunOptions, fit
from amun_ext.unlearning import METHODS

REQUESTS, SIZE, MEASURED = 10, 20, (1, 4, 7, 10)
FOLDER = Path(__file__).parent.parent / "build/chain"
AMUN, DISTILL = (METHODS[name].title for name in ("amun", "distill"))
ALONE = f"{DISTILL}, D_F only"
AGAIN = f"{RETRAIN}, again"  # with another seed
SHORT = 5  # epochs of a model that knows its training samples less well
Step = dict[str, float]


def briefly_trained(splits: data.Splits, seed: int) -> nn.Module:
    model = untrained(splits, seed)
    fit(model, [Pass([DataPart(splits.train)])], replace(demo.TRAINING, epochs=SHORT), RunOptions(seed=seed))
    return model


def measured(model: nn.Module, splits: data.Splits, forgotten: list[int]) -> Step:
    gone, retain = split(splits.train, torch.tensor(forgotten))
    parts = {"UA": gone, "RA": retain, "TA": splits.test}
    logits = {name: predict(model, dataset) for name, dataset in parts.items()}
    sure = {name: scaled_logit(answer, parts[name].labels) for name, answer in logits.items()}
    ft, fr = auc(sure["UA"], sure["TA"]).value, auc(sure["RA"], sure["UA"]).value
    accuracies = {name: accuracy(answer, parts[name].labels) for name, answer in logits.items()}
    return {**accuracies, "FT AUC": ft, "FR AUC": fr, "FR - FT": fr - ft}


def requests(splits: data.Splits, seed: int) -> list[torch.Tensor]:
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))
    return [*order[: REQUESTS * SIZE].split(SIZE)]


def chain(splits: data.Splits, seed: int, row: str) -> dict[str, list[Step]]:
    """The measures of a row after the requests of MEASURED, as its "steps"."""
    first = trained(splits, seed)
    record = Record(arch=demo.MODEL, recipe=demo.TRAINING, seed=seed)
    model, targets, steps = first, prepared(splits, seed), []
    for number, ids in enumerate(requests(splits, seed), 1):
        request = sets(splits, ids, record, include_duplicates=True)
        record = replace(record, forgotten=(*record.forgotten_ids, *request.ids.tolist()))
        if row in (AMUN, DISTILL, ALONE):
            config = configs(row != ALONE, targets)["amun:no-forget" if row == AMUN else "distill"]
            model = config.unlearn(model, request.forget, request.retain, seed=seed)
            targets = targets.without(request.forget)
        if number not in MEASURED:
            continue
        if row in (RETRAIN, AGAIN):
            gone, retain = split(splits.train, torch.tensor(record.forgotten_ids))
            other = seed + 1000 * (1 + (row == AGAIN))
            model = retraining(first, record).unlearn(first, gone, retain, seed=other)
        steps.append(measured(model, splits, [*record.forgotten_ids]))
        print(seed, row, number, steps[-1], flush=True)
    return {"steps": steps}


def with_gaps(rows: dict[str, list[Step]]) -> list[dict[str, Step]]:
    """Row by row after each measured request, with the gap to the mean of the two models retrained then."""
    return [with_gap(dict(zip(rows, each, strict=True))) for each in zip(*rows.values(), strict=True)]


def with_gap(after: dict[str, Step]) -> dict[str, Step]:
    retrained = [after[RETRAIN], after.pop(AGAIN)]
    middle = {key: statistics.mean(each[key] for each in retrained) for key in retrained[0]}
    gaps = {row: gap(values, middle) for row, values in after.items()}
    gaps[RETRAIN] = statistics.mean(gap(each, middle) for each in retrained)
    return {row: {"gap": gaps[row], **values} for row, values in {**after, RETRAIN: middle}.items()}


def named(train: Callable[[data.Splits, int], nn.Module], splits: data.Splits, seed: int) -> dict[str, float]:
    """Percent of the training samples that are named, as they are and with a wrong label."""
    model = train(splits, seed)
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
    FOLDER.mkdir(parents=True, exist_ok=True)
    cells = Cache(FOLDER / "cells", FOLDER)
    runs, unfamiliar_samples = [], {}
    for seed in range(options.seeds):
        for epochs, train in {demo.TRAINING.epochs: trained, SHORT: briefly_trained}.items():
            found = cells.values("named", [seed, epochs], partial(named, train, splits, seed))
            unfamiliar_samples.setdefault(f"{epochs} epochs", []).append(found)
        rows = {
            row: cells.values("chain", [seed, row, REQUESTS, SIZE, MEASURED], partial(chain, splits, seed, row))
            for row in (ORIGINAL, AMUN, DISTILL, ALONE, RETRAIN, AGAIN)
        }
        runs.append(with_gaps({row: kept["steps"] for row, kept in rows.items()}))
    table = [
        {
            row: {
                key: [statistics.mean(of), statistics.stdev(of)]
                for key in value
                if (of := [run[at][row][key] for run in runs])
            }
            for row, value in runs[0][at].items()
        }
        for at in range(len(MEASURED))
    ]
    write(
        "chain",
        {"seeds": options.seeds, "after": MEASURED, "table": table, "runs": runs, "unfamiliar": unfamiliar_samples},
    )


if __name__ == "__main__":
    main()
