"""The training recipes beside each other: time to equal test accuracy, and what the originals reveal."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from amun_ext.data.images import subset as rows_of
from amun_ext.experiments.comparison import statistic
from amun_ext.experiments.lab import Lab
from amun_ext.experiments.results import Cell, Experiment, Results, curves, marks, table
from amun_ext.experiments.scales import Scale
from amun_ext.recipe import RECIPES
from amun_ext.report.parts import Block, Figures
from amun_ext.training import DataPart, Epoch, Pass, RunOptions, fit

PAPER = "paper"
CLOSE = 1.0  # points of test accuracy below the last of the paper's recipe that count as equal


def trained(lab: Lab, *, recipe: str, model: int) -> dict[str, Any]:
    """Accuracies and RT AUC of a network trained by the recipe; after each epoch the test accuracy and the seconds.

    The seconds are those of the process on a CPU, which other programs do not change, and else wall time.
    """
    how, network = RECIPES[recipe], lab.untrained(model)
    clock = time.process_time if torch.device(lab.device).type == "cpu" else time.perf_counter
    start, seconds = clock(), list[float]()

    def look(_: Epoch) -> None:
        seconds.append(clock() - start)

    test = rows_of(lab.splits.test, lab.test)
    run = RunOptions(seed=model, eval_sets={"test": test}, on_epoch=look, progress=lab.progress)
    epochs = fit(network, [Pass([DataPart(lab.splits.train)])], how, run, description=f"{recipe} {model}")
    values = lab.measure(network, lab.sets(model, 0, min(lab.scale.fractions)).ids.tolist(), None)
    accuracy = [epoch.accuracy["test"] for epoch in epochs]
    return {"accuracy": accuracy, "seconds": seconds} | {name: values[name] for name in ("TA", "RA", "RT AUC")}


def _cells(scale: Scale) -> list[Cell]:
    return [{"recipe": name, "model": model} for model in range(scale.repeats[0]) for name in RECIPES]


def _blocks(results: Results) -> Sequence[Block]:
    enough = results.over("TA", recipe=PAPER).mean - CLOSE
    rows, key = {}, marks(results.each("recipe"))
    for name in key:
        accuracies, seconds = results.of("accuracy", recipe=name), results.of("seconds", recipe=name)
        runs = [[*zip(*run, strict=True)] for run in zip(accuracies, seconds, strict=True)]
        reached = [next(at for value, at in run if value >= enough) for run in runs if max(run)[0] >= enough]
        rows[name] = {
            **{each: results.over(each, recipe=name) for each in ("TA", "RA", "RT AUC")},
            "seconds": statistic([each[-1] for each in seconds]),
            "seconds to the accuracy": statistic(reached),
        }
    series = {name: results.by_step("accuracy", recipe=name) for name in key}
    about = "Mean and standard deviation over the models."
    figure = curves("Test accuracy by epoch", about, series, key, "epoch", "% of the test set")
    return [Figures([figure], key=list(key.values())), table("recipes", "recipe", rows, PAPER)]


TRAINING_RECIPES = Experiment(
    "Training recipes: fast beside paper",
    "The fast recipe reaches the test accuracy of the paper's in a tenth of its epochs.",
    _cells,
    trained,
    _blocks,
)
