"""amun tune: tune the options of unlearning methods."""

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
    add_workers,
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
        "tune the options of unlearning methods, on a random proxy forget set instead of the request itself",
        "examples:\n"
        "  amun tune --model original.safetensors --data fashion-mnist-mini --fraction 0.1 --out tuned\n"
        "  amun tune --model original.safetensors --data fashion-mnist-mini --ids-file ids.csv --methods amun,rl,ft "
        "--objective retrain --trials 50 --workers 4 --out tuned\n\n"
        "Writes tuned.json (for amun forget --tuned and amun compare --tuned), trials.json and tuning.html into the\n"
        "folder --out. Run the same command again to resume, or with more --trials to add trials. Trials are measured\n"
        "on half of the test set, drawn by --seed; the other half is left for measuring the result.\n"
        "exit status: 0 done, 1 failed, 2 bad input, 3 no trial of some method keeps the accuracy",
        RESUMES,
    )
    add_data(command)
    add_checkpoint(command)
    add_ids(command, required=True)
    command.add_argument("--out", type=Path, required=True, help="folder of the results")
    command.add_argument(
        "--methods", default="amun", help=f"some of {', '.join(tuning.tunable())} (default: %(default)s)"
    )
    command.add_argument("--trials", type=int, default=30, help="trials per method (default: %(default)s)")
    command.add_argument(
        "--objective",
        choices=tuning.OBJECTIVES,
        default="held-out",
        help="held-out: match the results expected of retraining, estimated from the accuracy on held-out data; "
        "retrain: match a model retrained for this (default: %(default)s)",
    )
    command.add_argument(
        "--max-accuracy-drop",
        type=float,
        default=tuning.MAX_ACCURACY_DROP,
        help="points of held-out accuracy that a trial may lose (default: %(default)s)",
    )
    command.add_argument("--without-retain", action="store_true", help="fine-tune without the retain set")
    add_targets(command)
    add_tables(command)
    add_workers(command, "trials to run")
    add_init(command)
    add_recipe(command, "fine-tuning (lr and schedule are tuned)", tuning.RECIPE, searched=True)


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
