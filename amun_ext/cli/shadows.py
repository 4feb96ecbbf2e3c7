"""amun shadows: shadow models, for the per-sample attack of an audit."""

import argparse
from pathlib import Path

from amun_ext import auditing
from amun_ext.auditing.shadows import cost
from amun_ext.cli.arguments import RESUMES, Commands, add_checkpoint, add_command, add_data, add_ids, add_workers
from amun_ext.cli.loading import audited_ids, check_folder, load_for, rebuilt
from amun_ext.cli.method import add_method, chosen_config, settled
from amun_ext.cli.provenance import check_method, check_targets
from amun_ext.cli.start import add_init, init
from amun_ext.deletion.request import retraining


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
    add_data(command)
    add_checkpoint(command)
    add_ids(command, required=False)
    command.add_argument("--out", type=Path, required=True, help="folder of the shadows")
    command.add_argument("--num-models", type=int, default=16, help="even, at least 6 (default: %(default)s)")
    add_workers(command, "models to train")
    add_method(command)
    add_init(command)


def run(options: argparse.Namespace) -> None:
    check_folder(options.out)
    chosen = chosen_config(options)
    splits = load_for(options)
    model, record = rebuilt(options, splits)
    ids, previously_forgotten = audited_ids(options, splits, record)
    first = init(options, splits, model, record)
    chosen = settled(chosen, model, record, options, first)
    check_targets(chosen.targets, model, record, splits)
    training = retraining(model, record, init=first).recipe
    check_method("the flags", chosen.to_dict(), record)
    if not options.quiet:
        print(f"{cost(splits, ids, chosen, training, options.num_models)}", flush=True)
    how = {
        "models": options.num_models,
        "seed": options.seed,
        "num_workers": options.workers,
        "progress": not options.quiet,
    }
    shadows = auditing.train_shadows(
        model,
        splits,
        ids,
        chosen,
        training,
        out=options.out,
        init=first,
        previously_forgotten=previously_forgotten,
        **how,
    )
    print(f"{len(shadows)} shadows of {len(shadows.rows)} samples are in {options.out}")
