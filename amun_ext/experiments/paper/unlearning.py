"""Tables 1 and 2, with RMIA, and 8 and 9, with MIS: all methods, with and without the retain set."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from amun_ext.deletion.request import ORIGINAL, RETRAIN
from amun_ext.experiments.comparison import NOOP, SETTINGS, statistic
from amun_ext.experiments.lab import PLAIN, Lab
from amun_ext.experiments.results import Cell, Experiment, Results, table
from amun_ext.experiments.scales import Scale
from amun_ext.report.parts import Block, Heading, Paragraph
from amun_ext.unlearning import METHODS

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
ROUNDING = 0.02  # points by which cells and gap of two decimals can be off together
ACCURACIES = ("UA", "RA", "TA")
Keys: TypeAlias = Mapping[tuple[str, float], str]  # data and size of the request -> a table in print
OTHERS = 3  # models at least, of which the last takes the examples of the first


def unlearned(
    lab: Lab,
    *,
    method: str,
    fraction: float,
    model: int,
    subset: int,
    run: int,
    retain: bool | None = None,
    training: str = PLAIN,
    examples: str | None = None,
    search: str | None = None,
) -> dict[str, Any]:
    """All measures of a model that has unlearned, of the original ("no-op") or of a retrained one.

    examples: "others" takes the adversarial examples of the next model, see OTHERS.
    """
    forgotten = lab.sets(model, subset, fraction)
    network, told = lab.original(model, training), {}
    if method == RETRAIN:
        network = lab.retrained(model, subset, run, fraction, training)
    elif method != NOOP:
        assert retain is not None
        config = lab.config(method, retain, fraction, training, search)
        adversarial = None
        if config.search is not None:
            source = model if examples is None else (model + 1) % max(OTHERS, lab.scale.repeats[0])
            adversarial = lab.examples(source, forgotten.forget, search, training)
            fooled = adversarial.to("cpu").transfer(network).fooled
            told = {"transferred": 100 * float(fooled.sum()) / len(fooled)}
        try:
            network = config.unlearn(network, forgotten.forget, forgotten.retain, adversarial=adversarial, seed=run)
        except FloatingPointError as error:
            return {"failed": str(error)}
    return {**told, **lab.measure(network, forgotten.ids.tolist(), lab.references(training))}


def prepare(lab: Lab, cell: Cell) -> None:
    lab.references(cell.get("training", PLAIN))
    if cell.get("retain") is not None:
        lab.tuned(cell["method"], cell["retain"], cell["fraction"], cell.get("search"))


def methods(retain: bool) -> list[str]:
    """Those that need nothing but a model and its data."""
    return [
        name for name, row in METHODS.items() if name != RETRAIN and not row.inputs and (retain or not row.needs_retain)
    ]


def title(method: str) -> str:
    return ORIGINAL if method == NOOP else METHODS[method].title


def gaps(results: Results, measure: str, baseline: Cell, **where: Any) -> list[float]:
    """Of each run to the means of the baseline's: the mean of four distances (paper, section 3.3)."""
    names = (*ACCURACIES, measure)
    fixed = {name: results.over(name, **baseline).mean for name in names}
    runs = zip(*(results.of(name, **where) for name in names), strict=True)
    return [sum(abs(at - fixed[name]) for name, at in zip(names, run, strict=True)) / len(names) for run in runs]


def variant_cells(scale: Scale, variants: Mapping[str, Cell], retain: Sequence[bool] = (True, False)) -> list[Cell]:
    """AMUN with each of some arguments, in both settings, and retraining."""
    cells: dict[str, Cell] = {}
    for fraction in scale.fractions:
        for draw in scale.draws:
            for extra in variants.values():
                common = {**draw, "fraction": fraction}
                rows = [{"method": RETRAIN, "training": extra.get("training")}]
                rows += [{"method": "amun", "retain": each, **extra} for each in retain]
                for row in rows:
                    cell = {name: value for name, value in {**common, **row}.items() if value is not None}
                    cells[repr(cell)] = cell
    return list(cells.values())


def variant_blocks(results: Results, variants: Mapping[str, Cell]) -> list[Block]:
    """A table for each setting and size of the request; a variant with a training of its own has its retraining."""
    blocks: list[Block] = []
    for retain in sorted({cell["retain"] for cell, _ in results.cells if "retain" in cell}, reverse=True):
        for fraction in results.each("fraction"):
            rows = {}
            for name, extra in variants.items():
                baseline = {"method": RETRAIN, "fraction": fraction, "training": extra.get("training")}
                where = {"method": "amun", "retain": retain, "fraction": fraction, **extra}
                for row, of in ((f"Retrain, {name}" if "training" in extra else "Retrain", baseline), (name, where)):
                    measures = {each: results.over(each, **of) for each in (*ACCURACIES, "FT AUC", "FR AUC")}
                    gap = statistic(gaps(results, "FT AUC", baseline, **of))
                    rows[row] = {**measures, "gap": gap, "transferred": results.over("transferred", **of)}
            heading = f"{SETTINGS['with' if retain else 'without']}, {fraction:.0%} forgotten"
            blocks += [Heading(heading), table(f"{'with' if retain else 'without'}-{fraction:g}", "model", rows)]
    return blocks


def published(name: str) -> dict[str, dict[str, float | bool]]:
    """Row -> the printed gap, that of the printed cells, and whether the one can follow from the other.

    A mean of distances is never less than the distance of the means.
    """
    rows = PUBLISHED[name]
    retrain = rows["Retrain"]
    return {
        row: {
            "printed": cells[4],
            "of cells": (computed := sum(abs(a - b) for a, b in zip(cells[:4], retrain[:4], strict=True)) / 4),
            "can follow": cells[4] >= computed - ROUNDING,
        }
        for row, cells in rows.items()
    }


def _cells(scale: Scale, retain: bool) -> list[Cell]:
    fixed: list[Cell] = [{"method": name} for name in (RETRAIN, NOOP)]
    rows = [*fixed, *({"method": name, "retain": retain} for name in methods(retain))]
    once = {"subset": 0, "run": 0}  # the original is one of them, whatever it is asked to forget
    return [
        {**draw, **row, "fraction": fraction}
        for fraction in scale.fractions
        for draw in scale.draws
        for row in rows
        if row["method"] != NOOP or once.items() <= draw.items()
    ]


def _blocks(results: Results, columns: Sequence[str], key: Keys) -> list[Block]:
    blocks: list[Block] = []
    for fraction in results.each("fraction"):
        rows = {}
        for method in results.each("method"):
            where = {"method": method, "fraction": fraction}
            measures = {name: results.over(name, **where) for name in (*ACCURACIES, *columns)}
            for name in columns:
                retrained = {"method": RETRAIN, "fraction": fraction}
                measures[f"gap, {name}"] = statistic(gaps(results, name, retrained, **where))
            rows[title(method)] = measures
        blocks += [
            Heading(f"{fraction:.0%} of the training set forgotten"),
            table(f"fraction-{fraction:g}", "method", rows, METHODS[RETRAIN].title),
        ]
        failed = [f"{title(cell['method'])}, model {cell['model']}" for cell, of in results.cells if "failed" in of]
        blocks += [Paragraph(f"Diverged: {', '.join(failed)}.")] if failed else []
        if (results.data, fraction) in key:
            blocks.append(Paragraph(_in_print(key[results.data, fraction]), soft=True))
    return blocks


def _in_print(name: str) -> str:
    """The published gaps, in a sentence."""
    rows = published(name)
    told = [
        f"{row} {of['of cells']:.2f}"
        + ("" if of["can follow"] else f" (printed {of['printed']:.2f}, which is less than its cells allow)")
        for row, of in rows.items()
    ]
    return f"The paper's gaps, computed from its cells: {', '.join(told)}."


def _experiment(number: int, retain: bool, columns: Sequence[str], keys: Keys, claim: str) -> Experiment:
    attack = "MIS" if "MIS" in columns else "RMIA"
    return Experiment(
        f"Table {number}: all methods {SETTINGS['with' if retain else 'without']}, {attack}",
        claim,
        partial(_cells, retain=retain),
        unlearned,
        partial(_blocks, columns=columns, key=keys),
        prepare,
    )


AUCS = ("FT AUC", "FT AUC, confidence")
CIFAR10, TINY = "cifar10", "tiny-imagenet"
TABLE1 = _experiment(
    1,
    True,
    AUCS,
    {(CIFAR10, 0.1): "T1_10", (CIFAR10, 0.5): "T1_50", (TINY, 0.1): "T4_10"},
    "With the retain set AMUN is closest to retraining of all methods.",
)
TABLE2 = _experiment(
    2,
    False,
    AUCS,
    {(CIFAR10, 0.1): "T2_10", (CIFAR10, 0.5): "T2_50", (TINY, 0.1): "T5_10"},
    "Without the retain set AMUN comes close to retraining.",
)
TABLE8 = _experiment(
    8,
    True,
    ("MIS",),
    {(CIFAR10, 0.1): "T10_10", (CIFAR10, 0.5): "T10_50"},
    "With the retain set AMUN has the smallest gap by MIS as well.",
)
TABLE9 = _experiment(
    9,
    False,
    ("MIS",),
    {(CIFAR10, 0.1): "T11_10", (CIFAR10, 0.5): "T11_50"},
    "Without the retain set AMUN has the smallest gap by MIS as well.",
)
