"""amun train: a classifier and its checkpoint."""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from amun_ext import models
from amun_ext.checks import require
from amun_ext.cli.arguments import Commands, add_command, add_data, add_recipe, recipe
from amun_ext.cli.loading import check_folder, check_free
from amun_ext.data import load, manifest_of, training_data
from amun_ext.evaluation import accuracy, predict
from amun_ext.experiments import demo
from amun_ext.models.fresh import described
from amun_ext.models.state import count_classes
from amun_ext.training import Part, Pass, Run, fit


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "train",
        run,
        "train a classifier and keep its checkpoint",
        "example:\n  amun train --data fashion-mnist-mini --model small-cnn --epochs 60 --lr 0.05 --schedule cosine "
        "--out original.safetensors",
    )
    add_data(command)
    command.add_argument("--model", required=True, help=f"{', '.join(models.MODELS)}, or your own module:function")
    command.add_argument("--width", type=int, help="channels of the first layer (default: the architecture's own)")
    command.add_argument("--init", type=Path, help="checkpoint of weights to begin with (default: drawn by the seed)")
    command.add_argument("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")
    add_recipe(command, "training", demo.TRAINING)


def run(options: argparse.Namespace) -> None:
    training = replace(demo.TRAINING, **recipe(options))
    check_folder(options.out.parent)
    require(options.out.suffix == ".safetensors", "--out", "a path that ends in .safetensors", options.out)
    check_free(options.out.parent, options.out.name)
    splits = load(options.data, options.root, options.download)
    images, _ = splits.train.tensors
    shape = {"num_classes": len(splits.classes), "in_channels": images.shape[1]}
    torch.manual_seed(options.seed)
    model = models.build(options.model, **shape, width=options.width).to(options.device)
    count_classes(model, images)
    if options.init is not None:
        models.load_checkpoint(options.init, model)
    began = {} if options.init is None else {"init": str(described(model.state_dict()))}
    fit(model, [Pass([Part(splits.train)])], training, Run(seed=options.seed, progress=True))
    metadata = {
        "arch": options.model,
        "training_data": training_data(splits),
        **manifest_of(splits),
        "recipe": json.dumps(asdict(training)),
    }
    metadata |= began
    metadata |= {} if options.width is None else {"width": str(options.width)}
    models.save_checkpoint(options.out, model, metadata)
    sets = {"training": splits.train.tensors, "test": splits.test.tensors}
    reached = {name: accuracy(predict(model, images), labels) for name, (images, labels) in sets.items()}
    told = " and ".join(f"{percent:.2f} % on the {name} set" for name, percent in reached.items())
    print(f"accuracy {told}; wrote {options.out}")
