"""amun prepare: out-of-fold targets for the method distill."""

import argparse
from pathlib import Path

from amun_ext.cli.arguments import (
    RESUMES,
    Commands,
    add_checkpoint,
    add_command,
    add_data,
    add_overwrite,
    add_recipe,
    add_workers,
    recipe,
)
from amun_ext.cli.loading import check_folder, check_free, load_for, rebuilt
from amun_ext.cli.start import add_init, init
from amun_ext.deletion.request import retraining
from amun_ext.unlearning import cross_fit
from amun_ext.validation import check_integer, require


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "prepare",
        run,
        "compute out-of-fold logits of the training set, for requests by out-of-fold distillation",
        "example:\n"
        "  amun prepare --model original.safetensors --data fashion-mnist-mini --workers 2 --out targets.safetensors\n"
        "  amun forget --model original.safetensors --data fashion-mnist-mini --ids 3,17 --method distill "
        "--targets targets.safetensors --out forgotten\n\n"
        "Each model is trained on all folds but one; its logits of that fold are kept, the model is not. This costs\n"
        "as much as training the original --folds - 1 times, once for all requests.",
        RESUMES,
    )
    add_data(command)
    add_checkpoint(command)
    command.add_argument("--out", type=Path, required=True, help="file of the targets (.safetensors)")
    command.add_argument("--folds", type=int, default=5, help="number of folds, at least 2 (default: %(default)s)")
    add_workers(command, "models to train")
    add_init(command)
    add_overwrite(command)
    add_recipe(command, "training (default: the recipe in the checkpoint)")


def run(options: argparse.Namespace) -> None:
    check_folder(options.out.parent)
    check_free(options.out.parent, options.out.name)
    require(options.out.suffix == ".safetensors", "--out", "a path that ends in .safetensors", options.out)
    check_integer("folds", options.folds, 2)
    splits = load_for(options)
    model, record = rebuilt(options, splits)
    first = init(options, splits, model, record)
    training = retraining(model, record, recipe(options), first).recipe
    if not options.quiet:
        print(cross_fit.cost(len(splits.train) - len(record.gone), options.folds, training), flush=True)
    targets = cross_fit.prepare(
        model,
        splits,
        training,
        out=options.out,
        folds=options.folds,
        init=first,
        previously_forgotten=record.gone,
        seed=options.seed,
        num_workers=options.workers,
        progress=not options.quiet,
        overwrite=options.overwrite,
    )
    print(f"out-of-fold logits of {len(targets)} samples are in {options.out}")
