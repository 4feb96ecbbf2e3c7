"""Figures 1 and 5: fine-tuning on D_A or what stands in for it; the test accuracy after every epoch."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from amun_ext.data.images import subset as rows_of
from amun_ext.experiments.comparison import statistic
from amun_ext.experiments.lab import Lab
from amun_ext.experiments.results import Cell, Experiment, Results, curves, marks, table
from amun_ext.experiments.scales import Scale
from amun_ext.models.reinitialise import deep_copy
from amun_ext.report.parts import Block, Figures
from amun_ext.training import DataPart, Pass, RunOptions, fit
from amun_ext.unlearning.ablations import ABLATIONS, RECIPE, ablation_set

SETTINGS = ("D with D_A", "D_F with D_A", "D_A alone")  # the sub-figures, from left to right


def fine_tuned(
    lab: Lab, *, curve: str, setting: str, fraction: float, model: int, subset: int, run: int
) -> dict[str, Any]:
    """The test accuracy before and after every epoch on the set of one curve, beside what the setting adds to it."""
    forgotten, network = lab.sets(model, subset, fraction), deep_copy(lab.original(model))
    examples, seed = lab.examples(model, forgotten.forget), 1000 * run
    make = partial(ablation_set, curve, forgotten.forget, examples, num_classes=len(lab.splits.classes))
    stand_in = make(seed=seed)
    parts = [DataPart(stand_in, labels=lambda epoch: make(seed=seed + epoch).tensors[1], augment=False)]
    parts += [DataPart(forgotten.forget)] if setting != SETTINGS[2] else []
    parts += [DataPart(forgotten.retain)] if setting == SETTINGS[0] else []
    ours = lab.recipe()
    recipe = replace(RECIPE, epochs=lab.scale.ablation_epochs, batch_size=ours.batch_size, augment=ours.augment)
    before = lab.in_gap(network, forgotten.ids.tolist())["TA"]
    test = rows_of(lab.splits.test, lab.test)
    epochs = fit(network, [Pass(parts)], recipe, RunOptions(seed=run, eval_sets={"test": test}))
    after = lab.in_gap(network, forgotten.ids.tolist())
    return {"TA": [before, *(epoch.accuracy["test"] for epoch in epochs)], "UA": after["UA"], "RA": after["RA"]}


def _cells(scale: Scale, fraction: float) -> list[Cell]:
    return [
        {"curve": curve, "setting": setting, "fraction": fraction, **draw}
        for draw in scale.draws
        for setting in SETTINGS
        for curve in ABLATIONS
    ]


def _blocks(results: Results) -> Sequence[Block]:
    names = results.each("curve")
    key, figures, tables = marks(names), [], []
    for setting in results.each("setting"):
        series = {curve: results.by_step("TA", curve=curve, setting=setting) for curve in names}
        about = "Mean and standard deviation over the runs; epoch 0 is the original model."
        figures.append(curves(setting, about, series, key, "epoch", "TA: % of the test set", first=0))
        rows = {}
        for curve in names:
            where = {"curve": curve, "setting": setting}
            lost = [run[0] - run[-1] for run in results.of("TA", **where)]
            last = [run[-1] for run in results.of("TA", **where)]
            accuracies = {name: results.over(name, **where) for name in ("UA", "RA")}
            rows[curve] = {"TA": statistic(last), "TA lost": statistic(lost), **accuracies}
        tables.append(table(setting, setting, rows, marked=names[0]))
    return [Figures(figures, key=list(key.values())), *tables]


def _experiment(number: int, fraction: float) -> Experiment:
    return Experiment(
        f"Figure {number}: fine-tuning on D_A and what stands in for it, {fraction:.0%} forgotten",
        "Fine-tuning on adversarial examples with their wrong labels barely costs test accuracy, even on them alone; "
        "other inputs or other wrong labels cost much.",
        partial(_cells, fraction=fraction),
        fine_tuned,
        _blocks,
    )


FIGURE1, FIGURE5 = _experiment(1, 0.1), _experiment(5, 0.5)
