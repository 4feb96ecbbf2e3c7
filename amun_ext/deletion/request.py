"""A deletion request: from checkpoint, data and ids to the new checkpoint, report and record."""

import contextlib
import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.data import Splits, aligned, find_duplicates, find_near_copies, fingerprint, training_data, without
from amun_ext.data.images import subset
from amun_ext.deletion import drift, ledger, unfamiliar
from amun_ext.deletion.checkpoint_record import Record
from amun_ext.deletion.ids import forget_ids, split
from amun_ext.deletion.keys import check_not_forgotten, keys_of
from amun_ext.digest import digest
from amun_ext.distributed import by_first_rank
from amun_ext.evaluation import Report, evaluate
from amun_ext.files import to_jsonable
from amun_ext.info import versions
from amun_ext.models.reinitialise import Init, check_init, describe_init
from amun_ext.saliency import load_mask, saliency_mask, save_mask
from amun_ext.search import find_min_adversarial
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.config import MethodConfig, resolve_config
from amun_ext.validation import listed, require

ORIGINAL, RETRAIN = "no-op (original)", "retrain"
RETRAIN_SEED = 1000  # added to the seed, so that retraining does not start from the initial weights of the original
# Files of a running request, to resume it after a kill. They contain what is to be forgotten.
EXAMPLES, MASKS = "examples.safetensors", "mask-*.safetensors"
TUNING, TRAINING = "fine-tuning.safetensors", "retraining.safetensors"

Mask = dict[str, Tensor]


@dataclass(frozen=True)
class Request:
    """What is asked for. `record` is the checkpoint's, and knows the ids of earlier requests."""

    ids: Tensor
    include_duplicates: bool
    config: MethodConfig
    retrain: bool
    seed: int
    record: Record
    init: Init = None  # of retraining
    duplicate_distance: float | None = None  # below which images are near copies, see `find_near_copies`

    def digest(self, model: str, splits: Splits) -> str:
        """What tells it from any other: all that is asked for, of the `model` with this digest and these data."""
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        options |= {
            "ids": sorted(self.ids.tolist()),
            "config": self.config.to_dict(),
            "record": model,
            "init": describe_init(self.init),
        }
        text = json.dumps([to_jsonable(options), training_data(splits), fingerprint(splits.test)], sort_keys=True)
        return digest({}, text)

    def sets(self, splits: Splits) -> "Sets":
        """As `sets` makes them for this request."""
        return sets(
            splits,
            self.ids,
            self.record,
            include_duplicates=self.include_duplicates,
            duplicate_distance=self.duplicate_distance,
        )


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
    keys: dict[int, str]  # id -> key of the samples that it has forgotten: names of files, or row numbers
    ids_without_example: list[int]  # ids without an adversarial example
    seconds: float | None  # that it took; None where an earlier try did a part
    stages: Mapping[str, float]  # seconds of this try


def sets(
    splits: Splits,
    ids: Tensor,
    record: Record,
    *,
    include_duplicates: bool = False,
    duplicate_distance: float | None = None,
) -> Sets:
    """What is to be forgotten by the checkpoint with this `record`, and what is left.

    InputError for ids that are forgotten already, copies of forget samples under retained ids (unless
    `include_duplicates` adds them), identical or nearly so (`duplicate_distance`: see `find_near_copies`), training
    data other than the checkpoint's, and too little that is left.
    """
    splits = aligned(splits, record.to_metadata())
    ids, before = forget_ids(len(splits.train), ids=ids), [*record.forgotten_ids]
    print_of_data = training_data(splits)
    same = record.training_data in (None, print_of_data)
    require(same, "data", "those that the checkpoint was trained on, in the same order", "other data")
    check_not_forgotten(ids.tolist(), before, keys_of(len(splits.train), splits.names))
    ids = _with_duplicates(splits, ids, before, include_duplicates, duplicate_distance)
    forget_set, retain_set = split(
        splits.train, torch.cat([ids, torch.tensor(before, dtype=torch.int64, device="cpu")])
    )
    forget_set = subset(forget_set, slice(len(ids)))
    require(len(retain_set) >= 2, "ids", "few enough that at least two samples are retained", f"{len(retain_set)} left")
    return Sets(ids, before, forget_set, retain_set, print_of_data)


def retraining(
    original: nn.Module, record: Record, recipe: Mapping[str, object] | None = None, init: Init = None
) -> MethodConfig:
    """To train anew as the checkpoint says that it was trained, but for single fields of the `recipe`.

    init: where first weights come from, see `amun_ext.unlearning.retrain.retrain`.
    InputError where the checkpoint does not say how, or began with other weights, and for a model that cannot be given
    those of an untrained one.
    """
    chosen = {**({} if record.recipe is None else asdict(record.recipe)), **(recipe or {})}
    complete = {"epochs", "lr"} <= chosen.keys()
    require(complete, "retraining", "of a checkpoint with a recipe, or with epochs and lr given", "neither")
    given = describe_init(init)
    expected = f"the initial weights of the checkpoint's training, {record.init} (on the command line --init)"
    require(record.init in (None, given), "init", expected, given or "none")
    check_init(original, init)
    return replace(
        resolve_config("retrain", default={"recipe": Recipe(**chosen), "init": init}), source="the checkpoint"
    )


def forget(
    original: nn.Module,
    splits: Splits,
    request: Request,
    *,
    place: Path | None = None,
    history: Sequence[ledger.Entry] = (),
    facts: Mapping[str, object] | None = None,
    progress: bool = False,
) -> Outcome:
    """Unlearn `request.ids`, without the ids that the checkpoint has forgotten before, and measure the result.

    The workplace `place` keeps examples, mask and fine-tuning, so that the same request resumes after a kill. `history`
    is the ledger of the checkpoint, for remarks on drift over its requests; `facts` are added to those of the report.
    Raises InputError, before any work, as `sets` and `retraining`, and for too little to train on.
    """
    splits = aligned(splits, request.record.to_metadata())
    chosen = request.config
    request_sets = request.sets(splits)
    if chosen.search is not None:
        trained_on = (
            len(request_sets.ids) * (1 + chosen.options["include_forget"])
            + len(request_sets.retain) * chosen.with_retain
        )
        require(trained_on >= 2, "ids", "at least two when neither the retain nor the forget set is trained on", "one")
    from_scratch = retraining(original, request.record, init=request.init) if request.retrain else None
    row = RETRAIN if chosen.method == "retrain" else METHODS[chosen.method].title
    seed = request.seed + RETRAIN_SEED if row == RETRAIN else request.seed
    seconds, models = {}, {ORIGINAL: original}
    stages: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        stages[name] = time.perf_counter() - start

    warm_up()
    examples, tuning, training = (None if place is None else place / name for name in (EXAMPLES, TUNING, TRAINING))

    fresh = not _kept(place, EXAMPLES, MASKS, TUNING)
    adversarial = None
    if chosen.search is not None:
        how = {**chosen.search, "out": examples, "progress": progress}
        with stage("search"):
            adversarial = find_min_adversarial(original, request_sets.forget, **how)
    mask = None
    if chosen.mask is not None:
        with stage("mask"):
            mask = by_first_rank(_mask)(original, request_sets.forget, chosen.mask, place, progress)
    with stage("unlearning"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+ of \d+ forget samples")  # `ids_without_example` has them by id
        models[row] = chosen.unlearn(
            original,
            request_sets.forget,
            request_sets.retain,
            adversarial=adversarial,
            mask=mask,
            seed=seed,
            checkpoint=tuning if METHODS[chosen.method].trains else None,
            progress=progress,
        )
    if fresh:  # else an earlier try has done a part of it
        seconds[row] = sum(stages.values())
    if from_scratch is not None:
        fresh = not _kept(place, TRAINING)
        with stage("retraining"):
            models[RETRAIN] = from_scratch.unlearn(
                original,
                request_sets.forget,
                request_sets.retain,
                seed=request.seed + RETRAIN_SEED,
                checkpoint=training,
                progress=progress,
            )
        if fresh:
            seconds[RETRAIN] = stages["retraining"]

    ids_without_example = [] if adversarial is None else request_sets.ids[~adversarial.found.cpu()].tolist()
    start = time.perf_counter()
    report = evaluate(
        models,
        forget=request_sets.forget,
        retain=request_sets.retain,
        test=splits.test,
        seconds=seconds,
        baseline=RETRAIN if RETRAIN in models else None,
        highlight=row,
        adversarial=adversarial,
        classes=splits.classes,
        facts={
            "ids": request_sets.ids.tolist(),
            "ids_without_example": ids_without_example,
            "previously_forgotten_ids": request_sets.before,
            "training_data": request_sets.training_data,
            **(facts or {}),
            **_told(chosen),
            "seed": request.seed,
            "versions": versions(),
        },
    )
    erased = {*splits.absent}
    earlier = torch.tensor(
        [number for number in request_sets.before if number not in erased], dtype=torch.int64, device="cpu"
    )
    relapsed = None
    if len(earlier):
        relapsed = drift.relapse(original, models[row], subset(splits.train, earlier), splits.test)
    if request_sets.before:
        drifted = "not measured: their images are erased" if relapsed is None else relapsed
        report = replace(report, facts={**report.facts, "earlier_requests": drifted})
    remarks = drift.remarks(relapsed, history, report.rows[row]["TA"], ORIGINAL)
    report = replace(report, remarks=[*report.remarks, *unfamiliar_samples(original, splits, request_sets), *remarks])
    stages["measuring"] = time.perf_counter() - start
    missing = set(ids_without_example)
    done = [number for number in request_sets.ids.tolist() if number not in missing]
    record = replace(
        request.record,
        training_data=request_sets.training_data,
        forgotten=tuple(sorted({*request_sets.before, *done})),
        unlearning=chosen.to_dict(),
        teachers=_teachers(request) or None,
        manifest=without(request.record.manifest, splits.absent),
        seconds=None,  # times are in the report, so that equal requests give equal models
    )
    known_as = keys_of(len(splits.train), splits.names)
    keys = {number: known_as[number] for number in done}
    return Outcome(report, models[row], record.to_metadata(), keys, ids_without_example, seconds.get(row), stages)


def unfamiliar_samples(original: nn.Module, splits: Splits, request_sets: Sets) -> list[str]:
    """A remark on samples of the request that `original` does not look as if it was trained on."""
    rows, error = unfamiliar.unfamiliar(original, request_sets.forget, splits.test)
    keys = keys_of(len(splits.train), splits.names)
    return unfamiliar.remarks([keys[number] for number in request_sets.ids[rows].tolist()], error)


def warm_up() -> None:
    """The first optimiser of a process takes seconds, in which torch imports its compiler: they are no method's."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True, device="cpu")], lr=0.0)


def _teachers(request: Request) -> tuple[str, ...]:
    """Digests of the reference models that gave targets of this request or, unless the model is a new one, earlier."""
    before = () if request.config.method == "retrain" else request.record.teachers or ()
    targets = request.config.targets
    return (*dict.fromkeys((*before, *(() if targets is None else targets.teachers))),)


def _told(chosen: MethodConfig) -> dict[str, object]:
    """The facts about a config."""
    sets = {"D_R": chosen.with_retain, "D_F": chosen.options.get("include_forget"), "D_A": True}
    trained_on = {"fine_tuned_on": " + ".join(name for name, used in sets.items() if used)}
    return {
        **chosen.to_dict(),
        **(trained_on if chosen.search is not None else {}),
        "options_source": chosen.source,
    }


def _mask(model: nn.Module, forget_set: TensorDataset, keep: float, place: Path | None, progress: bool) -> Mask:
    """Kept in a file of its own: gradients of a GPU may differ from one try to the next, and the mask with them."""
    known_by = digest(model.state_dict(), fingerprint(forget_set))
    path = None if place is None else place / MASKS.replace("*", f"{keep}-{known_by}")
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


def _with_duplicates(
    splits: Splits, ids: Tensor, before: list[int], include_duplicates: bool, distance: float | None
) -> Tensor:
    """The ids, with those of identical and nearly identical images under other ids added, or refused."""
    known, known_as = {*before, *ids.tolist()}, keys_of(len(splits.train), splits.names)
    near = {
        (row, other): f"at a distance of {apart:.2g}"
        for row, other, apart in find_near_copies(splits.train, ids, distance)
    }
    same = {
        (int(ids[at]), other): "identical" for at, other in find_duplicates(subset(splits.train, ids), splits.train)
    }
    copies = {pair: told for pair, told in {**near, **same}.items() if pair[1] not in known}
    told = listed([f"{known_as[row]} has a copy {known_as[other]}, {how}" for (row, other), how in copies.items()])
    expected = "without copies under other ids, which stay in the training set (--include-duplicates adds them)"
    require(include_duplicates or not copies, "ids", expected, told)
    added = sorted({other for _, other in copies})
    return torch.cat([ids, torch.tensor(added, dtype=torch.int64, device="cpu")])
