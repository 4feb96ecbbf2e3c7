"""The paper's experiments by name: every cell is measured once and kept, and a stopped run goes on."""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from amun_ext.deletion.request import warm_up
from amun_ext.distributed import by_first_rank, claimed, entered_by_first_rank
from amun_ext.experiments.cache import Cache
from amun_ext.experiments.estimate import estimate
from amun_ext.experiments.lab import Lab
from amun_ext.experiments.paper import (
    ablations,
    log_odds,
    recipes,
    requests,
    robust,
    theorem,
    transfer,
    unlearning,
    weak_attack,
    without_retain,
)
from amun_ext.experiments.results import Cell, Experiment, Results
from amun_ext.experiments.scales import SCALES, Scale
from amun_ext.files import atomic_folder, to_jsonable, workplace, write_json, write_text
from amun_ext.info import versions
from amun_ext.parallel import unfinished, workers
from amun_ext.progress import progress_bar
from amun_ext.reading import read_json
from amun_ext.report import Document, Result, parts
from amun_ext.report.figures import standalone
from amun_ext.validation import check_integer, require

# Of the paper's numbers, which are those of its arXiv version.
EXPERIMENTS: Mapping[str, Experiment] = {
    "table1": unlearning.TABLE1,
    "table2": unlearning.TABLE2,
    "table3": robust.TABLE3,
    "table4": robust.TABLE4,
    "table5": robust.TABLE5,
    "table6": transfer.TABLE6,
    "table7": weak_attack.TABLE7,
    "table8": unlearning.TABLE8,
    "table9": unlearning.TABLE9,
    "figure1": ablations.FIGURE1,
    "figure2": requests.FIGURE2,
    "figure3": log_odds.FIGURE3,
    "figure4": log_odds.FIGURE4,
    "figure5": ablations.FIGURE5,
    "figure6": requests.FIGURE6,
    "figure7": weak_attack.FIGURE7,
    "theorem41": theorem.THEOREM41,
    "without-retain": without_retain.WITHOUT_RETAIN,
    "recipes": recipes.TRAINING_RECIPES,
}


@dataclass(frozen=True, eq=False)
class Reproduction(Result):
    """The result of `reproduce`: cells, each of its arguments and values, and facts about them."""

    name: str
    cells: Sequence[tuple[Cell, Mapping[str, Any]]]
    facts: Mapping[str, Any]

    def document(self) -> Document:
        row = EXPERIMENTS[self.name]
        claim = parts.Paragraph(row.claim, "The claim.")
        return Document(
            row.title, [claim, *row.blocks(Results(self.cells, self.facts["data"])), parts.Facts(self.facts)]
        )

    def to_dict(self) -> dict[str, object]:
        cells = [{"cell": cell, "values": values} for cell, values in self.cells]
        return {"name": self.name, "facts": to_jsonable(self.facts), "cells": to_jsonable(cells)}

    @classmethod
    def read(cls, path: Path) -> "Reproduction":
        """What `write` wrote as JSON."""
        content = read_json(path, expected="a result of amun reproduce")
        known = isinstance(content, dict) and content.get("name") in EXPERIMENTS
        require(known, str(path), "a result of amun reproduce", "another file")
        return cls(content["name"], [(each["cell"], each["values"]) for each in content["cells"]], content["facts"])


def reproduce(
    name: str,
    scale: Scale | str = "small",
    *,
    out: Path,
    seeds: int | None = None,
    data_dir: Path | None = None,
    device: str = "cpu",
    num_workers: int = 1,
    progress: bool = False,
) -> Reproduction:
    """Measure every cell of an experiment, a name in EXPERIMENTS, that the cache in `out` does not have yet.

    scale: a name in SCALES, or one of your own. seeds: the number of models, by default the scale's. num_workers: cells
    to measure in parallel, one process each.
    """
    lab, cells = _begun(name, scale, out, seeds, data_dir, device, num_workers)
    lab = replace(lab, progress=progress)
    row, start = EXPERIMENTS[name], time.perf_counter()
    warm_up()
    with entered_by_first_rank(workplace(out, "reproduce")), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+ of \d+ forget samples")  # those without an adversarial example
        left = [cells[number] for number in unfinished([_path(row, lab, cell) for cell in cells])]
        if row.prepare is not None:
            for cell in progress_bar(progress, left, desc=f"{name}, shared", unit="cell"):
                row.prepare(lab, cell)
        jobs = ((number, (left[number],)) for number in claimed(range(len(left))))
        how = {"initial": len(cells) - len(left), "total": len(cells), "desc": name, "unit": "cell"}
        # a worker may not have workers, and the bars of several would be on one line
        alone = replace(lab, workers=1, progress=progress and num_workers == 1)
        with (
            workers(partial(_measured, name), alone, min(num_workers, max(1, len(left)))) as measured,
            progress_bar(progress, **how) as bar,
        ):
            for _ in measured(jobs):
                bar.update()
        values = by_first_rank(lambda: [_measured(name, lab, cell) for cell in cells])()
    facts = {
        "scale": scale if isinstance(scale, str) else "own",
        "models": lab.scale.repeats[0],
        "seconds_of_this_run": round(time.perf_counter() - start),
        **asdict(lab.scale),
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    return Reproduction(name, list(zip(cells, values, strict=True)), facts)


def plan(name: str, scale: Scale | str, *, seeds: int | None = None, device: str = "cpu") -> str:
    """What is to be done and how long it may take, from a batch that is timed; nothing else is done."""
    chosen = _scale(name, scale, seeds)
    row = EXPERIMENTS[name]
    cells = row.cells(chosen)
    models = {(cell["model"], cell.get("training")) for cell in cells if "model" in cell}
    retrained = sum(cell.get("method") == "retrain" for cell in cells)
    epochs = chosen.training.epochs
    took, hours = estimate(row, chosen, device)
    return (
        f"{name}: {len(cells)} cells, {len(models)} original and {retrained} retrained models of {epochs} epochs "
        f"({chosen.model}, {chosen.data}), up to {chosen.references} references for each kind of training, "
        f"{chosen.trials} trials for each method. Estimate: {hours:.1f} hours of training in one process on this "
        f"{device}, where a batch of {chosen.training.batch_size} takes {1000 * took:.0f} ms; "
        "searches and audits are extra"
    )


def write(result: Reproduction, folder: Path) -> None:
    """NAME.json, NAME.html and NAME-1.svg, NAME-2.svg, ... into `folder`."""
    document = result.document()
    drawn = [block for block in document.blocks if isinstance(block, parts.Figures)]
    figures = [(each, block.key) for block in drawn for each in block.figures]
    with workplace(folder, "reproduce") as place, atomic_folder(folder, place) as files:
        write_json(files / f"{result.name}.json", result.to_dict())
        result.to_html(files / f"{result.name}.html")
        for number, figure in enumerate(figures, 1):
            write_text(files / f"{result.name}-{number}.svg", standalone(*figure))


def _scale(name: str, scale: Scale | str, seeds: int | None) -> Scale:
    """That of an experiment, with another number of models than the scale's if `seeds` has one."""
    require(name in EXPERIMENTS, "experiment", f"one of {', '.join(EXPERIMENTS)}", repr(name))
    require(isinstance(scale, Scale) or scale in SCALES, "scale", f"one of {', '.join(SCALES)}", repr(scale))
    chosen = EXPERIMENTS[name].resized(scale if isinstance(scale, Scale) else SCALES[scale])
    return chosen.of_models(None if seeds is None else check_integer("seeds", seeds, 1))


def _begun(
    name: str,
    scale: Scale | str,
    out: Path,
    seeds: int | None,
    data_dir: Path | None,
    device: str,
    num_workers: int,
) -> tuple[Lab, list[Cell]]:
    chosen = _scale(name, scale, seeds)
    cache = Cache(out / "cache", out / "unfinished-reproduce")
    lab = Lab(chosen, cache, data_dir, device, check_integer("num_workers", num_workers, 1))
    return lab, EXPERIMENTS[name].cells(chosen)


def _measured(name: str, lab: Lab, cell: Cell) -> dict[str, Any]:
    measure = EXPERIMENTS[name].measure

    def make() -> dict[str, Any]:
        values = measure(lab, **cell)
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }

    return lab.cache.values(measure.__name__, _identity(lab, cell), make)


def _path(row: Experiment, lab: Lab, cell: Cell) -> Path:
    return lab.cache.path(row.measure.__name__, _identity(lab, cell))


def _identity(lab: Lab, cell: Cell) -> dict[str, object]:
    return {**lab.identity(), "scale": lab.scale.identity(), "cell": dict(cell)}
