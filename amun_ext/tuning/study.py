"""The Optuna study: which trial is next, and a journal that survives a kill."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amun_ext.distributed import by_first_rank, claimed, exchange, world_size
from amun_ext.locks import locked
from amun_ext.tuning.context import TrialResult
from amun_ext.tuning.space import Parameters
from amun_ext.validation import InputError, require

if TYPE_CHECKING:  # it takes a second to import, and may be absent
    import optuna

# Attributes of a trial in the journal. A finished trial has a row or a failure.
ROW, LOG_ODDS, SECONDS, FAILURE, ACCURACY = "row", "log odds", "seconds", "failure", "accuracy"
RERUN = "rerun {}"  # attribute of a study: the outcome of the second run of a trial, by its number


def check_optuna() -> None:
    installed = importlib.util.find_spec("optuna") is not None
    require(installed, "amun tune", "used with Optuna installed: pip install 'amun_ext[tune]'", "none")


class _Lock:
    """Replaces Optuna's lock, in which Ctrl-C would be an OSError. Only ranks share a journal: its folder is locked."""

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, contextlib.ExitStack()

    def acquire(self) -> bool:
        if world_size() > 1:
            self.held.enter_context(locked(self.path.with_name(f".{self.path.name}.lock"), self.path, wait=True))
        return True

    def release(self) -> None:
        self.held.close()


def _drop_half_line(path: Path) -> None:
    """A kill can leave one, and the next line would be appended to it."""
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


@contextlib.contextmanager
def journal(path: Path) -> Iterator["optuna.storages.BaseStorage"]:
    """The storage at `path`, in a locked folder. InputError for a broken file."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    by_first_rank(_drop_half_line)(path)
    with _without_logs(optuna):
        try:
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=_Lock(path)))  # type: ignore[arg-type]
        except (ValueError, KeyError) as error:
            raise InputError(f"out must have a journal that can be read, got {path}: {error!r}") from error
        yield storage


def opened(storage: "optuna.storages.BaseStorage", name: str) -> "optuna.Study":
    import optuna

    return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)


def pending_trials(
    study: "optuna.Study", count: int, seed: int, draw: "Callable[[optuna.Trial], Parameters]", *, parallel: bool
) -> Iterator["optuna.Trial"]:
    """First the trials that a kill has stopped, then new ones, until there are `count` in all; of these, this rank's.

    The parameters of a trial follow from the seed, its number and the finished trials: with one worker a resumed study
    gives the same trials as one that was never stopped. All parameters of a trial are written to the journal in one
    line before it begins, so that a kill cannot come between them.
    """
    import optuna

    running = optuna.trial.TrialState.RUNNING
    before = exchange([(trial.state, trial._trial_id) for trial in study.get_trials(deepcopy=False)])[0]
    for stopped in claimed([number for state, number in before if state == running]):
        yield optuna.Trial(study, stopped)
    for number in claimed(range(len(before), count)):
        own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        # multivariate: a learning rate that falls every epoch has to start higher than a constant one
        sampler = optuna.samplers.TPESampler(seed=own_seed, multivariate=True, constant_liar=parallel)
        copy = optuna.create_study(sampler=sampler)
        copy.add_trials(study.get_trials(deepcopy=False))
        begun = optuna.trial.create_trial(state=running, system_attrs={"fixed_params": dict(draw(copy.ask()))})
        yield optuna.Trial(study, study._storage.create_new_trial(study._study_id, begun))  # not ask: ranks would mix


def finished(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def tell(trial: "optuna.Trial", outcome: TrialResult | str, column: str, floor: float) -> None:
    """Record the outcome: `column` of the row is minimised, under the constraint that TA is `floor` at least."""
    import optuna

    for name, entry in _to_attributes(outcome).items():
        trial.set_user_attr(name, entry)
    if isinstance(outcome, str):
        trial.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    if not trial.constraints:  # a kill can come between this line and the next
        trial.set_constraint(ACCURACY, floor - outcome.row["TA"])
    trial.study.tell(trial, outcome.row[column])


def record_rerun(study: "optuna.Study", number: int, outcome: TrialResult | str) -> None:
    """The outcome of a trial's second run, which the sampler does not see."""
    study.set_user_attr(RERUN.format(number), _to_attributes(outcome))


def _to_attributes(outcome: TrialResult | str) -> dict[str, Any]:
    if isinstance(outcome, str):
        return {FAILURE: outcome}
    return {ROW: outcome.row, LOG_ODDS: outcome.log_odds, SECONDS: outcome.seconds}


def outcome_from(attributes: Mapping[str, Any]) -> TrialResult | str:
    """The outcome of a trial, or of a second run, from its attributes in the journal."""
    if FAILURE in attributes:
        return str(attributes[FAILURE])
    return TrialResult(attributes[ROW], attributes[LOG_ODDS], attributes[SECONDS])


@contextlib.contextmanager
def _without_logs(optuna: Any) -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
