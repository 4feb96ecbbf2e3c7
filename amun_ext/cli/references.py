"""amun references: reference models for audits."""

import argparse
from pathlib import Path

from amun_ext import auditing
from amun_ext.cli.arguments import (
    RESUMES,
    Commands,
    add_checkpoint,
    add_command,
    add_data,
    add_recipe,
    add_workers,
    recipe,
)
from amun_ext.cli.loading import check_folder, load_for, rebuilt
from amun_ext.cli.start import add_init, init
from amun_ext.deletion.request import retraining


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "references",
        run,
        "train reference models on random halves of the data, for the attacks of audits",
        "example:\n"
        "  amun references --model original.safetensors --data fashion-mnist-mini --num-models 16 --workers 2 "
        "--out references\n\n"
        "Writes the outputs of each model for every sample into the folder --out, 8 bytes per sample. Run the same\n"
        "command again to resume, or with a larger --num-models to add models. One set of references serves every\n"
        "request and method with this architecture, recipe and data.",
        RESUMES,
    )
    add_data(command)
    add_checkpoint(command)
    command.add_argument("--out", type=Path, required=True, help="folder of the references")
    command.add_argument("--num-models", type=int, default=16, help="an even number (default: %(default)s)")
    add_workers(command, "models to train")
    add_init(command)
    add_recipe(command, "training (default: the recipe in the checkpoint)")


def run(options: argparse.Namespace) -> None:
    check_folder(options.out)
    splits = load_for(options)
    model, record = rebuilt(options, splits)
    first = init(options, splits, model, record)
    training = retraining(model, record, recipe(options), first)
    how = {
        "models": options.num_models,
        "seed": options.seed,
        "num_workers": options.workers,
        "progress": not options.quiet,
    }
    references = auditing.train_references(model, splits, training.recipe, out=options.out, init=first, **how)
    print(f"{len(references)} references of {references.membership.shape[1]} samples are in {options.out}")
