"""Check by their metadata that checkpoints, references and shadows fit the audited model."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import nn

from amun_ext.auditing import ModelSignals, Shadows
from amun_ext.auditing.result import FILES
from amun_ext.cli.output_folder import report_facts
from amun_ext.data import ImageDataset, Splits, find_duplicates, training_data
from amun_ext.deletion import Record
from amun_ext.deletion.results import SECONDS
from amun_ext.digest import architecture
from amun_ext.files import file_digest, to_jsonable
from amun_ext.training import Recipe
from amun_ext.unlearning import Targets
from amun_ext.validation import differences, require


def check_retrained(paths: Sequence[Path], records: Sequence[Record], removed_ids: Sequence[int]) -> list[str]:
    """InputError for a model that was trained on some of the ids; a remark on a model without a record of its data."""
    remarks = []
    for path, record in zip(paths, records, strict=True):
        if record.training_data is None:
            remarks.append(f"{path.name} does not say what it was trained on: it may have been trained on the ids")
            continue
        trained_on = sorted(set(removed_ids) - set(record.forgotten_ids))
        actual = f"{path.name}, which was trained on {trained_on[:5]}"
        require(not trained_on, "--retrained-model", "trained without the ids", actual)
    return remarks


def check_runs(paths: Sequence[Path], runs: Sequence[Record], record: Record) -> None:
    """InputError for a model that has not forgotten the same ids as the audited one."""
    for path, run in zip(paths, runs, strict=True):
        same = sorted(run.forgotten_ids) == sorted(record.forgotten_ids)
        require(same, "--other-runs", "models that have forgotten the ids of --model", f"{path.name}, with others")


def check_original(path: Path, original: Record, record: Record, ids: Sequence[int]) -> None:
    """InputError for a model that the audited one was not made from, or that has forgotten some of the ids itself.

    The verdict uses it to show that the audit would detect a model that has forgotten nothing.
    """
    kept = ("recipe", "seed", "init")  # of the original training; unlearned checkpoints keep them
    theirs, ours = ({name: getattr(each, name) for name in kept} for each in (original, record))
    known = [name for name in kept if theirs[name] is not None and ours[name] is not None]
    differ = differences(*({name: to_jsonable(each[name]) for name in known} for each in (theirs, ours)))
    require(not differ, "--original", "the model that --model was made of", f"{path.name}, trained with {differ}")
    before = record.made_of is None or file_digest(path) in record.made_of
    require(before, "--original", "the model that --model was made of", f"{path.name}, another file")
    forgotten = sorted(set(ids) & set(original.forgotten_ids))
    require(
        not forgotten, "--original", "a model that has not forgotten the ids", f"one that has forgotten {forgotten[:5]}"
    )


def check_shadows(shadows: Shadows, record: Record, previously_forgotten: Sequence[int]) -> None:
    """InputError for shadows of another recipe, method or history than those in the model's record."""
    other = _other_recipe(shadows, record)
    require(not other, "--shadows", "trained with the recipe of the checkpoint", f"one with {other}")
    theirs, others = shadows.about["previously_forgotten"], sorted(previously_forgotten)
    actual = f"{reprlib.repr(theirs)} instead of {reprlib.repr(others)}"
    require(theirs == others, "--shadows", "of the same ids forgotten before", actual)
    theirs = shadows.about["unlearning"]
    assert isinstance(theirs, dict)
    check_method("--shadows", theirs, record)


def check_targets(targets: Targets | None, model: nn.Module, record: Record, splits: Splits) -> None:
    """InputError for targets of other training data, another architecture or another recipe than the checkpoint's."""
    if targets is None:
        return
    require(targets.metadata["data"] == training_data(splits), "--targets", "of the training data in --data", "others")
    same = targets.metadata["architecture"] == architecture(model)
    require(same, "--targets", "of the model's architecture", "of another")
    differ = "" if record.recipe is None else differences(targets.settings()["recipe"], asdict(record.recipe))
    require(not differ, "--targets", "prepared with the recipe of the checkpoint", f"one with {differ}")


def check_teachers(references: ModelSignals, record: Record) -> None:
    """InputError for references that cannot give targets: of another recipe or first weights than the checkpoint's."""
    other = _other_recipe(references, record)
    require(not other, "--references", "trained with the recipe of the checkpoint", f"one with {other}")
    init = references.about.get("init")
    same = record.recipe is None or record.init == init
    require(same, "--references", f"trained from the checkpoint's first weights, {record.init}", init)


def check_held_out(held_out: ImageDataset | None, splits: Splits) -> None:
    """InputError for held-out samples that the model was trained on, or that it is measured on."""
    for part in (splits.train, splits.test):
        shared = 0 if held_out is None else len(find_duplicates(held_out, part))
        require(shared == 0, "--held-out", "free of the images in --data", f"{shared} of them")


def check_method(argument: str, options: Mapping[str, object], record: Record) -> None:
    """InputError for another method, or other options, than those in the model's record."""
    if record.unlearning is not None:
        differ = differences(options, record.unlearning)
        expected = "of the method that made the model, with its options"
        require(not differ, argument, expected, f"with {differ}")


def remarks(record: Record, ids: Sequence[int], references: ModelSignals | None) -> list[str]:
    """Remarks on ids and references that may not be the intended ones."""
    found = []
    others = set(ids) - set(record.forgotten_ids)
    if record.forgotten is not None and others:
        found.append(f"{len(others)} of {len(ids)} ids are not among those that the checkpoint has forgotten")
    other = "" if references is None else _other_recipe(references, record)
    if other:
        found.append(f"the references were trained with another recipe than the model: {other}")
    return found


def seconds(path: Path, record: Record) -> float | None:
    """The seconds that the model took, from the report or audit beside it, or from an older checkpoint."""
    for name in ("report.json", FILES[0]):
        known = report_facts(path.parent, name).get(SECONDS)
        took = known.get(file_digest(path)) if isinstance(known, dict) and known else None
        if isinstance(took, int | float) and not isinstance(took, bool):
            return float(took)
    return record.seconds


def _other_recipe(signals: ModelSignals, record: Record) -> str:
    """The differences of the recipe from that of the checkpoint, if it has one."""
    theirs = signals.about["recipe"]
    assert isinstance(theirs, Mapping)
    if record.recipe is None:
        return ""
    return differences(asdict(Recipe(**theirs)), asdict(record.recipe))  # an older record lacks newer fields
