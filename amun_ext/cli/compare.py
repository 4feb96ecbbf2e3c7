"""amun compare: compare methods, over several seeds, with retraining."""

import argparse

from amun_ext.cli.arguments import (
    given_options,
    given_recipe,
)
from amun_ext.cli.loading import held_back_test_set, input_facts, load_options, open_inputs, select_ids
from amun_ext.cli.output_folder import check_no_other_result, check_out, print_result, request_digest
from amun_ext.deletion.request import sets
from amun_ext.distributed import by_first_rank
from amun_ext.experiments import compare
from amun_ext.experiments.comparison import SETTINGS
from amun_ext.unlearning.methods import INPUTS

FILES = ("compare.json", "compare.html")


def run(options: argparse.Namespace) -> None:
    check_out(options, *FILES, own=FILES)
    names = [name.strip() for name in options.methods.split(",")]
    settings = [*SETTINGS] if options.settings == "both" else [options.settings]
    chosen = load_options(options)
    rows = {setting: compare.resolve_configs(names, setting == "with", **chosen) for setting in settings}
    inputs = open_inputs(options, **{name: chosen[name] for name in INPUTS})
    splits, original, record, _ = inputs
    ids = select_ids(options, splits, record.forgotten_ids)
    request = request_digest(options.model, ids.tolist())
    check_no_other_result(options, FILES, request)
    test, tested_on = held_back_test_set(options, splits)
    compared = compare.compare(
        original,
        test,
        sets(splits, ids, record, **given_options(options, "include_duplicates", "duplicate_distance")),
        rows,
        inputs.retraining(given_recipe(options)),
        seeds=options.seeds,
        out=options.out,
        facts={
            **input_facts(options, record),
            "request": request,
            **({} if options.fraction is None else {"forget_set": f"drawn by seed {options.seed}"}),
            **tested_on,
        },
        progress=not options.quiet,
    )
    by_first_rank(compare.write)(compared, options.out)
    print_result(options, compared, f"{' and '.join(FILES)} into {options.out}")
