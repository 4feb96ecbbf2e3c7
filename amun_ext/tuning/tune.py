"""tune: tune the options of each method by Optuna, on a proxy forget set (paper, appendix C)."""

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.data import Splits, aligned, fingerprint
from amun_ext.defaults import MAX_ACCURACY_DROP
from amun_ext.deletion import Record
from amun_ext.deletion.request import RETRAIN_SEED, retraining, sets
from amun_ext.digest import digest
from amun_ext.distributed import by_first_rank, claimed, entered_by_first_rank, world_size
from amun_ext.files import claim_folder, no_link, workplace
from amun_ext.info import versions
from amun_ext.models import load_checkpoint, save_checkpoint
from amun_ext.models.reinitialise import Init, describe_init
from amun_ext.parallel import workers
from amun_ext.progress import progress_bar
from amun_ext.recipe import TUNING
from amun_ext.search import AdversarialSet, find_min_adversarial
from amun_ext.training import Recipe
from amun_ext.tuning import study
from amun_ext.tuning.context import TrialContext, proxy_forget_set, run_trial, split_test_set
from amun_ext.tuning.objectives import OBJECTIVES, floor
from amun_ext.tuning.result import Trial, Tuning
from amun_ext.tuning.space import draw_parameters, options
from amun_ext.unlearning import METHODS, Targets
from amun_ext.unlearning.config import MethodConfig, resolve_config
from amun_ext.validation import check_integer, require

if TYPE_CHECKING:
    import optuna

# The files of a study. The first two are needed to resume it; the others save time when trials are added.
STUDY, JOURNAL = "study.json", "journal.log"
EXAMPLES, RETRAINED, RETRAINING = "examples.safetensors", "retrained.safetensors", "retraining.safetensors"
FORMAT = "amun_ext.tuning.1"


def tune(
    model: nn.Module,
    splits: Splits,
    ids: Tensor,
    methods: Sequence[str] = ("amun",),
    *,
    out: str | os.PathLike[str],
    trials: int = 30,
    objective: str = "held-out",
    with_retain: bool = True,
    recipe: Recipe = TUNING,
    max_accuracy_drop: float = MAX_ACCURACY_DROP,
    metadata: Mapping[str, str] | None = None,
    init: Init = None,
    targets: Targets | None = None,
    held_out: TensorDataset | None = None,
    search: str | None = None,
    num_workers: int = 1,
    seed: int = 0,
    facts: Mapping[str, object] | None = None,
    progress: bool = False,
) -> Tuning:
    """Tune the options with which each of `methods` is to unlearn the training samples `ids`.

    The samples of the request are not used. Each trial unlearns a proxy forget set from a copy of the model: as many
    other training samples, drawn at random (or half of them, if that is fewer). Held-out data are a
    random half of the test set; measure the chosen options on the other half (`split_test_set`), because the best of
    many trials looks better on the first half than it is. The three best trials of a method are repeated with another
    seed, and the one with the best mean is chosen: near divergence a learning rate gives a different result every time.

    The search is Optuna's TPE. Its journal in `out` survives a kill: the same call resumes it, and a call with more
    `trials` adds trials. With one worker the result follows from the seed, also after a kill. A trial that diverges
    counts as a failure.

    Args:
        model: the trained classifier.
        splits: the data that it was trained on, and test data.
        ids: what is to be forgotten, row numbers of the training set.
        methods: names in METHODS but "retrain"; see `tunable`.
        out: a folder, for this study alone.
        trials: of each method, all in all.
        objective: a name in OBJECTIVES. "retrain" trains one model without the proxy forget set.
        with_retain: whether the methods may use the rest of the training data (which is measured in any case).
        recipe: epochs, batch size and all else; its lr and schedule are searched.
        max_accuracy_drop: points of accuracy on held-out data that a trial may lose, with the objective "held-out".
        metadata: of the checkpoint: what it has forgotten before, and how it was trained.
        init: for "retrain" and methods that have this option, where first weights come from, see
            `amun_ext.unlearning.retrain.retrain`.
        targets: for methods that need them, see `amun_ext.unlearning.prepare`.
        held_out: for methods that need them, samples of no other use.
        search: the method of `find_min_adversarial`, by default AMUN's own.
        num_workers: trials to run in parallel, one process each.
        seed: of all randomness.
        facts: what a reader should know.
        progress: show bars.

    Raises:
        InputError: Optuna is missing; an argument is not what it must be; `out` is of another study.
    """
    study.check_optuna()
    out, methods, record = Path(out), list(methods), Record.read(metadata or {}, "metadata")
    require(isinstance(model, nn.Module), "model", "an nn.Module", type(model).__name__)
    check_methods(methods, with_retain)
    require(objective in OBJECTIVES, "objective", f"one of {tuple(OBJECTIVES)}", repr(objective))
    trials, num_workers = check_integer("trials", trials, 1), check_integer("num_workers", num_workers, 1)
    seed = check_integer("seed", seed, 0)
    require(0 <= max_accuracy_drop <= 100, "max_accuracy_drop", "points of accuracy, from 0 to 100", max_accuracy_drop)
    splits = aligned(splits, record.to_metadata())
    request_sets = sets(splits, ids, record, include_duplicates=True)
    forget, retain, rows = proxy_forget_set(request_sets.retain, len(request_sets.ids), seed)
    test, _ = split_test_set(splits.test, seed)
    from_scratch = retraining(model, record, init=init) if objective == "retrain" else None
    starts_anew = any("init" in METHODS[method].options for method in methods)
    identity = {
        "model": digest(model.state_dict()),
        "training_data": request_sets.training_data,
        "test_data": fingerprint(splits.test),
        "ids": request_sets.ids.tolist(),
        "previously_forgotten": request_sets.before,
        "methods": methods,
        "objective": objective,
        "with_retain": with_retain,
        "recipe": {name: value for name, value in asdict(recipe).items() if name not in ("lr", "schedule")},
        "retraining": None if from_scratch is None else asdict(from_scratch.recipe),
        "init": describe_init(init) if starts_anew or from_scratch is not None else None,
        "targets": None if targets is None else targets.settings(),
        "held_out": None if held_out is None else fingerprint(held_out),
        "seed": seed,
        **({} if search is None else {"search": search}),
        **({"max_accuracy_drop": max_accuracy_drop} if OBJECTIVES[objective].keeps_accuracy else {}),
    }
    inputs: dict[str, Any] = {"targets": targets, "held_out": held_out}
    searches = [resolve_config(method, with_retain, **inputs).search for method in methods]
    how = next((each for each in searches if each is not None), None)
    if how is not None and search is not None:
        how = {"method": search}
    with entered_by_first_rank(workplace(out, "tune")) as place, _open_study(out, identity, place) as storage:
        adversarial: AdversarialSet | None = None
        if how is not None:
            found = find_min_adversarial(model, forget, **how, out=out / EXAMPLES, progress=progress)
            adversarial = found.to("cpu")
        context = TrialContext(
            forget, retain, test, with_retain, adversarial, seed, inputs, init if starts_anew else None
        )
        compared = {"original": context.observe(model).row}
        context, retrained = replace(context, rows=compared), None
        if from_scratch is not None:
            retrained_model = _retrain(model, context, from_scratch, out, place, progress)
            context = replace(context, rows={**compared, "retrained": context.observe(retrained_model).row})
            retrained = context.observe(retrained_model)
        removed_ids = {*request_sets.ids.tolist(), *request_sets.before}
        kept = [number for number in range(len(splits.train)) if number not in removed_ids]
        tuning = Tuning(
            trials={},
            original=context.observe(model),
            retrained=retrained,
            objective=objective,
            with_retain=with_retain,
            max_accuracy_drop=max_accuracy_drop,
            recipe=recipe,
            ids=[kept[row] for row in rows.tolist()],
            facts={
                **(facts or {}),
                "ids_to_forget": len(request_sets.ids),
                "proxy_forget_set": f"{len(forget)} other training samples, drawn by the seed",
                "retained": len(retain),
                "held_out": f"{len(test)} of {len(splits.test)} test samples, drawn by the seed; measure on the others",
                "with_retain": with_retain,
                "max_accuracy_drop": max_accuracy_drop,
                "seed": seed,
                "versions": versions(),
            },
        )
        return _run_trials(tuning, model, context, storage, methods, trials, num_workers, progress)


def _run_trials(
    tuning: Tuning,
    model: nn.Module,
    context: TrialContext,
    storage: "optuna.storages.BaseStorage",
    methods: Sequence[str],
    trials: int,
    num_workers: int,
    progress: bool,
) -> Tuning:
    """With the trials of each method, and the best of them repeated."""
    recipe, objective = tuning.recipe, tuning.objective
    least = floor(objective, context.rows["original"], tuning.max_accuracy_drop)
    studies = {method: study.opened(storage, method) for method in methods}
    with workers(partial(run_trial, context), model, num_workers) as run_jobs:
        for method, each in studies.items():
            draw = partial(draw_parameters, method)
            pending = study.pending_trials(
                each, trials, context.seed, draw, parallel=max(num_workers, world_size()) > 1
            )
            jobs = ((trial, (method, options(draw(trial), recipe), 0)) for trial in pending)
            done = len(study.finished(each))
            with progress_bar(progress, total=trials, initial=done, desc=method, unit="trial") as bar:
                for trial, outcome in run_jobs(jobs):
                    study.tell(trial, outcome, OBJECTIVES[objective].column, least)
                    bar.update()
        first_runs = replace(tuning, trials=_trials(studies))
        finalists = [first_runs.finalists(method) for method in methods]
        rerun = [trial for best in finalists if len(best) > 1 for trial in best if trial.rerun is None]
        reruns = ((trial, (trial.method, options(trial.parameters, recipe), 1)) for trial in claimed(rerun))
        with progress_bar(progress and bool(rerun), total=len(rerun), desc="the best again", unit="trial") as bar:
            for trial, outcome in run_jobs(reruns):
                study.record_rerun(studies[trial.method], trial.number, outcome)
                bar.update()
    return replace(tuning, trials=_trials(studies))


def tunable(with_retain: bool = True) -> list[str]:
    """Methods that have something to search."""
    return [name for name, row in METHODS.items() if name != "retrain" and (with_retain or not row.needs_retain)]


def check_methods(methods: Sequence[str], with_retain: bool) -> None:
    """InputError for names that are not in METHODS or not tunable, named twice, or none at all."""
    known = tunable(with_retain)
    actual = ", ".join(repr(method) for method in methods if method not in known) or "none"
    setting = "" if with_retain else " without the retain set"
    require(bool(methods) and set(methods) <= set(known), "methods", f"some of {', '.join(known)}{setting}", actual)
    require(len(set(methods)) == len(methods), "methods", "different from each other", ", ".join(methods))


@contextlib.contextmanager
def _open_study(out: Path, identity: Mapping[str, object], place: Path) -> "Iterator[optuna.storages.BaseStorage]":
    """The journal in `out`. InputError where it is of another study."""
    no_link(out / JOURNAL)
    others = (out / JOURNAL).exists() and not (out / STUDY).exists()
    require(not others, "out", "a new folder or one of this study", f"{out}, with a journal but no {STUDY}")
    by_first_rank(claim_folder)(out / STUDY, {"format": FORMAT, **identity}, "study", place)
    with study.journal(out / JOURNAL) as storage:
        yield storage


def _retrain(
    original: nn.Module, context: TrialContext, config: MethodConfig, out: Path, place: Path, progress: bool
) -> nn.Module:
    """A model trained without the proxy forget set and the request; read from its file, if there is one."""
    path, unfinished = out / RETRAINED, place / RETRAINED
    if by_first_rank(path.exists)():
        model = copy.deepcopy(original)
        load_checkpoint(path, model)
        return model
    how: dict[str, Any] = {"seed": context.seed + RETRAIN_SEED, "checkpoint": place / RETRAINING, "progress": progress}
    model = config.unlearn(original, context.forget, context.retain, **how)
    by_first_rank(save_checkpoint)(unfinished, model, Record(recipe=config.recipe).to_metadata())
    by_first_rank(unfinished.replace)(path)
    return model


def _trials(studies: "Mapping[str, optuna.Study]") -> dict[str, list[Trial]]:
    """The finished trials, by method."""
    return {method: [_trial(method, each, trial) for trial in study.finished(each)] for method, each in studies.items()}


def _trial(method: str, its_study: "optuna.Study", frozen: "optuna.trial.FrozenTrial") -> Trial:
    outcome, rerun = study.outcome_from(frozen.user_attrs), its_study.user_attrs.get(study.RERUN.format(frozen.number))
    result, failure = (None, outcome) if isinstance(outcome, str) else (outcome, None)
    rerun = None if rerun is None else study.outcome_from(rerun)
    return Trial(method, frozen.number, frozen.params, result, failure, rerun)
