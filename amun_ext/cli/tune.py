"""amun tune: tune the options of unlearning methods."""

import argparse
import sys
from dataclasses import replace

from amun_ext import tuning
from amun_ext.cli.arguments import (
    given_recipe,
)
from amun_ext.cli.loading import input_facts, load_method_inputs, open_inputs, select_ids
from amun_ext.cli.output_folder import check_out, print_result
from amun_ext.distributed import by_first_rank
from amun_ext.recipe import TUNING
from amun_ext.tuning.tune import JOURNAL, STUDY

FILES = ("tuned.json", "trials.json", "tuning.html")


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
        recipe=replace(TUNING, **given_recipe(options)),
        max_accuracy_drop=options.max_accuracy_drop,
        metadata=record.to_metadata(),
        init=init,
        **inputs,
        num_workers=options.workers,
        seed=options.seed,
        facts=input_facts(options, record),
        progress=not options.quiet,
    )
    by_first_rank(tuning.write)(tuned, options.out)
    print_result(options, tuned, f"tuned.json, trials.json and tuning.html into {options.out}")
    missing = [method for method in tuned.trials if tuned.best(method) is None]
    for method in missing:
        print(f"amun: no trial of {method} keeps the accuracy (--max-accuracy-drop, --trials)", file=sys.stderr)
    return 3 if missing else 0
