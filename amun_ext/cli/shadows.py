"""amun shadows: shadow models, for the per-sample attack of an audit."""

import argparse
from pathlib import Path

from amun_ext import auditing
from amun_ext.auditing.shadows import cost
from amun_ext.cli.arguments import CHECKPOINT, DATA, RESUMES, Commands, add_command, add_ids, add_options
from amun_ext.cli.loading import audited_ids, open_inputs
from amun_ext.cli.method import add_method, chosen_config, complete_config
from amun_ext.cli.output_folder import check_folder
from amun_ext.cli.provenance import check_method


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "shadows",
        run,
        "train shadow models of one request and one method, for an audit's per-sample attack (U-LiRA)",
        "example:\n"
        "  amun shadows --model forgotten/model.safetensors --data fashion-mnist-mini --num-models 16 --workers 2 "
        "--out shadows\n\n"
        "Give the flags of the amun forget request under audit. Each shadow is trained by the recipe in the\n"
        "checkpoint, on the retain set and on half of the ids and as many test samples, and then unlearns that half.\n"
        "The cost is that of training and of the request, --num-models times. Run the same command again to resume,\n"
        "or with a larger --num-models to add shadows.",
        RESUMES,
    )
    add_options(command, *DATA, *CHECKPOINT)
    add_ids(command, required=False)
    command.add_argument("--out", type=Path, required=True, help="folder of the shadows")
    command.add_argument("--num-models", type=int, default=16, help="even, at least 6 (default: %(default)s)")
    add_options(command, "--workers", "--init")
    add_method(command)


def run(options: argparse.Namespace) -> None:
    check_folder(options.out)
    config = chosen_config(options)
    inputs = open_inputs(options, **config.inputs)
    splits, model, record, init = inputs
    ids, previously_forgotten = audited_ids(options, splits, record)
    config = complete_config(config, inputs, options)
    recipe = inputs.retraining().recipe
    check_method("the flags", config.to_dict(), record)
    if not options.quiet:
        print(cost(splits, ids, config, recipe, options.num_models), flush=True)
    shadows = auditing.train_shadows(
        model,
        splits,
        ids,
        config,
        recipe,
        out=options.out,
        init=init,
        previously_forgotten=previously_forgotten,
        models=options.num_models,
        seed=options.seed,
        num_workers=options.workers,
        progress=not options.quiet,
    )
    print(f"{len(shadows)} shadows of {len(shadows.rows)} samples are in {options.out}")
