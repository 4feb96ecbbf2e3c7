"""Read what the arguments name: samples, models and options."""

import argparse
import copy
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amun_ext import models, tuning
from amun_ext.cli.provenance import check_held_out, check_targets
from amun_ext.data import ImageDataset, Splits, aligned, classes_of, load, training_data
from amun_ext.deletion import Record
from amun_ext.deletion.ids import some_ids
from amun_ext.deletion.keys import keys_of, named_rows
from amun_ext.deletion.request import retraining
from amun_ext.models.checkpoint import check_fits
from amun_ext.models.reinitialise import Init
from amun_ext.models.state import count_classes
from amun_ext.reading import check_file
from amun_ext.unlearning import Targets, load_targets
from amun_ext.unlearning.config import MethodConfig, load_tuned_options
from amun_ext.validation import listed, printable, require, unambiguous

LEFT_OUT = "; amun tune has used the others"


class Inputs(NamedTuple):
    splits: Splits  # --data, with the row numbers of --model's training
    model: nn.Module
    record: Record  # of the model
    init: Init  # the weights that retraining starts from

    def retraining(self, recipe: Mapping[str, object] | None = None) -> MethodConfig:
        """To train a model like this one from scratch, with single fields of the recipe changed."""
        return retraining(self.model, self.record, recipe, self.init)


def open_inputs(
    options: argparse.Namespace, *, targets: Targets | None = None, held_out: ImageDataset | None = None
) -> Inputs:
    """--data, --model and --init. InputError also for other inputs of a method that do not fit to them."""
    splits = load_splits(options)
    model, record = load_model(options, splits)
    check_targets(targets, model, record, splits)
    check_held_out(held_out, splits)
    init: Init = None
    if options.init is not None:
        start = copy.deepcopy(model)
        models.load_checkpoint(options.init, start)
        init = start.state_dict()
    elif ":" in (record.arch or ""):  # the user's own function draws the weights
        init = partial(models.build, str(record.arch), **_shape(splits))
    return Inputs(splits, model, record, init)


def _shape(splits: Splits) -> dict[str, int]:
    return {"num_classes": len(splits.classes), "in_channels": splits.train[:1][0].shape[1]}


def load_data(options: argparse.Namespace, record: Record | None = None) -> Splits:
    """The data of --data; a folder is resized and divided as for the training of the record's model."""
    record = record or Record()
    for name in ("resize", "test_fraction") if os.path.isdir(options.data) else ():
        known, given = getattr(record, name), getattr(options, name)
        flag = f"--{name.replace('_', '-')}"
        require(known is None or given in (None, known), flag, f"{known}, as the model was trained", given)
        setattr(options, name, given if known is None else known)
    how = {"resize": options.resize, "test_fraction": options.test_fraction}
    return load(options.data, options.data_dir, options.download, classes_of(record.to_metadata()), **how)


def load_splits(options: argparse.Namespace) -> Splits:
    """--data, with the row numbers of --model's training; prints which new files are left out."""
    record = read_record(options.model)
    splits = aligned(load_data(options, record), record.to_metadata())
    if splits.outside:
        remark = f"left out, because the model was not trained on it ({len(splits.outside)})"
        print(f"amun: {remark}: {printable(listed([*splits.outside]))}", file=sys.stderr)
    return splits


def read_record(path: Path) -> Record:
    """The record in the metadata of a checkpoint. InputError for a file that cannot be read."""
    check_file("checkpoint", path)
    return Record.read(models.read_metadata(path), path.name) if path.suffix == ".safetensors" else Record()


def select_ids(
    options: argparse.Namespace,
    splits: Splits,
    removed_ids: Sequence[int],
    *,
    part: str = "train",
    draw_from_all: bool = False,
) -> Tensor:
    """The rows chosen by the options of add_ids. `removed_ids` are not in a class, nor drawn unless `draw_from_all`."""
    data, removed = getattr(splits, part), set(removed_ids)
    ids, file = options.ids, options.ids_file
    require(options.groups is None or file is not None, "--groups", "left out without --ids-file", options.groups)
    if file is not None:
        folder = Path(options.data) if os.path.isdir(options.data) else None
        keys = keys_of(len(data), splits.names if part == "train" else None)
        ids = named_rows(file, keys, folder=folder, groups=options.groups)
        file = None if ids is not None else file
    if options.of_class is not None:
        label = class_label(options.of_class, splits.classes)
        ids = [row for row in data.labels.eq(label).nonzero()[:, 0].tolist() if row not in removed]
        require(bool(ids), "--class", "one that has samples left", f"'{unambiguous(options.of_class)}'")
    random = {"fraction": options.fraction, "count": getattr(options, "count", None)}
    if all(value is None for value in random.values()):
        return some_ids(len(data), ids=ids, file=file)
    rows = [row for row in range(len(data)) if draw_from_all or row not in removed]
    return torch.tensor(rows, device="cpu")[some_ids(len(rows), **random, seed=options.seed)]


def class_label(name: str, classes: Sequence[str]) -> int:
    """The label of a class, by its name or else its number."""
    known = f"one of {listed([*map(unambiguous, classes)])}, or a number below {len(classes)}"
    labels = [label for label, each in enumerate(classes) if each == name]  # a name first: those of digits are numerals
    require(len(labels) < 2, "--class", f"one of the numbers {labels}, which have one name", name)
    if not labels and re.fullmatch("[0-9]{1,9}", name):
        labels = [int(name)]
    require(bool(labels) and labels[0] < len(classes), "--class", known, f"'{unambiguous(name)}'")
    return labels[0]


def check_not_erased(ids: Tensor, splits: Splits) -> None:
    """InputError for ids of samples that are no longer in --data."""
    erased = sorted({*ids.tolist()} & {*splits.absent})
    actual = f"{erased[:5]}, which were forgotten and erased"
    require(not erased, "--ids", "of samples that are still in --data", actual)


def audited_ids(options: argparse.Namespace, splits: Splits, record: Record) -> tuple[Tensor, list[int]]:
    """The ids to audit, by default all that the checkpoint has forgotten; and the other ids that it has forgotten.

    InputError for other data than those that the checkpoint was trained on.
    """
    if all(each is None for each in (options.ids, options.ids_file, options.fraction, options.of_class)):
        expected = "given, because the checkpoint has forgotten no samples"
        require(bool(record.forgotten_ids), "--ids", expected, "none")
        there = sorted({*record.forgotten_ids} - {*splits.absent})
        expected = "given, because the samples that the checkpoint has forgotten are no longer in --data"
        require(bool(there), "--ids", expected, "none")
        ids = torch.tensor(there, device="cpu")
    else:
        ids = select_ids(options, splits, splits.absent, draw_from_all=True)  # as the request drew a fraction
    check_not_erased(ids, splits)
    same = record.training_data in (None, training_data(splits))
    require(same, "--data", "the data that the checkpoint was trained on", "other data")
    return ids, sorted({*record.forgotten_ids} - {*ids.tolist()})


def load_model(options: argparse.Namespace, splits: Splits, path: Path | None = None) -> tuple[nn.Module, Record]:
    """The model at `path`, by default that of --model, and the record in its checkpoint."""
    path = options.model if path is None else path
    record = read_record(path)
    arch = options.arch or record.arch
    require(arch is not None, "--arch", f"given, because {path} does not name its architecture", "none")
    # A file that comes from elsewhere must not choose what code is run here.
    expected = f"given, because {path} asks to run code, which needs your consent: --arch {arch!r}"
    require(options.arch is not None or ":" not in str(arch), "--arch", expected, "none")
    rows, unknown = len(splits.train), [number for number in record.forgotten_ids if number >= len(splits.train)]
    require(not unknown, f"{path.name}: forgotten", f"ids in [0, {rows}), the samples of --data", unknown[:5])
    recorded = record.width if arch in models.MODELS else None  # the user's own function takes no width
    width = recorded if options.width is None else options.width
    build = partial(models.build, str(arch), **_shape(splits), width=width)
    if arch in models.MODELS:  # the file may be much smaller than a model of this width
        with torch.device("meta"):
            empty = build()
        count = sum(tensor.numel() for tensor in empty.state_dict().values())
        actual = f"one of {count} values with width {width} in a file of {path.stat().st_size} bytes"
        require(count <= path.stat().st_size, str(path), "a checkpoint of this architecture", actual)
        check_fits(path, empty)  # a sparse file can claim any size
    model = build()
    models.load_checkpoint(path, model)
    model = model.to(options.device)
    classes = count_classes(model, splits.train[:2][0])
    require(classes == len(splits.classes), "--data", f"of the model's {classes} classes", len(splits.classes))
    return model, replace(record, arch=arch, width=width)


def load_method_inputs(options: argparse.Namespace) -> dict[str, Any]:
    """--targets and --held-out, which some methods need."""
    targets = None if options.targets is None else load_targets(options.targets)
    if options.held_out is None:
        return {"targets": targets, "held_out": None}
    others = argparse.Namespace(**{**vars(options), "data": options.held_out})
    return {"targets": targets, "held_out": load_data(others, read_record(options.model)).train}


def load_options(options: argparse.Namespace) -> dict[str, Any]:
    """The --preset, --tuned options and inputs of methods, as `resolve_config` takes them."""
    files = [load_tuned_options(path)[0] for path in options.tuned or ()]
    keys = [key for file in files for key in file]
    expected = "files of tuned options for different methods or settings"
    require(len(set(keys)) == len(keys), "--tuned", expected, "two for the same")
    tuned = {key: values for file in files for key, values in file.items()}
    return {"preset": options.preset, "tuned": tuned if files else None, **load_method_inputs(options)}


def held_back_test_set(options: argparse.Namespace, splits: Splits) -> tuple[ImageDataset, dict[str, str]]:
    """The test samples to measure on, without those that amun tune chose --tuned options with; and the fact of it."""
    files = [load_tuned_options(path)[1] for path in options.tuned or ()]
    seeds: set[int] = {metadata["seed"] for metadata in files if "seed" in metadata}
    require(len(seeds) <= 1, "--tuned", "files with the same seed, which held out the same test samples", sorted(seeds))
    test = tuning.split_test_set(splits.test, seeds.pop())[1] if seeds else splits.test
    tested_on = f"{len(test)} of {len(splits.test)} test samples" + LEFT_OUT * (len(test) < len(splits.test))
    return test, {"tested_on": tested_on}


def input_facts(options: argparse.Namespace, record: Record) -> dict[str, object]:
    """The facts about --model and --data for a page; files are given by name, without their folders."""
    facts = {
        "model": options.model.name,
        "arch": record.arch,
        "data": Path(options.data).name,
        "training_data": record.training_data,
        "resize": options.resize,
        "test_fraction": options.test_fraction,
        "device": str(options.device),
    }
    return {name: value for name, value in facts.items() if value is not None}
