"""amun references: models for audits to compare with."""

import argparse
from pathlib import Path

from amun_ext import auditing
from amun_ext.cli.arguments import RESUMES, Commands, add_checkpoint, add_command, add_data, add_recipe, recipe
from amun_ext.cli.loading import check_folder, load_for, rebuilt
from amun_ext.cli.start import add_init, init
from amun_ext.deletion.request import retraining


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "references",
        run,
        "train reference models on random halves of the data, for audits to compare with",
        "example:\n"
        "  amun references --model original.safetensors --data fashion-mnist-mini --num-models 16 --workers 2 "
        "--out references\n\n"
        "writes what each model says of every sample into the folder --out, 8 bytes a sample; with the same arguments\n"
        "a command that was stopped goes on where it was, and with more --num-models it adds some. One set serves\n"
        "every request and every method that starts from this architecture, recipe and data.",
        RESUMES,
    )
    add_data(command)
    add_checkpoint(command)
    command.add_argument("--out", type=Path, required=True, help="folder of the references")
    command.add_argument("--num-models", type=int, default=16, help="an even number (default: %(default)s)")
    command.add_argument("--workers", type=int, default=1, help="models at once, a process each (default: %(default)s)")
    add_init(command)
    add_recipe(command, "training (default: as the checkpoint says that it was trained)")


def run(options: argparse.Namespace) -> None:
    check_folder(options.out)
    splits = load_for(options)
    model, record = rebuilt(options, splits)
    first = init(options, splits, model, record)
    anew = retraining(model, record, recipe(options), first)
    how = {
        "models": options.num_models,
        "seed": options.seed,
        "num_workers": options.workers,
        "progress": not options.quiet,
    }
    made = auditing.train_references(model, splits, anew.recipe, out=options.out, init=first, **how)
    print(f"{len(made)} references of {made.membership.shape[1]} samples are in {options.out}")
