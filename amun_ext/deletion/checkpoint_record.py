"""The metadata of a checkpoint: how it was made. Read only here, where every value is checked."""

import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from amun_ext.reading import parse_json
from amun_ext.training import Recipe
from amun_ext.validation import InputError, listed, require

VERSION = "1"  # under the key amun_ext; files without it are of this one
LONGEST = 2**16  # characters of a value; a list of ids may fill the whole header, of which safetensors takes 100 MB
DIGEST = re.compile("[0-9a-f]{64}")
IDS = re.compile(r"\s*+\[\s*+(?:[0-9]{1,18}+\s*+(?:,\s*+[0-9]{1,18}+\s*+)*+)?\]\s*+")


def _text(name: str, text: str) -> str:
    require(0 < len(text) <= 1000 and text.isprintable(), name, "a short printable text", reprlib.repr(text))
    return text


def _whole(name: str, text: str) -> int:
    fits = re.fullmatch("[1-9][0-9]{0,4}", text) is not None
    require(fits, name, "a whole number from 1 to 99999", reprlib.repr(text))
    return int(text)


def _seed(name: str, text: str) -> int:
    require(re.fullmatch("[0-9]{1,18}", text) is not None, name, "a whole number from 0 on", reprlib.repr(text))
    return int(text)


def _seconds(name: str, text: str) -> float:
    fits = re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", text) is not None
    require(fits, name, "a number of seconds, such as 12.5", reprlib.repr(text))
    return float(text)


def _share(name: str, text: str) -> float:
    fits = re.fullmatch(r"[0-9](\.[0-9]{1,20})?(e-[0-9]{1,2})?", text) and 0 < float(text) < 1
    require(bool(fits), name, "a number between 0 and 1", reprlib.repr(text))
    return float(text)


def _object(name: str, text: str) -> dict[str, Any]:
    value = parse_json(name, text)
    require(isinstance(value, dict), name, "a JSON object", reprlib.repr(text))
    content: dict[str, Any] = value
    return content


def _recipe(name: str, text: str) -> Recipe:
    given, known = _object(name, text), [each.name for each in fields(Recipe)]
    unknown = [key for key in given if key not in known]
    expected = f"a recipe of {', '.join(known)} (others may be of a later amun_ext)"
    require(not unknown, name, expected, f"one with {listed(list(map(repr, unknown)))}")
    require({"epochs", "lr"} <= given.keys(), name, "a recipe with epochs and lr", reprlib.repr(text))
    try:
        return Recipe(**given)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} must be a recipe: {error}") from error


def _ids(name: str, text: str) -> tuple[int, ...]:
    # The whole before a part: a list of other things would be many times as large as its text.
    require(IDS.fullmatch(text) is not None, name, "a JSON list of ids, from 0 on", reprlib.repr(text))
    ids: list[int] = [int(number) for number in re.findall("[0-9]+", text)]
    repeated = [number for number, count in Counter(ids).items() if count > 1]
    require(not repeated, name, "free of repeated ids", reprlib.repr(repeated))
    return tuple(ids)


def _packed(_: str, text: str) -> str:
    return text  # which is looked at where it is unpacked


def _digests(name: str, text: str) -> tuple[str, ...]:
    value = parse_json(name, text)
    fits = isinstance(value, list) and all(isinstance(each, str) and DIGEST.fullmatch(each) for each in value)
    require(fits, name, "a JSON list of SHA-256 digests", reprlib.repr(text))
    return tuple(value)


def _dumped(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe))


def _key(read: Callable[[str, str], Any], write: Callable[[Any], str] = str) -> Any:
    return field(default=None, metadata={"read": read, "write": write})


@dataclass(frozen=True)
class Record:
    """A row for every key: what it is, and how it is read and written. None: the checkpoint does not say."""

    arch: str | None = _key(_text)
    width: int | None = _key(_whole)
    training_data: str | None = _key(_text)  # a fingerprint
    recipe: Recipe | None = _key(_recipe, _dumped)  # noqa: RUF009
    seed: int | None = _key(_seed)
    forgotten: tuple[int, ...] | None = _key(_ids, json.dumps)
    unlearning: Mapping[str, object] | None = _key(_object, json.dumps)  # a MethodConfig.to_dict
    made_of: tuple[str, ...] | None = _key(_digests, json.dumps)  # SHA-256 of the files of the models before, in order
    teachers: tuple[str, ...] | None = _key(_digests, json.dumps)  # references that gave targets to it or one before it
    seconds: float | None = _key(_seconds, "{:.3f}".format)  # in older files; now the report has it
    init: str | None = _key(_text)  # what training began with, see `amun_ext.models.reinitialise.describe_init`
    manifest: str | None = _key(_packed)  # of the training samples, see `amun_ext.data.manifest`
    resize: int | None = _key(_whole)  # pixels, of a folder of images; as the next see `amun_ext.data.load`
    test_fraction: float | None = _key(_share)
    others: Mapping[str, str] = field(default_factory=dict)  # keys that are not of amun, which are kept

    @property
    def forgotten_ids(self) -> tuple[int, ...]:
        """The ids that the model has forgotten; empty where `forgotten` is None."""
        return self.forgotten or ()

    @classmethod
    def read(cls, metadata: Mapping[str, str], name: str) -> "Record":
        """From the metadata of a file. InputError with this `name` and the key for a value that is not what it must be,
        and for a file of a later version."""
        others, values = dict(metadata), {}
        version = others.pop("amun_ext", VERSION)
        require(
            version == VERSION,
            f"{name}: amun_ext",
            f"{VERSION}: it may be of a later version of amun_ext",
            repr(version),
        )
        for key, ways in _ways().items():
            if key in others:
                text = others.pop(key)
                long = len(text) > LONGEST and key not in ("forgotten", "manifest")
                require(not long, f"{name}: {key}", f"of at most {LONGEST} characters", len(text))
                values[key] = ways["read"](f"{name}: {key}", text)
        return cls(**values, others=others)

    def to_metadata(self) -> dict[str, str]:
        """For `save_checkpoint`."""
        values = {key: (getattr(self, key), ways["write"]) for key, ways in _ways().items()}
        metadata = {key: write(value) for key, (value, write) in values.items() if value is not None}
        return {**self.others, "amun_ext": VERSION, **metadata}


def _ways() -> dict[str, Mapping[str, Any]]:
    return {each.name: each.metadata for each in fields(Record) if "read" in each.metadata}
