"""How long an experiment may take: the passes over its training set, and one batch that is timed."""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import TensorDataset

from amun_ext.deletion.request import RETRAIN
from amun_ext.experiments.lab import PLAIN, TRAININGS, untrained
from amun_ext.experiments.results import Experiment
from amun_ext.experiments.scales import Scale
from amun_ext.training import DataPart, Pass, RunOptions, fit
from amun_ext.validation import require

# images of the training and of the test set, classes, shape: a plan needs no files
DATA = {
    "digits": (1197, 600, 10, (1, 8, 8)),
    "fashion-mnist-mini": (2000, 3000, 10, (1, 28, 28)),
    "cifar10": (50_000, 10_000, 10, (3, 32, 32)),
    "tiny-imagenet": (100_000, 10_000, 200, (3, 64, 64)),
}
RERUNS = 3  # of the best trials
PIECE = 16  # images: a whole batch of a large network takes minutes on a CPU


def estimate(row: Experiment, scale: Scale, device: str) -> tuple[float, float]:
    """(seconds of a batch of the plain training, hours of everything), if nothing is in the cache."""
    require(scale.data in DATA, "scale.data", f"one of {', '.join(DATA)}", repr(scale.data))
    images = (scale.images or DATA[scale.data])[0]
    batches = -(-images // scale.training.batch_size)
    work = passes(row, scale)
    seconds = {training: _batch(scale, training, device) for training in {PLAIN, *work}}
    return seconds[PLAIN], sum(seconds[training] * batches * count for training, count in work.items()) / 3600


def passes(row: Experiment, scale: Scale) -> Mapping[str, float]:
    """Training -> how often a network goes through a training set."""
    total = defaultdict[str, float](float)
    once: dict[tuple[Any, ...], float] = {}  # what cells share -> passes
    train, test = scale.images or DATA[scale.data][:2]
    epochs = scale.training.epochs
    for cell in row.cells(scale):
        training = cell.get("training", cell.get("what"))
        training = training if training in TRAININGS else PLAIN
        if "model" in cell:
            once[training, "original", cell["model"]] = epochs
        if row.prepare is not None and scale.references:
            once[training, "references"] = scale.references * epochs * (train + test) / 2 / train
        method, fraction = cell.get("method", cell.get("what")), cell.get("fraction", min(scale.fractions))
        if method == RETRAIN:
            once[training, RETRAIN, *cell.values()] = epochs
        elif "retain" in cell:
            request = scale.epochs * (1 if cell["retain"] else fraction)
            total[training] += request * (1 if "fraction" in cell else scale.requests)
            known = {} if cell.get("search") else scale.tuned_options(fraction)
            if scale.trials and (method, cell["retain"]) not in known:
                tuning = epochs + (scale.trials + RERUNS) * request
                once[PLAIN, method, cell["retain"], fraction, cell.get("search")] = tuning
        elif "curve" in cell:
            total[training] += scale.ablation_epochs
    for (training, *_), count in once.items():
        total[training] += count
    return total


def _batch(scale: Scale, training: str, device: str) -> float:
    """Seconds of the second of two batches of random images; on a CPU from PIECE of them, whose time is their share."""
    recipe = replace(scale.training, **TRAININGS[training].recipe, epochs=1, warmup_epochs=0)
    classes, shape = DATA[scale.data][2:]
    network = untrained(scale, training, num_classes=classes, in_channels=shape[0]).to(device)
    count = recipe.batch_size if torch.device(device).type != "cpu" else min(PIECE, recipe.batch_size)
    batch = TensorDataset(torch.rand(count, *shape, device=device), torch.arange(count, device=device) % classes)
    for _ in range(2):
        start = time.perf_counter()
        fit(network, [Pass([DataPart(batch)])], recipe, RunOptions())
        took = time.perf_counter() - start
    return took * recipe.batch_size / count
