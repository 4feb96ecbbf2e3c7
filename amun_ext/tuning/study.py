"""The Optuna study: which trial is next, and a journal that survives a kill."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amun_ext.tuning.context import TrialResult
from amun_ext.tuning.space import Parameters
from amun_ext.validation import InputError, require

if TYPE_CHECKING:  # it takes a second to import, and may be absent
    import optuna

# Of a trial in the journal, beside Optuna's own. A finished one has a row or a failure.
ROW, LOG_ODDS, SECONDS, FAILURE, ACCURACY = "row", "log odds", "seconds", "failure", "accuracy"
RERUN = "rerun {}"  # of a study: what the second run of a trial gave, by its number


def check_optuna() -> None:
    installed = importlib.util.find_spec("optuna") is not None
    require(installed, "amun tune", "used with Optuna installed: pip install 'amun_ext[tune]'", "none")


class _Held:
    """In place of Optuna's lock files: the whole folder is locked already, and a Ctrl-C among theirs is an OSError."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@contextlib.contextmanager
def journal(path: Path) -> Iterator["optuna.storages.BaseStorage"]:
    """The storage at `path`, which must be ours alone. InputError for a broken file."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    with path.open("ab+") as file, _quietly(optuna):
        # A kill can leave half a line, to which the next would be added.
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        try:
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=_Held()))  # type: ignore[arg-type]
        except (ValueError, KeyError) as error:
            raise InputError(f"out must have a journal that can be read, got {path}: {error!r}") from error
        yield storage


def opened(storage: "optuna.storages.BaseStorage", name: str) -> "optuna.Study":
    import optuna

    return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)


def pending_trials(
    study: "optuna.Study", count: int, seed: int, draw: "Callable[[optuna.Trial], Parameters]", *, parallel: bool
) -> Iterator["optuna.Trial"]:
    """First the trials that a kill has stopped, then new ones, until there are `count` in all.

    What `draw` draws for a trial follows from the seed, its number and the trials that are finished: where these come
    one by one a study that was stopped goes on as if it had not been. All of it is in the journal before the trial
    begins, in one line: a kill among the draws of one trial would have the rest of them begin anew.
    """
    import optuna

    states = optuna.trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        yield optuna.Trial(study, trial._trial_id)
    while (number := len(study.get_trials(deepcopy=False))) < count or study.get_trials(states=(states.WAITING,)):
        if not study.get_trials(states=(states.WAITING,)):  # else a kill came between the next line and its begin
            study.enqueue_trial(_drawn(study, _sampler(seed, number, parallel), draw))
        yield study.ask()


def _drawn(
    study: "optuna.Study", sampler: "optuna.samplers.BaseSampler", draw: "Callable[[optuna.Trial], Parameters]"
) -> dict[str, Any]:
    """For a new trial, without a trace in the study."""
    import optuna

    copy = optuna.create_study(sampler=sampler)
    copy.add_trials(study.get_trials(deepcopy=False))
    return dict(draw(copy.ask()))


def finished(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def tell(trial: "optuna.Trial", outcome: TrialResult | str, column: str, floor: float) -> None:
    """`column` of the row is to be small; the trial is out of the question where the accuracy is below `floor`."""
    import optuna

    for name, entry in _told(outcome).items():
        trial.set_user_attr(name, entry)
    if isinstance(outcome, str):
        trial.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    if not trial.constraints:  # else a kill came between this line and the next
        trial.set_constraint(ACCURACY, floor - outcome.row["TA"])
    trial.study.tell(trial, outcome.row[column])


def outcome(trial: "optuna.trial.FrozenTrial") -> TrialResult | str:
    """Of a trial that `tell` has told."""
    return _outcome(trial.user_attrs)


def record_rerun(study: "optuna.Study", number: int, outcome: TrialResult | str) -> None:
    """The outcome of a trial's second run, of which the sampler knows nothing."""
    study.set_user_attr(RERUN.format(number), _told(outcome))


def rerun_outcome(study: "optuna.Study", number: int) -> TrialResult | str | None:
    """Of a trial's second run; None where there was none."""
    attributes = study.user_attrs.get(RERUN.format(number))
    return None if attributes is None else _outcome(attributes)


def _told(outcome: TrialResult | str) -> dict[str, Any]:
    if isinstance(outcome, str):
        return {FAILURE: outcome}
    return {ROW: outcome.row, LOG_ODDS: outcome.log_odds, SECONDS: outcome.seconds}


def _outcome(attributes: Mapping[str, Any]) -> TrialResult | str:
    return (
        attributes[FAILURE]
        if FAILURE in attributes
        else TrialResult(attributes[ROW], attributes[LOG_ODDS], attributes[SECONDS])
    )


def _sampler(seed: int, number: int, parallel: bool) -> "optuna.samplers.BaseSampler":
    import optuna

    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    # multivariate: a rate that falls every epoch must begin higher than one that stays
    return optuna.samplers.TPESampler(seed=own, multivariate=True, constant_liar=parallel)


@contextlib.contextmanager
def _quietly(optuna: Any) -> Iterator[None]:
    """Without a line for each trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
