"""Compare unlearning methods on one request over several seeds, one cell of a table at a time."""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import amun_ext
from amun_ext.data import fingerprint
from amun_ext.deletion.request import ORIGINAL, RETRAIN, RETRAIN_SEED, Sets, warm_up
from amun_ext.digest import digest
from amun_ext.distributed import claimed, entered_by_first_rank, exchange
from amun_ext.evaluation import evaluate
from amun_ext.experiments.cache import Cache
from amun_ext.experiments.comparison import NOOP, Comparison, RunResult, TableRow
from amun_ext.files import atomic_folder, no_link, workplace, write_json
from amun_ext.info import versions
from amun_ext.metrics.measures import Values
from amun_ext.parallel import workers
from amun_ext.progress import progress_bar
from amun_ext.search import AdversarialSet, find_min_adversarial
from amun_ext.unlearning import METHODS, PRESETS
from amun_ext.unlearning.config import MethodConfig, TunedOptions, resolve_config
from amun_ext.validation import InputError, check_integer, require

FORMS: dict[str, dict[str, Any]] = {  # of a row METHOD:FORM, for methods that have these options
    "no-forget": {"include_forget": False},
    "with-forget": {"include_forget": True},
}


@dataclass(frozen=True, eq=False)
class SharedInputs:
    """What all cells have in common. `identity` is what a file has of it."""

    original: nn.Module
    test: TensorDataset
    request_sets: Sets
    cells: Cache
    place: Path  # of what goes when all are done
    identity: Mapping[str, object]


@dataclass(frozen=True)
class _Job:
    """A cell to be filled."""

    setting: str | None  # None where it is the same in all
    name: str
    seed: int
    config: MethodConfig | None


def resolve_configs(
    names: Sequence[str],
    with_retain: bool,
    *,
    preset: str | None = None,
    tuned: TunedOptions | None = None,
    **inputs: Any,
) -> dict[str, MethodConfig | None]:
    """How to run each row, METHOD or METHOD:FORM; None for a method that cannot be run without the retain set.

    Options are those of the preset or the tuned ones where these have the method, else the method's own. `inputs` are
    passed to `resolve_config`. InputError for rows that are unknown or named twice, or none.
    """
    split = {name: name.partition(":") for name in names}
    unknown = [
        name
        for name, (method, colon, form) in split.items()
        if method not in METHODS
        or (colon and (form not in FORMS or not FORMS[form].keys() <= METHODS[method].options.keys()))
    ]
    expected = f"some of {', '.join(METHODS)}, and amun:{' or amun:'.join(FORMS)}"
    require(bool(names) and not unknown, "methods", expected, ", ".join(map(repr, unknown)) or "none")
    require(len(split) == len(names), "methods", "different from each other", ", ".join(names))
    require(preset is None or preset in PRESETS, "preset", f"one of {tuple(PRESETS)}", repr(preset))

    def settled(method: str, form: str) -> MethodConfig | None:
        if METHODS[method].needs_retain and not with_retain:
            return None
        theirs = preset if preset is not None and method in PRESETS[preset] else None
        found = tuned if tuned is not None and (method, with_retain) in tuned else None
        return resolve_config(method, with_retain, preset=theirs, tuned=found, **inputs, **FORMS.get(form, {}))

    return {name: settled(method, form) for name, (method, _, form) in split.items() if method != RETRAIN}


def compare(
    original: nn.Module,
    test: TensorDataset,
    request_sets: Sets,
    rows: Mapping[str, Mapping[str, MethodConfig | None]],
    retraining: MethodConfig,
    *,
    seeds: int,
    out: Path,
    facts: Mapping[str, object] | None = None,
    progress: bool = False,
) -> Comparison:
    """Unlearn the same request with every row and seed, retrain with every seed, and measure all of the models.

    rows: setting (a name in SETTINGS) -> row -> config, by `resolve_configs`. seeds: so many, from 0 on, for what the
    methods draw and for the first weights of retraining. out: a folder, in which every cell is kept as soon as it is
    done; one that has been made with the same models, data and options is taken from there. facts: what a reader should
    know. A method whose loss diverges has a cell that says so.
    """
    seeds, init = check_integer("seeds", seeds, 1), retraining.options["init"]
    rows = {
        setting: {name: None if config is None else config.with_init(init) for name, config in configs.items()}
        for setting, configs in rows.items()
    }
    settings = [(setting, name, chosen) for setting, chosens in rows.items() for name, chosen in chosens.items()]
    jobs = [_Job(None, NOOP, 0, None)]
    for seed in range(seeds):
        jobs.append(_Job(None, RETRAIN, seed, retraining))
        jobs += [_Job(setting, name, seed, chosen) for setting, name, chosen in settings if chosen is not None]
    no_link(cells := out / "cells")
    warm_up()
    with (
        # near copies of what is to be forgotten, which go when all are done
        entered_by_first_rank(workplace(out, "compare")) as place,
        progress_bar(progress, total=len(jobs), desc="compare", unit="model") as bar,
    ):
        shared = SharedInputs(
            original, test, request_sets, Cache(cells, place), place, _identity(original, test, request_sets)
        )
        with workers(_cell, shared, 1) as run_jobs:
            own = {}
            for number, result in run_jobs((number, (job,)) for number, job in claimed([*enumerate(jobs)])):
                own[number] = result
                bar.set_postfix_str(f"{jobs[number].name}, seed {jobs[number].seed}")
                bar.update()
        results = {number: result for each in exchange(own) for number, result in each.items()}
    done: dict[tuple[str | None, str], dict[int, RunResult]] = {}
    for number, job in enumerate(jobs):
        done.setdefault((job.setting, job.name), {})[job.seed] = results[number]

    def line(setting: str, name: str, chosen: MethodConfig | None) -> TableRow:
        title = _title(name, chosen)
        same = [title == _title(*each) for each in rows[setting].items()].count(True) > 1
        return TableRow(f"{title} ({name})" if same else title, chosen, done.get((setting, name), {}))

    always = {
        RETRAIN: TableRow(METHODS[RETRAIN].title, retraining, done[None, RETRAIN]),
        NOOP: TableRow(ORIGINAL, None, done[None, NOOP]),
    }
    sets = {"forget": request_sets.forget, "retain": request_sets.retain, "test": test}
    return Comparison(
        tables={
            setting: always | {name: line(setting, name, chosen) for name, chosen in chosens.items()}
            for setting, chosens in rows.items()
        },
        sizes={name: len(data) for name, data in sets.items()},
        seeds=seeds,
        ids=request_sets.ids.tolist(),
        facts={**(facts or {}), "threads": torch.get_num_threads(), "versions": versions()},
    )


def write(comparison: Comparison, folder: Path) -> None:
    """compare.json and compare.html into `folder`."""
    with workplace(folder, "compare") as place, atomic_folder(folder, place) as files:
        write_json(files / "compare.json", comparison.to_dict())
        comparison.to_html(files / "compare.html")


def _identity(original: nn.Module, test: TensorDataset, request_sets: Sets) -> dict[str, object]:
    sets = {"forget": request_sets.forget, "retain": request_sets.retain, "test": test}
    return {
        "model": digest(original.state_dict()),
        **{name: fingerprint(data) for name, data in sets.items()},
        "device": next(original.parameters()).device.type,  # not its number, which is another one on each rank
        "amun_ext": amun_ext.__version__,
    }


def _cell(shared: SharedInputs, job: _Job) -> RunResult:
    """The result of the job: read from its file, or computed and written there."""
    config = None if job.config is None else job.config.to_dict()
    parts = (job.name.replace(":", "."), job.setting, str(job.seed))
    name = ".".join(part for part in parts if part is not None)
    identity = {**shared.identity, "config": config, "seed": job.seed}
    kept = shared.cells.values(name, identity, lambda: asdict(_made(job, shared)))
    kept["row"] = {column: math.nan if value is None else value for column, value in kept["row"].items()}
    return RunResult(**kept)


def _made(job: _Job, shared: SharedInputs) -> RunResult:
    request_sets = shared.request_sets
    if job.config is None:
        return RunResult(_seen(shared.original, math.nan, shared))
    adversarial, seconds, left_out = None, 0.0, 0
    if job.config.search is not None:
        adversarial, seconds = _examples(job.config.search, shared)
        left_out = int((~adversarial.found).sum())
    seed = job.seed + RETRAIN_SEED if job.name == RETRAIN else job.seed
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\d+ of \d+ forget samples")  # the table has a remark
            model = job.config.unlearn(
                shared.original, request_sets.forget, request_sets.retain, adversarial=adversarial, seed=seed
            )
    except FloatingPointError as error:
        return RunResult({}, str(error), left_out)
    seconds += time.perf_counter() - start
    try:
        return RunResult(_seen(model, seconds, shared), left_out=left_out)
    except InputError as error:  # of the model: the original could be measured on the same data
        return RunResult({}, str(error), left_out)


def _seen(model: nn.Module, seconds: float, shared: SharedInputs) -> Values:
    report = evaluate(
        {NOOP: model},
        forget=shared.request_sets.forget,
        retain=shared.request_sets.retain,
        test=shared.test,
        baseline=None,
    )
    return report.rows[NOOP] | {"seconds": seconds}


def _examples(search: Mapping[str, Any], shared: SharedInputs) -> tuple[AdversarialSet, float]:
    """The adversarial examples of the forget set, and the seconds of their search, which all cells of it share."""
    identity, searches = {**shared.identity, "search": search}, Cache(shared.place, shared.place)
    file = searches.path("examples", identity, ".safetensors")

    def make() -> dict[str, float]:
        start = time.perf_counter()
        found = find_min_adversarial(shared.original, shared.request_sets.forget, **search)
        seconds = time.perf_counter() - start
        found.save(file)
        return {"seconds": seconds}

    seconds = searches.values("examples", identity, make)["seconds"]
    return AdversarialSet.load(file), seconds


def _title(name: str, chosen: MethodConfig | None) -> str:
    title = METHODS[name.partition(":")[0]].title
    without = chosen is not None and chosen.options.get("include_forget") is False
    return f"{title} without D_F" if without else title
