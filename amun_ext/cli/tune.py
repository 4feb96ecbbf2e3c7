"""amun tune: tune the options of unlearning methods."""

import argparse
import sys
from dataclasses import replace

from amun_ext import tuning
from amun_ext.cli.arguments import (
    CHECKPOINT,
    DATA,
    RESUMES,
    Commands,
    add_command,
    add_ids,
    add_options,
    add_recipe,
    given_recipe,
)
from amun_ext.cli.loading import input_facts, load_method_inputs, open_inputs, select_ids
from amun_ext.cli.output_folder import check_out, print_result
from amun_ext.tuning.tune import JOURNAL, STUDY

FILES = ("tuned.json", "trials.json", "tuning.html")


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
    add_options(command, *DATA, *CHECKPOINT)
    add_ids(command, required=True)
    add_options(command, "--out")
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
    add_options(command, "--targets", "--held-out", "--tables", "--workers", "--init")
    tuned = ("lr", "schedule")
    add_recipe(command, "fine-tuning (lr and schedule are tuned)", tuning.RECIPE, tuned)


def run(options: argparse.Namespace) -> int:
    resumed = (options.out / STUDY).is_file()
    check_out(options, *FILES, own=() if resumed else (*FILES, JOURNAL))
    inputs = load_method_inputs(options)
    splits, original, record, init = open_inputs(options, **inputs)
    tuned = tuning.tune(
        original,
        splits,
        select_ids(options, splits, record.forgotten_ids),
        [name.strip() for name in options.methods.split(",")],
        out=options.out,
        trials=options.trials,
        objective=options.objective,
        with_retain=not options.without_retain,
        recipe=replace(tuning.RECIPE, **given_recipe(options)),
        max_accuracy_drop=options.max_accuracy_drop,
        metadata=record.to_metadata(),
        init=init,
        **inputs,
        num_workers=options.workers,
        seed=options.seed,
        facts=input_facts(options, record),
        progress=not options.quiet,
    )
    tuning.write(tuned, options.out)
    print_result(options, tuned, f"tuned.json, trials.json and tuning.html into {options.out}")
    missing = [method for method in tuned.trials if tuned.best(method) is None]
    for method in missing:
        print(f"amun: no trial of {method} keeps the accuracy (--max-accuracy-drop, --trials)", file=sys.stderr)
    return 3 if missing else 0
