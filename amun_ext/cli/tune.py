"""amun tune: options to unlearn with."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from amun_ext import tuning
from amun_ext.cli.arguments import (
    RESUMES,
    Commands,
    add_checkpoint,
    add_command,
    add_data,
    add_ids,
    add_recipe,
    add_tables,
    add_targets,
    recipe,
)
from amun_ext.cli.earlier import check_no_strangers
from amun_ext.cli.loading import (
    about,
    check_folder,
    check_free,
    check_tables,
    ids_to_forget,
    load_for,
    rebuilt,
    targets_of,
    tell,
)
from amun_ext.cli.provenance import check_targets
from amun_ext.cli.start import add_init, init
from amun_ext.tuning.tune import JOURNAL, STUDY


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "tune",
        run,
        "search the options to unlearn with, on other training samples that stand in for those to be forgotten",
        "examples:\n"
        "  amun tune --model original.safetensors --data fashion-mnist-mini --fraction 0.1 --out tuned\n"
        "  amun tune --model original.safetensors --data fashion-mnist-mini --ids-file ids.csv --methods amun,rl,ft "
        "--objective retrain --trials 50 --workers 4 --out tuned\n\n"
        "writes tuned.json (for amun forget --tuned and amun compare --tuned), trials.json and tuning.html into the\n"
        "folder --out, and keeps there what it goes on with: with the same arguments a command that was stopped does\n"
        "nothing twice, and with more --trials it adds some. Half of the test set, drawn by --seed, is looked at.\n"
        "exit status: 0 done, 1 failed, 2 bad input, 3 a method has no trial that keeps the accuracy",
        RESUMES,
    )
    add_data(command)
    add_checkpoint(command)
    add_ids(command, required=True)
    command.add_argument("--out", type=Path, required=True, help="folder of the results")
    command.add_argument(
        "--methods", default="amun", help=f"some of {', '.join(tuning.tunable())} (default: %(default)s)"
    )
    command.add_argument("--trials", type=int, default=30, help="of each method (default: %(default)s)")
    command.add_argument(
        "--objective",
        choices=tuning.OBJECTIVES,
        default="held-out",
        help="likeness to what retraining is expected to give, by the model's own accuracy on held-out data; or to a "
        "model that is retrained for this (default: %(default)s)",
    )
    told = "points of held-out accuracy that may be lost (default: %(default)s)"
    command.add_argument("--max-accuracy-drop", type=float, default=tuning.MAX_ACCURACY_DROP, help=told)
    command.add_argument("--without-retain", action="store_true", help="fine-tune without the rest of the data")
    add_targets(command)
    add_tables(command)
    command.add_argument("--workers", type=int, default=1, help="trials at once, a process each (default: %(default)s)")
    add_init(command)
    add_recipe(command, "fine-tuning; lr and schedule are searched", tuning.RECIPE, searched=True)


def run(options: argparse.Namespace) -> int:
    check_folder(options.out)
    names = "tuned.json", "trials.json", "tuning.html"
    check_free(options.out, *names)
    if not (options.out / STUDY).is_file():  # which a study begins with
        check_no_strangers(options.out, *names, JOURNAL)
    check_tables(options)
    splits = load_for(options)
    original, record = rebuilt(options, splits)
    targets = targets_of(options)
    check_targets(targets, original, record, splits)
    ids = ids_to_forget(options, splits, record.gone)
    tuned = tuning.tune(
        original,
        splits,
        ids,
        [name.strip() for name in options.methods.split(",")],
        out=options.out,
        trials=options.trials,
        objective=options.objective,
        with_retain=not options.without_retain,
        recipe=replace(tuning.RECIPE, **recipe(options)),
        max_accuracy_drop=options.max_accuracy_drop,
        metadata=record.to_metadata(),
        init=init(options, splits, original, record),
        targets=targets,
        num_workers=options.workers,
        seed=options.seed,
        facts=about(options, record),
        progress=not options.quiet,
    )
    tuning.write(tuned, options.out)
    tell(options, tuned, f"tuned.json, trials.json and tuning.html into {options.out}")
    missing = [method for method in tuned.trials if tuned.best(method) is None]
    for method in missing:
        print(f"amun: no trial of {method} keeps the accuracy (--max-accuracy-drop, --trials)", file=sys.stderr)
    return 3 if missing else 0
