"""Figures 2 and 6: several requests in a row, each unlearned by the model that the last one left."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from amun_ext.deletion import Record, forget_ids
from amun_ext.deletion.request import RETRAIN, RETRAIN_SEED, sets
from amun_ext.experiments.comparison import SETTINGS
from amun_ext.experiments.lab import Lab
from amun_ext.experiments.paper.unlearning import methods, title
from amun_ext.experiments.results import Cell, Experiment, Results, curves, marks, table
from amun_ext.experiments.scales import Scale
from amun_ext.report.parts import Block, Figures, Heading
from amun_ext.search import find_min_adversarial
from amun_ext.unlearning.config import resolve_config

ADAPTIVE = "AMUN-A"  # examples of the model as it is, where AMUN has those of the original
GAP = "FR AUC - FT AUC"


def unlearned_in_turn(
    lab: Lab, *, method: str, retain: bool | None = None, model: int, subset: int, run: int
) -> dict[str, Any]:
    """All measures after each of the requests, as lists, on everything forgotten so far.

    Options are those of a request of the scale's smallest fraction, as in the paper.
    """
    scale, network, before = lab.scale, lab.original(model), list[int]()
    drawn = forget_ids(len(lab.splits.train), fraction=scale.request * scale.requests, seed=100 * model + subset)
    references, steps = lab.references(), []
    for ids in drawn.chunk(scale.requests):
        left = [number for number in ids.tolist() if number not in before]  # a copy of an earlier one is gone
        now = sets(lab.splits, drawn.new_tensor(left), Record(forgotten=tuple(before)), include_duplicates=True)
        before += now.ids.tolist()
        if method == RETRAIN:
            config, seed = resolve_config(RETRAIN, default={"recipe": lab.recipe()}), RETRAIN_SEED + run
        else:
            config, seed = lab.config(_plain(method), bool(retain), min(scale.fractions)), run
        adversarial = None
        if config.search is not None:
            of_original = method != ADAPTIVE
            adversarial = (
                lab.examples(model, now.forget)
                if of_original
                else find_min_adversarial(network, now.forget, method=scale.search)
            )
        try:
            network = config.unlearn(network, now.forget, now.retain, adversarial=adversarial, seed=seed)
        except FloatingPointError as error:
            return {"failed": str(error)}
        steps.append(lab.measure(network, before, references))
    lists = {name: [step[name] for step in steps] for name in ("UA", "RA", "TA", "FT AUC", "FR AUC")}
    return {**lists, GAP: [step["FR AUC"] - step["FT AUC"] for step in steps]}


def prepare(lab: Lab, cell: Cell) -> None:
    lab.references()
    if "retain" in cell:
        lab.tuned(_plain(cell["method"]), cell["retain"], min(lab.scale.fractions))


def _plain(method: str) -> str:
    return "amun" if method == ADAPTIVE else method


def _cells(scale: Scale) -> list[Cell]:
    rows: list[Cell] = [{"method": RETRAIN}]
    rows += [{"method": name, "retain": retain} for retain in (True, False) for name in (*methods(retain), ADAPTIVE)]
    return [{**draw, **row} for draw in scale.draws for row in rows]


def _blocks(results: Results, names: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    for retain in (True, False):
        rows = [RETRAIN, ADAPTIVE, *methods(retain)]
        wheres = {
            ADAPTIVE if row == ADAPTIVE else title(row): {"method": row, "retain": None if row == RETRAIN else retain}
            for row in rows
        }
        key = marks(list(wheres))
        heading = SETTINGS["with" if retain else "without"]
        figures = [
            curves(
                f"{name}, {heading}",
                "After each request; mean and standard deviation over the runs.",
                {row: results.by_step(name, **where) for row, where in wheres.items()},
                key,
                "request",
                name,
            )
            for name in names
        ]
        blocks += [Heading(heading), Figures(figures, key=list(key.values()))]
        for name in names:
            steps = {row: results.by_step(name, **where) for row, where in wheres.items()}
            by_request = {row: {str(at): of for at, of in enumerate(each, 1)} for row, each in steps.items() if each}
            blocks.append(table(f"{name} {heading}", f"{name} after request", by_request))
    return blocks


def _experiment(number: int, about: str, names: Sequence[str], claim: str) -> Experiment:
    return Experiment(
        f"Figure {number}: several requests in a row, {about}",
        claim,
        _cells,
        unlearned_in_turn,
        partial(_blocks, names=names),
        prepare,
    )


FIGURE2 = _experiment(
    2,
    "AUCs",
    (GAP,),
    "Over requests in a row AMUN with new adversarial examples for each is ahead of all methods, AMUN with those of "
    "the original model next, with and without the retain set; the effect falls with the number of requests.",
)
FIGURE6 = _experiment(
    6,
    "accuracies",
    ("RA", "TA"),
    "Without the retain set accuracy falls with every request, on the retained and on the test images.",
)
