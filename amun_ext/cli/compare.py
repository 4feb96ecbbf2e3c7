"""amun compare: compare methods, over several seeds, with retraining."""

import argparse

from amun_ext.cli.arguments import (
    CHECKPOINT,
    DATA,
    RESUMES,
    Commands,
    add_command,
    add_ids,
    add_options,
    add_recipe,
    add_settings,
    given_options,
    given_recipe,
)
from amun_ext.cli.loading import held_back_test_set, input_facts, load_options, open_inputs, select_ids
from amun_ext.cli.output_folder import check_no_other_result, check_out, print_result, request_digest
from amun_ext.deletion.request import sets
from amun_ext.experiments import compare
from amun_ext.experiments.comparison import SETTINGS
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.methods import INPUTS

FILES = ("compare.json", "compare.html")


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "compare",
        run,
        "unlearn the same samples with several methods and seeds, and compare the models with retraining",
        "examples:\n"
        "  amun compare --model original.safetensors --data fashion-mnist-mini --fraction 0.1 --out compared\n"
        "  amun compare --model original.safetensors --data fashion-mnist-mini --fraction 0.1 --methods ft,amun,salun "
        "--settings with --tuned tuned.json --out compared\n\n"
        "Writes compare.json and compare.html into the folder --out, and the result of each method and seed into its\n"
        "folder cells. Run the same command again to resume; a later command reuses equal results. The table always\n"
        "has rows for retraining and for the original model. A method that is not in --preset or --tuned runs with\n"
        "its default options. --seed only draws the --fraction; methods and retraining run with the seeds 0, 1, ...",
        RESUMES,
    )
    add_options(command, *DATA, *CHECKPOINT)
    add_ids(command, required=True)
    add_options(command, "--out", "--include-duplicates", "--duplicate-distance")
    command.add_argument(
        "--methods",
        default=",".join(compare.DEFAULT),
        help=f"some of {', '.join(METHODS)}; amun:no-forget is amun without D_F, amun:with-forget with it (default: "
        "%(default)s)",
    )
    command.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    command.add_argument(
        "--settings",
        choices=("both", *SETTINGS),
        default="both",
        help="with the retain set, without, or both (default: %(default)s)",
    )
    add_settings(command)
    add_options(command, "--init", "--overwrite", "--tables")
    add_recipe(command, "retraining (default: the recipe in the checkpoint)")


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
    compare.write(compared, options.out)
    print_result(options, compared, f"{' and '.join(FILES)} into {options.out}")
