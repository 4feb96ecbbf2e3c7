"""Options of `unlearn` in a file: what a hyper-parameter search chose, for a comparison or a request to use."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from amun_ext.checks import InputError, require, whole
from amun_ext.files import write_json
from amun_ext.reading import parse_json, text_of
from amun_ext.training import Recipe

# By method and by whether the retain set is there: keyword arguments of `unlearn`, with their `recipe`.
Choices = Mapping[tuple[str, bool], Mapping[str, Any]]

FORMAT = "amun_ext.choices.1"


def save_choices(path: str | os.PathLike[str], choices: Choices, about: Mapping[str, Any]) -> None:
    """Write the choices as JSON, beside what a reader should know `about` them."""
    rows = [
        {"method": method, "retain": retain, "options": {**options, "recipe": asdict(options["recipe"])}}
        for (method, retain), options in choices.items()
    ]
    write_json(path, {"format": FORMAT, "choices": rows, "about": about})


def load_choices(path: str | os.PathLike[str]) -> dict[tuple[str, bool], dict[str, Any]]:
    """What `save_choices` wrote. InputError for another file, and for a recipe that is none."""
    return _load(path)[0]


def load_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_choices` was told about them. InputError as `load_choices`."""
    return _load(path)[1]


def _load(path: str | os.PathLike[str]) -> tuple[dict[tuple[str, bool], dict[str, Any]], dict[str, Any]]:
    try:
        read = parse_json(str(path), text_of(str(path), path, "a file of choices, from amun tune"))
        require(read.get("format") == FORMAT, str(path), "a file of choices, from amun tune", "another")
        choices = {
            (row["method"], row["retain"]): {**row["options"], "recipe": Recipe(**row["options"]["recipe"])}
            for row in read["choices"]
        }
        about = dict(read["about"])
        whole(f"{path}: seed", about.get("seed", 0), 0)
        return choices, about
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} must be a file of choices, from amun tune, got {error!r}") from error
