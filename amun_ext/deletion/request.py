"""A deletion request, whole: checkpoint, data and ids in; new checkpoint, report and record out."""

import json
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from amun_ext.checks import require
from amun_ext.data import Splits, copies, fingerprint
from amun_ext.deletion.ids import split
from amun_ext.evaluation import Report, evaluate
from amun_ext.info import versions
from amun_ext.models import save_checkpoint
from amun_ext.search import find_min_adversarial
from amun_ext.training import Recipe, reinitialised
from amun_ext.unlearning import unlearn

ORIGINAL, UNLEARNED, RETRAIN = "no-op (original)", "AMUN", "retrain"
RETRAIN_SEED = 1000  # added to the seed: from the original's own first weights a retrained model would start ahead


@dataclass(frozen=True)
class Request:
    """What is asked for. `metadata` is the checkpoint's: `forgotten` lists the ids of earlier requests."""

    ids: Tensor
    with_copies: bool
    with_retain: bool
    with_forget: bool
    retrain: bool
    search: str  # a method of find_min_adversarial
    recipe: Recipe
    seed: int
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    report: Report
    model: nn.Module
    metadata: dict[str, str]  # of the new checkpoint
    not_forgotten: list[int]  # ids without an adversarial example


def forget(
    original: nn.Module, splits: Splits, request: Request, *, examples: Path | None = None, progress: bool = False
) -> Outcome:
    """Unlearn `request.ids` with AMUN, beside all ids that the checkpoint has forgotten before, and measure it.

    `examples` is a file for the search, which goes on from it after a kill. It holds near copies of what is to be
    forgotten: the caller removes it when all is done.

    Samples of earlier requests are in no set any more: to retain them would bring them back. Raises InputError, before
    any work, for ids that are forgotten already, copies of forget samples under retained ids (unless `with_copies` adds
    them), training data other than the checkpoint's, too little to train on, and a model that cannot be retrained.
    """
    before = json.loads(request.metadata.get("forgotten", "[]"))
    print_of_data = fingerprint(splits.train)
    known = request.metadata.get("training_data", print_of_data)
    require(known == print_of_data, "data", "those that the checkpoint was trained on, in the same order", "others")
    again = sorted(set(before) & set(request.ids.tolist()))
    require(not again, "ids", "not forgotten by an earlier request", again[:5])
    ids = _with_copies(splits, request, before)
    forget_set, retain_set = split(splits.train, torch.cat([ids, torch.tensor(before, dtype=torch.int64)]))
    forget_set = type(forget_set)(*(tensor[: len(ids)] for tensor in forget_set.tensors))
    require(len(retain_set) >= 2, "ids", "such that two samples at least are left to retain", f"{len(retain_set)} left")
    trained_on = len(ids) * (1 + request.with_forget) + len(retain_set) * request.with_retain
    require(trained_on >= 2, "ids", "two at least when the retain and forget sets are left out", "one")
    if request.retrain:
        require("recipe" in request.metadata, "retrain", "used with a checkpoint that knows its recipe", "one without")
        reinitialised(original)  # refuses what cannot be

    seconds, models = {}, {ORIGINAL: original}
    start = time.perf_counter()
    adversarial = find_min_adversarial(
        original, *forget_set.tensors, method=request.search, out=examples, progress=progress
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+ of \d+ forget samples")  # `not_forgotten` has them by id
        models[UNLEARNED] = unlearn(
            original,
            forget_set,
            retain_set if request.with_retain else None,
            include_forget=request.with_forget,
            adversarial=adversarial,
            recipe=request.recipe,
            seed=request.seed,
            progress=progress,
        )
    seconds[UNLEARNED] = time.perf_counter() - start
    if request.retrain:
        start = time.perf_counter()
        models[RETRAIN] = unlearn(
            original,
            forget_set,
            retain_set,
            method="retrain",
            recipe=Recipe(**json.loads(request.metadata["recipe"])),
            seed=request.seed + RETRAIN_SEED,
            progress=progress,
        )
        seconds[RETRAIN] = time.perf_counter() - start

    not_forgotten = ids[~adversarial.found.cpu()].tolist()
    sets = {"D_R": request.with_retain, "D_F": request.with_forget, "D_A": True}
    report = evaluate(
        models,
        forget=forget_set,
        retain=retain_set,
        test=splits.test,
        seconds=seconds,
        baseline=RETRAIN if request.retrain else None,
        headline=UNLEARNED,
        adversarial=adversarial,
        classes=splits.classes,
        facts={
            "ids": ids.tolist(),
            "ids not forgotten": not_forgotten,
            "ids forgotten before": before,
            "training data": print_of_data,
            "search": request.search,
            "fine-tuned on": " + ".join(name for name, used in sets.items() if used),
            "seed": request.seed,
            "fine-tuning": asdict(request.recipe),
            "versions": versions(),
        },
    )
    forgotten = sorted({*before, *ids.tolist()} - set(not_forgotten))
    metadata = {**request.metadata, "training_data": print_of_data, "forgotten": json.dumps(forgotten)}
    return Outcome(report, models[UNLEARNED], metadata, not_forgotten)


def _with_copies(splits: Splits, request: Request, before: list[int]) -> Tensor:
    """The ids, with those of equal images under other ids added, or refused."""
    forget_set, others = split(splits.train, request.ids)
    wanted = set(request.ids.tolist())
    kept = [number for number in range(len(splits.train)) if number not in wanted]
    pairs = [(int(request.ids[row]), kept[other]) for row, other in copies(forget_set, others)]
    pairs = [(asked, copy) for asked, copy in pairs if copy not in before]
    told = ", ".join(f"{asked} has a copy {copy}" for asked, copy in pairs[:10])
    must_be = "complete (--with-copies adds what is missing): a copy would go on being trained on"
    require(request.with_copies or not pairs, "ids", must_be, told)
    return torch.cat([request.ids, torch.tensor(sorted({copy for _, copy in pairs}), dtype=torch.int64)])


def write(outcome: Outcome, folder: Path) -> None:
    """model.safetensors, report.json and report.html, all three or none, into `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        save_checkpoint(Path(made) / "model.safetensors", outcome.model, outcome.metadata)
        outcome.report.to_json(Path(made) / "report.json")
        outcome.report.to_html(Path(made) / "report.html")
        folder.mkdir(exist_ok=True)
        for path in sorted(Path(made).iterdir()):
            os.replace(path, folder / path.name)
