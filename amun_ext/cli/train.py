"""amun train: a classifier and its checkpoint."""

import argparse
import contextlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from amun_ext import models
from amun_ext.cli.arguments import given_recipe
from amun_ext.cli.loading import load_data
from amun_ext.cli.output_folder import NO_OTHER_RESULT, check_out_file
from amun_ext.data import manifest_of, training_data
from amun_ext.deletion import Record
from amun_ext.distributed import by_first_rank, entered_by_first_rank
from amun_ext.files import keep_only, workplace
from amun_ext.models import accuracy, predict
from amun_ext.models.reinitialise import describe_init
from amun_ext.models.state import count_classes
from amun_ext.recipe import RECIPES, TRAINING
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.validation import InputError, require

RESUME = "training.safetensors"


def run(options: argparse.Namespace) -> None:
    start = TRAINING if options.recipe is None else RECIPES[options.recipe]
    training = replace(start, **given_recipe(options))
    check_out_file(options.out)
    with entered_by_first_rank(workplace(options.out.parent, f"train-{options.out.name}")) as place:
        _train(options, training, place)


def _train(options: argparse.Namespace, training: Recipe, place: Path) -> None:
    splits = load_data(options)
    images = splits.train[:2][0]
    shape = {"num_classes": len(splits.classes), "in_channels": images.shape[1]}
    torch.manual_seed(options.seed)
    model = models.build(options.model, **shape, width=options.width).to(options.device)
    count_classes(model, images)
    if options.init is not None:
        models.load_checkpoint(options.init, model)
    record = Record(
        options.model,
        options.width,
        training_data(splits),
        training,
        options.seed,
        init=None if options.init is None else describe_init(model.state_dict()),
        manifest=manifest_of(splits),
        resize=options.resize,
        test_fraction=options.test_fraction,
    )
    metadata = record.to_metadata()
    if options.out.exists() and not options.overwrite:
        theirs: dict[str, str] = {}
        with contextlib.suppress(InputError):  # not a checkpoint
            theirs = models.read_metadata(options.out)
        differ = [name for name in metadata.keys() | theirs.keys() if metadata.get(name) != theirs.get(name)]
        actual = f"{options.out}, a model with other {', '.join(sorted(differ))}"
        require(not differ, "--out", NO_OTHER_RESULT, actual)
        print(f"already done: this training's model is in {options.out}")
        return
    by_first_rank(keep_only)(place, json.dumps(metadata, sort_keys=True), options.overwrite)
    how = RunOptions(seed=options.seed, checkpoint=place / RESUME, progress=not options.quiet)
    fit(model, [Pass([DataPart(splits.train)])], training, how)
    by_first_rank(models.save_checkpoint)(place / options.out.name, model, metadata)
    by_first_rank((place / options.out.name).replace)(options.out)
    sets = {"training": splits.train, "test": splits.test}
    reached = {name: accuracy(predict(model, data), data.labels) for name, data in sets.items()}
    accuracies = " and ".join(f"{percent:.2f} % on the {name} set" for name, percent in reached.items())
    print(f"accuracy {accuracies}; wrote {options.out}")
