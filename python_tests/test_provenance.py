"""What is said of models that were made otherwise: every difference, with both values."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from amun_ext import InputError
from amun_ext.cli import provenance
from amun_ext.deletion import Record
from amun_ext.files import claim_folder, file_digest
from amun_ext.training import Recipe
from amun_ext.validation import differences

RECIPE = Recipe(epochs=3, lr=0.1)
RECORD = Record(recipe=RECIPE, unlearning={"method": "ft"})


def made(**about: object) -> SimpleNamespace:
    told = {"recipe": asdict(RECIPE), "previously_forgotten": [], "unlearning": {"method": "ft"}}
    return SimpleNamespace(about=told | about)


def test_differences() -> None:
    assert differences({"a": 1, "b": {"c": [2]}}, {"a": 1, "b": {"c": [2]}}) == ""
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}}) == "b c 2 instead of 3, a 1 instead of None"
    many = differences(dict.fromkeys("abcde", 1), {})
    assert many == "a 1 instead of None, b 1 instead of None, c 1 instead of None and 2 more"
    assert len(differences({"ids": list(range(10**6))}, {"ids": "x" * 10**6})) < 120


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"recipe": asdict(Recipe(epochs=3, lr=0.2))}, "got one with lr 0.2 instead of 0.1"),
        ({"previously_forgotten": [3]}, r"of the same ids forgotten before, got \[3\] instead of \[\]"),
        ({"unlearning": {"method": "rl"}}, "with its options, got with method 'rl' instead of 'ft'"),
    ],
)
def test_shadows_of_other_settings_are_refused(about: dict, message: str) -> None:
    provenance.check_shadows(made(), RECORD, [])
    with pytest.raises(InputError, match=message):
        provenance.check_shadows(made(**about), RECORD, [])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"recipe": Recipe(epochs=30, lr=0.1)},
            r"made of, got a.safetensors, trained with recipe epochs 30 instead of 3",
        ),
        ({"seed": 1}, "trained with seed 1 instead of 0"),
        ({"init": "b"}, "trained with init 'b' instead of 'a'"),
        ({"forgotten": (3, 5)}, r"has not forgotten the ids, got one that has forgotten \[3\]"),
    ],
)
def test_another_original_is_refused(other: dict, message: str) -> None:
    """It would prove that the audit sees another model's members."""
    first = Record(recipe=RECIPE, seed=0, init="a")
    audited = replace(first, forgotten=(3, 4), unlearning={"method": "ft"})
    path = Path("a.safetensors")
    for fitting in (first, replace(first, forgotten=(5,)), Record(), replace(first, seed=None)):
        provenance.check_original(path, fitting, audited, [3, 4])
    with pytest.raises(InputError, match=message):
        provenance.check_original(path, replace(first, **other), audited, [3, 4])


def test_the_original_is_known_by_its_hash(tmp_path) -> None:
    """Or one from before an earlier request; a copy of it under another name is as good."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"weights")
    known = file_digest(path)
    for made_of in (None, (known,), ("0" * 64, known), (known, "0" * 64)):
        provenance.check_original(path, Record(), Record(made_of=made_of), [3])
    for made_of in ((), ("0" * 64,)):
        with pytest.raises(InputError, match=r"--original must be the model that --model was made of, got a.saf"):
            provenance.check_original(path, Record(), Record(made_of=made_of), [3])


def test_recipes_without_newer_fields() -> None:
    """An absent one has its default."""
    older = {"epochs": 3, "lr": 0.1}
    provenance.check_shadows(made(recipe=older), RECORD, [])
    assert provenance.remarks(RECORD, [], made(recipe=older)) == []
    (remark,) = provenance.remarks(RECORD, [], made(recipe={**older, "schedule": "cosine"}))
    assert remark.endswith("another recipe than the model: schedule 'cosine' instead of 'constant'")


def test_references_of_another_training_give_no_targets() -> None:
    provenance.check_teachers(made(init=None), RECORD)
    for other in ({"recipe": asdict(Recipe(epochs=4, lr=0.1))}, {"init": "weights a"}):
        with pytest.raises(InputError, match=r"^--references must be trained"):
            provenance.check_teachers(made(**other), RECORD)


def test_a_folder_of_other_settings_is_refused(tmp_path) -> None:
    claim_folder(tmp_path / "a.json", {"seed": 1, "recipe": asdict(RECIPE)}, "study")
    claim_folder(tmp_path / "a.json", {"seed": 1, "recipe": asdict(RECIPE)}, "study")
    with pytest.raises(InputError, match=r"of one with seed 1 instead of 2, recipe lr 0.1 instead of 0.3$"):
        claim_folder(tmp_path / "a.json", {"seed": 2, "recipe": asdict(Recipe(3, 0.3))}, "study")


def test_other_runs_have_forgotten_the_same() -> None:
    audited, path = replace(RECORD, forgotten=(3, 4)), [Path("a.safetensors")]
    provenance.check_runs(path, [replace(RECORD, forgotten=(4, 3))], audited)
    for forgotten in ((3,), (3, 4, 5), ()):
        with pytest.raises(InputError, match=r"^--other-runs must be"):
            provenance.check_runs(path, [replace(RECORD, forgotten=forgotten)], audited)
