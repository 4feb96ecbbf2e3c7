"""Load what the arguments name: samples, models and options; check the folder --out."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amun_ext import models, tuning
from amun_ext.cli.earlier import RECORDS
from amun_ext.data import ImageDataset, Splits, aligned, classes_of, load, training_data
from amun_ext.deletion import Record, forget_ids
from amun_ext.deletion.keys import keys_of, named_rows
from amun_ext.files import no_link
from amun_ext.models.checkpoint import check_fits
from amun_ext.models.state import count_classes
from amun_ext.reading import check_file
from amun_ext.report import Result
from amun_ext.unlearning import Targets, load_targets
from amun_ext.unlearning.config import load_tuned_options
from amun_ext.validation import listed, printable, require, unambiguous

TABLES = "tables"
LEFT_OUT = "; amun tune has used the others"


def load_data(options: argparse.Namespace, record: Record | None = None) -> Splits:
    """What add_data asks for; a folder is resized and divided as it was for the training of the record's model."""
    record = record or Record()
    for name in ("resize", "test_fraction") if os.path.isdir(options.data) else ():
        known, given = getattr(record, name), getattr(options, name)
        flag = f"--{name.replace('_', '-')}"
        require(known is None or given in (None, known), flag, f"{known}, as the model was trained", given)
        setattr(options, name, given if known is None else known)
    how = {"resize": options.resize, "test_fraction": options.test_fraction}
    return load(options.data, options.data_dir, options.download, classes_of(record.to_metadata()), **how)


def load_for(options: argparse.Namespace) -> Splits:
    """--data, in the rows that --model knows them by; it tells of what is left out."""
    record = record_of(options.model)
    splits = aligned(load_data(options, record), record.to_metadata())
    if splits.outside:
        remark = f"left out, because the model was not trained on it ({len(splits.outside)})"
        print(f"amun: {remark}: {printable(listed([*splits.outside]))}", file=sys.stderr)
    return splits


def record_of(path: Path) -> Record:
    """What the checkpoint says of itself. InputError for what is no file that can be read."""
    check_file("checkpoint", path)
    return Record.read(models.read_metadata(path), path.name) if path.suffix == ".safetensors" else Record()


def ids_to_forget(options: argparse.Namespace, splits: Splits, removed_ids: Sequence[int]) -> Tensor:
    """The rows that add_ids asks for; a class and a fraction are of what is left without `removed_ids`."""
    how = id_arguments(options, splits.train, splits.classes, removed_ids, splits.names)
    if options.fraction is None or not removed_ids:
        return forget_ids(len(splits.train), **how, seed=options.seed)
    left = torch.tensor(sorted({*range(len(splits.train))} - {*removed_ids}), dtype=torch.int64, device="cpu")
    return left[forget_ids(len(left), **how, seed=options.seed)]


def id_arguments(
    options: argparse.Namespace,
    data: ImageDataset,
    classes: Sequence[str],
    gone: Sequence[int] = (),
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The arguments of `forget_ids` from those of add_ids; keys and classes are resolved to ids that are not `gone`."""
    ids, file = options.ids, options.ids_file
    require(options.groups is None or file is not None, "--groups", "left out without --ids-file", options.groups)
    if file is not None:
        folder = Path(options.data) if os.path.isdir(options.data) else None
        ids = named_rows(file, keys_of(len(data), names), folder=folder, groups=options.groups)
        file = None if ids is not None else file
    if options.of_class is not None:
        named = {name: number for number, name in enumerate(classes)}  # a name first: those of digits are numerals
        numeral = re.fullmatch("[0-9]{1,9}", options.of_class) is not None
        number = named.get(options.of_class, int(options.of_class) if numeral else -1)
        known = f"one of {listed([*map(unambiguous, classes)])}, or a number below {len(classes)}"
        require(0 <= number < len(classes), "--class", known, f"'{unambiguous(options.of_class)}'")
        alike = [number for number, name in enumerate(classes) if name == options.of_class]
        require(len(alike) < 2, "--class", f"one of the numbers {alike}, which have one name", options.of_class)
        removed_ids = set(gone)
        ids = [row for row in data.labels.eq(number).nonzero()[:, 0].tolist() if row not in removed_ids]
        require(bool(ids), "--class", "one that has samples left", f"'{unambiguous(options.of_class)}'")
    return {"ids": ids, "file": file, "fraction": options.fraction}


def audited_ids(options: argparse.Namespace, splits: Splits, record: Record) -> tuple[Tensor, list[int]]:
    """The ids to audit, by default all that the checkpoint has forgotten; and the other ids that it has forgotten.

    InputError for other data than those that the checkpoint was trained on.
    """
    if all(each is None for each in (options.ids, options.ids_file, options.fraction, options.of_class)):
        require(bool(record.gone), "--ids", "given, because the checkpoint has forgotten no samples", "none")
        there = sorted({*record.gone} - {*splits.absent})
        require(
            bool(there),
            "--ids",
            "given, because the samples that the checkpoint has forgotten are no longer in --data",
            "none",
        )
        ids = forget_ids(len(splits.train), ids=there)
    else:
        how = id_arguments(options, splits.train, splits.classes, splits.absent, splits.names)
        ids = forget_ids(len(splits.train), **how, seed=options.seed)  # also a fraction as the request drew it
    gone = sorted({*ids.tolist()} & {*splits.absent})
    require(not gone, "--ids", "of samples that are still in --data", f"{gone[:5]}, which were forgotten and erased")
    known = record.training_data
    require(
        known in (None, training_data(splits)), "--data", "the data that the checkpoint was trained on", "other data"
    )
    return ids, sorted({*record.gone} - {*ids.tolist()})


def chosen_options(options: argparse.Namespace) -> dict[str, Any]:
    """What add_settings says, as `resolve_config` takes it."""
    files = [load_tuned_options(path)[0] for path in options.tuned or ()]
    keys = [key for file in files for key in file]
    expected = "files of tuned options for different methods or settings"
    require(len(set(keys)) == len(keys), "--tuned", expected, "two for the same")
    tuned = {key: values for file in files for key, values in file.items()}
    return {"preset": options.preset, "tuned": tuned if files else None, "targets": targets_of(options)}


def targets_of(options: argparse.Namespace) -> Targets | None:
    """What add_targets asks for."""
    return None if options.targets is None else load_targets(options.targets)


def unseen(options: argparse.Namespace, splits: Splits) -> tuple[ImageDataset, dict[str, str]]:
    """The test samples to measure on, not those that options were chosen with; and the fact for a reader."""
    files = [load_tuned_options(path)[1] for path in options.tuned or ()]
    seeds: set[int] = {metadata["seed"] for metadata in files if "seed" in metadata}
    require(len(seeds) <= 1, "--tuned", "files with the same seed, which held out the same test samples", sorted(seeds))
    test = tuning.split_test_set(splits.test, seeds.pop())[1] if seeds else splits.test
    tested_on = f"{len(test)} of {len(splits.test)} test samples" + LEFT_OUT * (len(test) < len(splits.test))
    return test, {"tested_on": tested_on}


def rebuilt(options: argparse.Namespace, splits: Splits, path: Path | None = None) -> tuple[nn.Module, Record]:
    """The model at `path`, by default that of --model, and what its checkpoint says of it."""
    path = options.model if path is None else path
    record = record_of(path)
    arch = options.arch or record.arch
    require(arch is not None, "--arch", f"given, because {path} does not name its architecture", "none")
    # A file that comes from elsewhere must not choose what code is run here.
    expected = f"given, because {path} asks to run code, which needs your consent: --arch {arch!r}"
    require(options.arch is not None or ":" not in str(arch), "--arch", expected, "none")
    rows, unknown = len(splits.train), [number for number in record.gone if number >= len(splits.train)]
    require(not unknown, f"{path.name}: forgotten", f"ids in [0, {rows}), the samples of --data", unknown[:5])
    known = record.width if arch in models.MODELS else None  # a function of the user's takes none
    width = known if options.width is None else options.width
    images = splits.train[:2][0]
    sizes: dict[str, Any] = {"num_classes": len(splits.classes), "in_channels": images.shape[1], "width": width}
    if arch in models.MODELS:  # not to make one that is larger than the file by far
        with torch.device("meta"):
            empty = models.build(str(arch), **sizes)
        count = sum(tensor.numel() for tensor in empty.state_dict().values())
        actual = f"one of {count} values with width {width} in a file of {path.stat().st_size} bytes"
        require(count <= path.stat().st_size, str(path), "a checkpoint of this architecture", actual)
        check_fits(path, empty)  # a file with holes has any size
    model = models.build(str(arch), **sizes)
    models.load_checkpoint(path, model)
    model = model.to(options.device)
    classes = count_classes(model, images)
    require(classes == len(splits.classes), "--data", f"of the model's {classes} classes", len(splits.classes))
    return model, replace(record, arch=arch, width=width)


def about(options: argparse.Namespace, record: Record) -> dict[str, object]:
    """Facts of a page; files are given by name, without their folders."""
    told = {"model": options.model.name, "arch": record.arch, "data": Path(options.data).name}
    known = {} if record.training_data is None else {"training_data": record.training_data}
    sized = {"resize": options.resize, "test_fraction": options.test_fraction}
    return {
        **told,
        **known,
        **{name: value for name, value in sized.items() if value is not None},
        "device": str(options.device),
    }


def check_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that results cannot be written to."""
    utf8 = not any("\ud800" <= letter <= "\udfff" for letter in str(folder))  # safetensors opens no other
    require(utf8, "--out", "a name in UTF-8", ascii(str(folder)))
    require(printable(str(folder)) == str(folder), "--out", "a path that can be printed", folder)
    links = [path for path in (folder, *folder.parents) if path.is_symlink() and not path.exists()]
    require(not links, "--out", "in a folder", f"{links and links[0]}, a broken symbolic link")
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    require(existing.is_dir(), "--out", "in a folder", f"{existing}, which is a file")
    require(os.access(existing, os.W_OK), "--out", "in a folder that can be written to", existing)


def tell(options: argparse.Namespace, result: Result, wrote: str) -> None:
    """Print a result, and what was written; with --tables also write these."""
    if options.tables:
        result.write_tables(options.out / TABLES)
        wrote += f" (and its folder {TABLES})"
    print(f"{result.to_text()}\n\nwrote {wrote}")


def check_tables(options: argparse.Namespace) -> None:
    """That --tables has somewhere to write to."""
    if options.tables:
        no_link(options.out / TABLES)
        ours = any((options.out / name).is_file() for name in RECORDS)  # of an earlier run, which have been looked at
        there = (options.out / TABLES).exists()
        require(ours or not there, "--out", f"without a folder {TABLES} of other files", options.out)
        check_folder(options.out / TABLES)


def check_free(folder: Path, *names: str) -> None:
    for name in names:
        require(not (folder / name).is_dir(), "--out", f"free to hold a file {name}", "a folder of that name")
        no_link(folder / name)
