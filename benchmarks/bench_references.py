"""How many reference models an hour, at equal accuracy? python benchmarks/bench_references.py

What `amun references` does: a plain PyTorch loop with a DataLoader, model after model; train_references in one process
and in two; and, as a trial, several models side by side in one forward (torch.func.stack_module_state and vmap, plain
SGD on the stacked weights). All begin with the same weights and see the same batches: in float64, where steps do not
amplify what rounding differs in, what they keep of some samples must be equal before times are compared. Ways take
turns, and starting processes counts. One thread a process unless told otherwise: threads wait for each other wherever
another program takes a core, so that with two the numbers of a busy machine say little.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from bench_audit import noisy_digits
from common import write
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.data import DataLoader, TensorDataset

from amun_ext import models
from amun_ext.auditing import train_references
from amun_ext.auditing.model_signals import concat_splits, draw_membership, signals_from
from amun_ext.auditing.references import SEED
from amun_ext.data import Splits, load
from amun_ext.experiments import demo
from amun_ext.models import predict
from amun_ext.models.reinitialise import reinitialised
from amun_ext.training import Recipe
from amun_ext.training.parts import split_sizes

PROCESSES = 2
Signals = dict[str, Tensor]  # name -> [M, N], of the models in their order


def even_digits() -> Splits:
    """Without the last: side by side there are no halves that differ by a sample."""
    splits = noisy_digits()
    return replace(splits, test=TensorDataset(*(tensor[:-1] for tensor in splits.test.tensors)))


@dataclass(frozen=True)
class Case:
    splits: Callable[[], Splits]
    model: str
    width: int | None
    recipe: Recipe
    models: int  # of a turn, as many side by side


CASES = {
    "demo cnn": Case(lambda: load(demo.DATA), demo.MODEL, None, replace(demo.TRAINING, epochs=6), 4),
    "demo cnn, digits": Case(
        even_digits, demo.MODEL, None, Recipe(epochs=20, lr=0.1, schedule="cosine", batch_size=64), 8
    ),
    "resnet18, width 8": Case(lambda: load(demo.DATA), "resnet18", 8, Recipe(epochs=2, lr=0.1, schedule="cosine"), 2),
}


def fresh(model: nn.Module, seed: int) -> nn.Module:
    """The weights that train_references begins with."""
    torch.manual_seed(seed)
    return reinitialised(model)


def sgd(parameters: list[Tensor], recipe: Recipe) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.LambdaLR]:
    optimizer = torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.lr_factor)


def joined(each: list[Signals]) -> Signals:
    return {name: torch.stack([signals[name] for signals in each]) for name in each[0]}


def plain(like: nn.Module, everything: TensorDataset, members: Tensor, seeds: list[int], recipe: Recipe) -> Signals:
    """One model after the other."""
    kept = []
    for half, seed in zip(members, seeds, strict=True):
        model = fresh(like, seed).train()
        data = TensorDataset(*(tensor[half] for tensor in everything.tensors))
        optimizer, schedule = sgd(list(model.parameters()), recipe)
        order, sizes = torch.Generator().manual_seed(seed), split_sizes(len(data), recipe.batch_size)
        for _ in range(recipe.epochs):
            batches = [rows.tolist() for rows in torch.randperm(len(data), generator=order).split(sizes)]
            for x, labels in DataLoader(data, batch_sampler=batches):
                optimizer.zero_grad()
                F.cross_entropy(model(x), labels).backward()
                optimizer.step()
            schedule.step()
        images, labels = everything.tensors
        kept.append(signals_from(predict(model, images), labels))
    return joined(kept)


def side_by_side(
    like: nn.Module, everything: TensorDataset, members: Tensor, seeds: list[int], recipe: Recipe
) -> Signals:
    """All models in one forward. BatchNorm moves its stacked running statistics in place, each model its own.

    The sum of their losses has the gradients of each, and SGD takes every weight by itself.
    """
    images, labels = everything.tensors
    networks = [fresh(like, seed).train() for seed in seeds]
    parameters, buffers = stack_module_state(networks)  # name -> [M, ...]
    forward = vmap(lambda weights, state, x: functional_call(networks[0], (weights, state), (x,)))
    optimizer, schedule = sgd(list(parameters.values()), recipe)
    rows = torch.stack([half.nonzero()[:, 0] for half in members])  # [M, n]
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    sizes = split_sizes(rows.shape[1], recipe.batch_size)
    for _ in range(recipe.epochs):
        shuffled = torch.stack([torch.randperm(rows.shape[1], generator=order) for order in orders])
        for batch in rows.gather(1, shuffled).split(sizes, dim=1):  # [M, B]
            optimizer.zero_grad()
            logits = forward(parameters, buffers, images[batch])
            loss = F.cross_entropy(logits.flatten(0, 1), labels[batch].flatten(), reduction="sum")
            (loss / batch.shape[1]).backward()
            optimizer.step()
        schedule.step()
    kept = []
    for number, network in enumerate(networks):
        network.load_state_dict({name: stacked[number] for name, stacked in {**parameters, **buffers}.items()})
        kept.append(signals_from(predict(network, images), labels))
    return joined(kept)


def measured(work: Callable[[], Signals]) -> tuple[Signals, float, float]:
    """With wall and CPU seconds, those of processes that it has started and ended among them."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    result = work()
    return result, time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def sure(log_odds: Tensor, members: Tensor) -> list[float]:
    """Of each model [M, N] the percent of samples it has not seen whose class gets more than half the probability."""
    return [100.0 * float((row[~half] > 0).double().mean()) for row, half in zip(log_odds, members, strict=True)]


def works(
    like: nn.Module, splits: Splits, recipe: Recipe, numbers: range, folder: str
) -> dict[str, Callable[[], Signals]]:
    """Way -> what the models of these numbers keep. `folder` has the references of the numbers before."""
    everything = concat_splits(splits)
    images, labels = everything.tensors
    everything = TensorDataset(images.to(next(like.parameters()).dtype), labels)
    members = draw_membership(len(everything), numbers.stop)[numbers.start :]
    given = like, everything, members, [SEED + number for number in numbers], recipe

    def references(workers: int) -> Signals:
        out = f"{folder}/{workers}"
        made = train_references(like, splits, recipe, out=out, models=numbers.stop, num_workers=workers)
        return {name: signals[numbers.start :] for name, signals in made.signals.items()}

    return {
        "plain loop": partial(plain, *given),
        "train_references": partial(references, 1),
        f"train_references, num_workers={PROCESSES}": partial(references, PROCESSES),
        "side by side (vmap)": partial(side_by_side, *given),
    }


def check(like: nn.Module, splits: Splits, recipe: Recipe) -> None:
    """All ways keep the same of two models of 100 samples after two epochs of two batches."""
    train, test = (TensorDataset(*(each[:50] for each in data.tensors)) for data in (splits.train, splits.test))
    few = Splits(train, test, splits.classes)
    with tempfile.TemporaryDirectory() as folder:
        every = works(copy.deepcopy(like).double(), few, replace(recipe, epochs=2, batch_size=32), range(2), folder)
        first, *others = [work()["log-odds"] for work in every.values()]
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-5, atol=1e-5)


def run(case: Case, rounds: int) -> dict[str, Any]:
    splits = case.splits()
    channels = splits.train.tensors[0].shape[1]
    like = models.build(case.model, num_classes=len(splits.classes), in_channels=channels, width=case.width)
    check(like, splits, case.recipe)
    samples, total = len(concat_splits(splits)), case.models * rounds
    members = draw_membership(samples, total)
    taken: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            numbers = range(turn * case.models, (turn + 1) * case.models)
            ways = list(works(like, splits, case.recipe, numbers, folder).items())
            for name, work in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                signals, wall, cpu = measured(work)
                row = taken.setdefault(name, {"wall": [], "cpu": [], "held_out": []})
                row["wall"].append(wall / case.models)
                row["cpu"].append(cpu / case.models)
                row["held_out"] += sure(signals["log-odds"], members[numbers.start : numbers.stop])
                print(f"{name}: {wall / case.models:.2f} s a model, {cpu / case.models:.2f} of CPU", flush=True)
    return {"samples": samples // 2, "epochs": case.recipe.epochs, "models": total, "rows": summary(taken)}


def summary(taken: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Of the turns the best and the median; accuracies over the models, and against the plain loop's that began alike.

    The best turn is the one that other programs have disturbed least.
    """
    base = taken["plain loop"]
    return {
        name: {
            "models an hour": {"best": 3600 / min(row["wall"]), "median": 3600 / statistics.median(row["wall"])},
            "times plain": min(base["wall"]) / min(row["wall"]),
            "cpu": {"best": min(row["cpu"]), "median": statistics.median(row["cpu"])},
            "held_out": spread(row["held_out"]),
            "difference": spread([a - b for a, b in zip(row["held_out"], base["held_out"], strict=True)]),
            "each": row,
        }
        for name, row in taken.items()
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "standard error": statistics.stdev(values) / len(values) ** 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="shared out among processes where there are several")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tables = {}
    for name, case in CASES.items():
        print(name, flush=True)
        tables[name] = run(case, given.rounds)
        write("references", {"rounds": given.rounds, "tables": tables})


if __name__ == "__main__":
    main()
