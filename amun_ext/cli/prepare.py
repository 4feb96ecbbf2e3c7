"""amun prepare: out-of-fold targets for the method distill."""

import argparse
from pathlib import Path

from amun_ext.cli.arguments import (
    CHECKPOINT,
    DATA,
    RESUMES,
    Commands,
    add_command,
    add_options,
    add_recipe,
    given_recipe,
)
from amun_ext.cli.loading import open_inputs
from amun_ext.cli.output_folder import check_out_file
from amun_ext.unlearning import cross_fit
from amun_ext.validation import check_integer


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
    add_options(command, *DATA, *CHECKPOINT)
    command.add_argument("--out", type=Path, required=True, help="file of the targets (.safetensors)")
    command.add_argument("--folds", type=int, default=5, help="number of folds, at least 2 (default: %(default)s)")
    add_options(command, "--workers", "--init", "--overwrite")
    add_recipe(command, "training (default: the recipe in the checkpoint)")


def run(options: argparse.Namespace) -> None:
    check_out_file(options.out)
    check_integer("folds", options.folds, 2)
    inputs = open_inputs(options)
    splits, model, record, init = inputs
    training = inputs.retraining(given_recipe(options)).recipe
    if not options.quiet:
        print(cross_fit.cost(len(splits.train) - len(record.forgotten_ids), options.folds, training), flush=True)
    targets = cross_fit.prepare(
        model,
        splits,
        training,
        out=options.out,
        folds=options.folds,
        init=init,
        previously_forgotten=record.forgotten_ids,
        seed=options.seed,
        num_workers=options.workers,
        progress=not options.quiet,
        overwrite=options.overwrite,
    )
    print(f"out-of-fold logits of {len(targets)} samples are in {options.out}")
