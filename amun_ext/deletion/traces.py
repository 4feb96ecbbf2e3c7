"""Find traces of forgotten samples in files of amun: older models, examples, signals of models, pages with images.

Files are recognised by their content, not by their names.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from amun_ext.deletion.record import Record
from amun_ext.files import is_workplace
from amun_ext.reading import parse_json, stored
from amun_ext.search.adversarial_set import FORMAT
from amun_ext.unlearning.cross_fit import FORMAT as TARGETS
from amun_ext.validation import InputError, is_integer

RESULTS = ("report.json", "audit.json", "compare.json", "searches.json", "tuned.json")
ANSWERS = {"references.json": "reference", "shadows.json": "shadow"}  # and what the file of a model begins with
UNFINISHED = "unfinished work"


@dataclass(frozen=True)
class Trace:
    path: Path  # of a file, or of a folder of unfinished work
    what: str
    size: int  # bytes


def traces(folder: Path, record: Record) -> list[Trace]:
    """Of the samples that the model with this record has forgotten, in the folder and all in it, by path.

    Links are not followed. InputError for a record without training data or without forgotten samples.
    """
    if record.training_data is None or not record.gone:
        raise InputError("model must be a checkpoint with training_data and forgotten samples, got another")
    found = {}
    for place, folders, files in os.walk(folder):
        here = Path(place)
        if is_workplace(here):
            folders.clear()
            found[here] = UNFINISHED
            continue
        paths = sorted(here / name for name in files if not (here / name).is_symlink())
        for path, what in [*_models(paths, record), *_results(here, paths, record), *_answers(here, paths, record)]:
            found[path] = what
    return [Trace(path, what, _size(path)) for path, what in sorted(found.items())]


def _models(paths: list[Path], record: Record) -> Iterator[tuple[Path, str]]:
    """Checkpoints that were trained on some of the samples, and have not forgotten them."""
    for path in paths:
        try:
            other = Record.read(_metadata(path), path.name)
        except InputError:
            continue
        left = {*record.gone} - {*other.gone}
        if other.training_data == record.training_data and left:
            yield path, f"a model that has not forgotten {len(left)} of them"
        if _is_cross_fit(other.others, record):
            yield path, "logits of models that were trained on some of them"


def _is_cross_fit(metadata: Mapping[str, str], record: Record) -> bool:
    """Whether it is of `amun prepare`, with these samples. Their own rows are removed by their requests."""
    if metadata.get("format") != TARGETS:
        return False
    content = parse_json("metadata", metadata.get("metadata", "{}"))
    ours = isinstance(content, dict) and content.get("data") == record.training_data
    before = content.get("previously_forgotten") if ours else None
    return ours and not (isinstance(before, list) and {*map(str, record.gone)} <= {*map(str, before)})


def _results(folder: Path, paths: list[Path], record: Record) -> Iterator[tuple[Path, str]]:
    """Adversarial examples, and pages with images, of results about some of the samples."""
    results = {name: stored(folder / name) for name in RESULTS if folder / name in paths}
    about = [read for read in results.values() if _is_about(read, record)]
    for path in paths:
        if about and path.suffix == ".html" and b"data:image" in path.read_bytes():
            yield path, "a page with images"
    if results.get("searches.json") in about:
        curves = sorted((folder / "curves").glob("*.safetensors"))
        for path in [*paths, *curves]:
            if all(_metadata(path).get(key) == value for key, value in FORMAT.items()):
                yield path, "adversarial examples: the images with little noise"


def _is_about(read: dict[str, Any], record: Record) -> bool:
    facts = read.get("facts")
    if not isinstance(facts, dict) or facts.get("training_data") != record.training_data:
        return False
    ids = read.get("ids", facts.get("ids"))
    return isinstance(ids, list) and any(is_integer(each) and each in record.gone for each in ids)


def _answers(folder: Path, paths: list[Path], record: Record) -> Iterator[tuple[Path, str]]:
    """What models say of all samples that were trained on half of them."""
    for name, start in ANSWERS.items():
        data = stored(folder / name).get("data") if folder / name in paths else None
        if isinstance(data, str) and data.partition(" ")[0] == record.training_data:
            for path in paths:
                if path.name.startswith(f"{start}-") and path.suffix == ".safetensors":
                    yield path, f"signals of a {start} model that was trained on some of them"


def _size(path: Path) -> int:
    inside = [Path(root) / name for root, _, names in os.walk(path) for name in names]
    return sum(each.lstat().st_size for each in [path, *inside] if not each.is_dir())


def _metadata(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
