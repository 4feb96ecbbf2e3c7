"""Find traces of forgotten samples in files of amun: older models, examples, signals of models, pages with images.

Files are recognised by their content, not by their names.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from amun_ext.deletion.checkpoint_record import Record
from amun_ext.files import is_workplace
from amun_ext.reading import parse_json, read_object
from amun_ext.search.adversarial_set import FORMAT
from amun_ext.unlearning.cross_fit import FORMAT as TARGETS
from amun_ext.validation import InputError, is_integer

PAGES = {  # of a result
    "report.json": "report.html",
    "audit.json": "audit.html",
    "compare.json": "compare.html",
    "searches.json": "searches.html",
    "tuned.json": "tuning.html",
}
ANSWERS = {"references.json": "reference", "shadows.json": "shadow"}  # what they say of, model by model
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
    if record.training_data is None or not record.forgotten_ids:
        raise InputError("model must be a checkpoint with training_data and forgotten samples, got another")
    forgotten, found = {*record.forgotten_ids}, {}
    for place, folders, files in os.walk(folder):
        here = Path(place)
        if is_workplace(here):
            folders.clear()
            found[here] = UNFINISHED
            continue
        paths = sorted(here / name for name in files if not (here / name).is_symlink())
        of_models = [*_models(paths, record, forgotten), *_answers(here, paths, record)]
        for path, what in [*of_models, *_results(here, paths, record, forgotten)]:
            found[path] = what
    return [Trace(path, what, _size(path)) for path, what in sorted(found.items())]


def _models(paths: list[Path], record: Record, forgotten: set[int]) -> Iterator[tuple[Path, str]]:
    """Checkpoints that were trained on some of the samples, and have not forgotten them."""
    for path in paths:
        try:
            other = Record.read(_metadata(path), path.name)
            cross_fit = _is_cross_fit(other.others, record)
        except InputError:  # it is no file of ours, or a damaged one
            continue
        left = forgotten - {*other.forgotten_ids}
        if other.training_data == record.training_data and left:
            yield path, f"a model that has not forgotten {len(left)} of them"
        if cross_fit:
            yield path, "logits of models that were trained on some of them"


def _is_cross_fit(metadata: Mapping[str, str], record: Record) -> bool:
    """Whether it is of `amun prepare`, with these samples. Their own rows are removed by their requests."""
    if metadata.get("format") != TARGETS:
        return False
    content = parse_json("metadata", metadata.get("metadata", "{}"))
    ours = isinstance(content, dict) and content.get("data") == record.training_data
    before = content.get("previously_forgotten") if ours else None
    return ours and not (isinstance(before, list) and {*map(str, record.forgotten_ids)} <= {*map(str, before)})


def _results(folder: Path, paths: list[Path], record: Record, forgotten: set[int]) -> Iterator[tuple[Path, str]]:
    """Adversarial examples, and pages with images, of results about some of the samples."""
    pages = [name for name in PAGES if folder / name in paths]
    about = [name for name in pages if _is_about(read_object(folder / name), record, forgotten)]
    for path in [folder / PAGES[name] for name in about]:
        if path in paths and b"data:image" in path.read_bytes():
            yield path, "a page with images"
    if "searches.json" in about:
        curves = sorted((folder / "curves").glob("*.safetensors"))
        for path in [*paths, *curves]:
            if all(_metadata(path).get(key) == value for key, value in FORMAT.items()):
                yield path, "adversarial examples: the images with little noise"


def _is_about(read: dict[str, Any], record: Record, forgotten: set[int]) -> bool:
    facts = read.get("facts")
    if not isinstance(facts, dict) or facts.get("training_data") != record.training_data:
        return False
    ids = read.get("ids", facts.get("ids"))
    return isinstance(ids, list) and any(is_integer(each) and each in forgotten for each in ids)


def _answers(folder: Path, paths: list[Path], record: Record) -> Iterator[tuple[Path, str]]:
    """What models say of all samples that were trained on half of them."""
    for name, kind in ANSWERS.items():
        identity = read_object(folder / name) if folder / name in paths else {}
        data = identity.get("data")
        if isinstance(data, str) and data.partition(" ")[0] == record.training_data:
            for path in paths:
                if (format_of := _metadata(path).get("format")) is not None and format_of == identity.get("format"):
                    yield path, f"signals of a {kind} model that was trained on some of them"


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
