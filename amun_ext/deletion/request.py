"""A deletion request, whole: checkpoint, data and ids in; new checkpoint, report and record out."""

import json
import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.checks import require
from amun_ext.data import Splits, aligned, copies, training_data, without
from amun_ext.deletion.ids import split
from amun_ext.digest import digest
from amun_ext.evaluation import Report, evaluate
from amun_ext.files import all_or_none, plain, workplace
from amun_ext.info import versions
from amun_ext.models import save_checkpoint
from amun_ext.models.fresh import Init, check_init, described
from amun_ext.saliency import load_mask, saliency_mask, save_mask
from amun_ext.search import find_min_adversarial
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.plan import Plan, plan

ORIGINAL, RETRAIN = "no-op (original)", "retrain"
RETRAIN_SEED = 1000  # added to the seed: from the original's own first weights a retrained model would start ahead
# What a request keeps while it works, for the same one to go on after a kill. All of it knows what is to be forgotten.
EXAMPLES, MASKS = "examples.safetensors", "mask-*.safetensors"
TUNING, TRAINING = "fine-tuning.safetensors", "retraining.safetensors"

Mask = dict[str, Tensor]


@dataclass(frozen=True)
class Request:
    """What is asked for. `metadata` is the checkpoint's: `forgotten` lists the ids of earlier requests."""

    ids: Tensor
    with_copies: bool
    plan: Plan
    retrain: bool
    seed: int
    metadata: Mapping[str, str]
    init: Init = None  # of retraining


@dataclass(frozen=True)
class Sets:
    """The training data of a request. Samples of earlier ones are in neither: to retain them would bring them back."""

    ids: Tensor  # of the forget set, in its order
    before: list[int]  # ids of earlier requests
    forget: TensorDataset
    retain: TensorDataset
    training_data: str  # their fingerprint


@dataclass(frozen=True)
class Outcome:
    report: Report
    model: nn.Module
    metadata: dict[str, str]  # of the new checkpoint
    not_forgotten: list[int]  # ids without an adversarial example
    place: Path | None  # what was kept while it worked


def sets(splits: Splits, ids: Tensor, metadata: Mapping[str, str], *, with_copies: bool = False) -> Sets:
    """What is to be forgotten by the checkpoint with this `metadata`, and what is left.

    InputError for ids that are forgotten already, copies of forget samples under retained ids (unless `with_copies`
    adds them), training data other than the checkpoint's, and too little that is left.
    """
    splits = aligned(splits, metadata)
    before = json.loads(metadata.get("forgotten", "[]"))
    print_of_data = training_data(splits)
    known = metadata.get("training_data", print_of_data)
    require(known == print_of_data, "data", "those that the checkpoint was trained on, in the same order", "others")
    again = sorted(set(before) & set(ids.tolist()))
    require(not again, "ids", "not forgotten by an earlier request", again[:5])
    ids = _with_copies(splits, ids, before, with_copies)
    forget_set, retain_set = split(splits.train, torch.cat([ids, torch.tensor(before, dtype=torch.int64)]))
    forget_set = TensorDataset(*(tensor[: len(ids)] for tensor in forget_set.tensors))
    require(len(retain_set) >= 2, "ids", "such that two samples at least are left to retain", f"{len(retain_set)} left")
    return Sets(ids, before, forget_set, retain_set, print_of_data)


def retraining(
    original: nn.Module,
    metadata: Mapping[str, str],
    recipe: Mapping[str, object] | None = None,
    init: Init = None,
) -> Plan:
    """To train anew as the checkpoint says that it was trained, but for single fields of the `recipe`.

    init: where first weights come from, see `amun_ext.unlearning.retrain.retrain`.
    InputError where the checkpoint does not say how, or began with other weights, and for a model that cannot be given
    those of an untrained one.
    """
    known = {**json.loads(metadata.get("recipe", "{}")), **(recipe or {})}
    enough = {"epochs", "lr"} <= known.keys()
    require(enough, "retraining", "of a checkpoint that knows its recipe, or told epochs and lr", "one without")
    began, given = metadata.get("init"), described(init)
    require(began in (None, given), "init", f"what the checkpoint's training began with, {began}", given or "none")
    check_init(original, init)
    return replace(plan("retrain", default={"recipe": Recipe(**known), "init": init}), source="the checkpoint")


def forget(
    original: nn.Module,
    splits: Splits,
    request: Request,
    *,
    folder: Path | None = None,
    facts: Mapping[str, object] | None = None,
    progress: bool = False,
) -> Outcome:
    """Unlearn `request.ids` beside all ids that the checkpoint has forgotten before, and measure it.

    In a folder of its own in `folder` it keeps its examples, mask and fine-tuning, from which the same request goes on
    after a kill; `write` removes it. `facts` are further ones for the report. Raises InputError, before any work, as
    `sets` and `retraining`, for too little to train on, and where that folder is another's.
    """
    splits = aligned(splits, request.metadata)
    chosen, asked = request.plan, sets(splits, request.ids, request.metadata, with_copies=request.with_copies)
    if chosen.search is not None:
        trained_on = len(asked.ids) * (1 + chosen.options["include_forget"]) + len(asked.retain) * chosen.with_retain
        require(trained_on >= 2, "ids", "two at least when the retain and forget sets are left out", "one")
    anew = retraining(original, request.metadata, init=request.init) if request.retrain else None
    row = RETRAIN if chosen.method == "retrain" else METHODS[chosen.method].title
    seed = request.seed + RETRAIN_SEED if row == RETRAIN else request.seed
    seconds, models = {}, {ORIGINAL: original}
    place = None if folder is None else workplace(folder, "forget")
    warm_up()
    examples, tuning, training = (None if place is None else place / name for name in (EXAMPLES, TUNING, TRAINING))

    fresh, start = not _kept(place, EXAMPLES, MASKS, TUNING), time.perf_counter()
    adversarial = None
    if chosen.search is not None:
        told = {**chosen.search, "out": examples, "progress": progress}
        adversarial = find_min_adversarial(original, *asked.forget.tensors, **told)
    mask = None if chosen.mask is None else _mask(original, asked.forget, chosen.mask, place, progress)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+ of \d+ forget samples")  # `not_forgotten` has them by id
        models[row] = chosen.unlearn(
            original,
            asked.forget,
            asked.retain,
            adversarial=adversarial,
            mask=mask,
            seed=seed,
            checkpoint=tuning,
            progress=progress,
        )
    if fresh:  # else an earlier try has done a part of it
        seconds[row] = time.perf_counter() - start
    if anew is not None:
        fresh, start = not _kept(place, TRAINING), time.perf_counter()
        models[RETRAIN] = anew.unlearn(
            original,
            asked.forget,
            asked.retain,
            seed=request.seed + RETRAIN_SEED,
            checkpoint=training,
            progress=progress,
        )
        if fresh:
            seconds[RETRAIN] = time.perf_counter() - start

    not_forgotten = [] if adversarial is None else asked.ids[~adversarial.found.cpu()].tolist()
    report = evaluate(
        models,
        forget=asked.forget,
        retain=asked.retain,
        test=splits.test,
        seconds=seconds,
        baseline=RETRAIN if RETRAIN in models else None,
        headline=row,
        adversarial=adversarial,
        classes=splits.classes,
        facts={
            "ids": asked.ids.tolist(),
            "ids not forgotten": not_forgotten,
            "ids forgotten before": asked.before,
            "training data": asked.training_data,
            **(facts or {}),
            **_told(chosen),
            "seed": request.seed,
            "versions": versions(),
        },
    )
    forgotten = sorted({*asked.before, *asked.ids.tolist()} - set(not_forgotten))
    told = without(request.metadata, splits.absent)
    known = {name: value for name, value in told.items() if name != "seconds"}
    metadata = {**known, "training_data": asked.training_data, "forgotten": json.dumps(forgotten)}
    metadata["unlearning"] = json.dumps(plain(chosen.to_dict()))
    if row in seconds:
        metadata["seconds"] = f"{seconds[row]:.3f}"
    return Outcome(report, models[row], metadata, not_forgotten, place)


def warm_up() -> None:
    """The first optimiser of a process takes seconds, in which torch imports its compiler: they are no method's."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)


def _told(chosen: Plan) -> dict[str, object]:
    """The facts about a plan."""
    sets = {"D_R": chosen.with_retain, "D_F": chosen.options.get("include_forget"), "D_A": True}
    trained_on = {"fine-tuned on": " + ".join(name for name, used in sets.items() if used)}
    return {
        **chosen.to_dict(),
        **(trained_on if chosen.search is not None else {}),
        "options from": chosen.source,
    }


def _mask(model: nn.Module, forget_set: TensorDataset, keep: float, place: Path | None, progress: bool) -> Mask:
    """Kept in a file of its own: gradients of a GPU may differ from one try to the next, and the mask with them."""
    tensors = {**model.state_dict(), **dict(zip(("images", "labels"), forget_set.tensors, strict=True))}
    path = None if place is None else place / MASKS.replace("*", f"{keep}-{digest(tensors)}")
    if path is not None and path.exists():
        return load_mask(path, model)
    mask = saliency_mask(model, forget_set, keep, progress=progress)
    if path is not None:
        save_mask(path, mask)
    return mask


def _kept(place: Path | None, *names: str) -> bool:
    """Whether an earlier try has left some of these, be it half-written."""
    patterns = [pattern for name in names for pattern in (f"{name}*", f".{name}.*")]
    return place is not None and any(path for pattern in patterns for path in place.glob(pattern))


def _with_copies(splits: Splits, ids: Tensor, before: list[int], with_copies: bool) -> Tensor:
    """The ids, with those of equal images under other ids added, or refused."""
    forget_set, others = split(splits.train, ids)
    wanted = set(ids.tolist())
    kept = [number for number in range(len(splits.train)) if number not in wanted]
    pairs = [(int(ids[row]), kept[other]) for row, other in copies(forget_set, others)]
    pairs = [(asked, copy) for asked, copy in pairs if copy not in before]
    told = ", ".join(f"{asked} has a copy {copy}" for asked, copy in pairs[:10])
    must_be = "complete (--with-copies adds what is missing): a copy would go on being trained on"
    require(with_copies or not pairs, "ids", must_be, told)
    return torch.cat([ids, torch.tensor(sorted({copy for _, copy in pairs}), dtype=torch.int64)])


def write(outcome: Outcome, folder: Path, *, with_images: bool = False) -> None:
    """model.safetensors, report.json and report.html, all three or none, into `folder`, without what was kept there."""
    with all_or_none(folder) as made:
        save_checkpoint(made / "model.safetensors", outcome.model, outcome.metadata)
        outcome.report.to_json(made / "report.json")
        outcome.report.to_html(made / "report.html", with_images=with_images)
    if outcome.place is not None:
        shutil.rmtree(outcome.place)
