"""What checkpoints and folders say of how they were made: whether it fits what an audit takes them for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from reprlib import repr as shown

from amun_ext.audit import Answers, Shadows
from amun_ext.checks import differences, require
from amun_ext.training import Recipe

Metadata = Mapping[str, str]


def check_retrained(paths: Sequence[Path], told: Sequence[Metadata], gone: Sequence[int]) -> list[str]:
    """InputError for a model that was trained on some of the ids; a remark on one of which that is not known."""
    remarks = []
    for path, metadata in zip(paths, told, strict=True):
        if "training_data" not in metadata:
            remarks.append(f"{path.name} does not say what it was trained on: that it was without the ids is not known")
            continue
        seen = sorted(set(gone) - set(json.loads(metadata.get("forgotten", "[]"))))
        got = f"{path.name}, which says nothing of being without {seen[:5]}"
        require(not seen, "--retrained", "trained without the ids", got)
    return remarks


def check_shadows(shadows: Shadows, metadata: Metadata, before: Sequence[int]) -> None:
    """InputError for shadows of another recipe, method or history than the model's, as far as they are known."""
    other = _other_recipe(shadows, metadata)
    require(not other, "--shadows", "trained with the recipe of the checkpoint", f"one with {other}")
    theirs, others = shadows.about["forgotten before"], sorted(before)
    got = f"{shown(theirs)} instead of {shown(others)}"
    require(theirs == others, "--shadows", "of the same ids forgotten before", got)
    theirs = shadows.about["unlearning"]
    assert isinstance(theirs, dict)
    check_method("--shadows", theirs, metadata)


def check_method(argument: str, told: Mapping[str, object], metadata: Metadata) -> None:
    """InputError for another method than that which made the model, or other options, where it is known."""
    if "unlearning" in metadata:
        differ = differences(told, json.loads(metadata["unlearning"]))
        must_be = "of the method that made the model, with its options"
        require(not differ, argument, must_be, f"with {differ}")


def remarks(metadata: Metadata, ids: Sequence[int], references: Answers | None) -> list[str]:
    """What a reader should know of an audit that is none of what was asked for, perhaps."""
    told = []
    others = set(ids) - set(json.loads(metadata.get("forgotten", "[]")))
    if "forgotten" in metadata and others:
        told.append(f"{len(others)} of {len(ids)} ids are none that the checkpoint says to have forgotten")
    other = "" if references is None else _other_recipe(references, metadata)
    if other:
        told.append(f"the references were trained with another recipe than the model: {other}")
    return told


def _other_recipe(made: Answers, metadata: Metadata) -> str:
    """What is other in the recipe than that of the checkpoint, where this tells one."""
    theirs = made.about["recipe"]
    assert isinstance(theirs, Mapping)
    wanted = json.loads(metadata["recipe"]) if "recipe" in metadata else theirs
    return differences(*(asdict(Recipe(**each)) for each in (theirs, wanted)))  # an older one lacks newer fields
