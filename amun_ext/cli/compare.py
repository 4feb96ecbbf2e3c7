"""amun compare: compare methods, over several seeds, with retraining."""

import argparse
from pathlib import Path

from amun_ext.cli.arguments import (
    RESUMES,
    Commands,
    add_checkpoint,
    add_command,
    add_data,
    add_duplicates,
    add_ids,
    add_overwrite,
    add_recipe,
    add_settings,
    add_tables,
    recipe,
)
from amun_ext.cli.earlier import check_no_other_request, check_no_strangers, request_of
from amun_ext.cli.loading import (
    about,
    check_folder,
    check_free,
    check_tables,
    chosen_options,
    ids_to_forget,
    load_for,
    rebuilt,
    tell,
    unseen,
)
from amun_ext.cli.provenance import check_targets
from amun_ext.cli.start import add_init, init
from amun_ext.deletion.request import retraining, sets
from amun_ext.experiments import compare
from amun_ext.experiments.comparison import SETTINGS
from amun_ext.unlearning import METHODS
from amun_ext.validation import check_integer


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
    add_data(command)
    add_checkpoint(command)
    add_ids(command, required=True)
    command.add_argument("--out", type=Path, required=True, help="folder of the results")
    add_duplicates(command)
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
    add_init(command)
    add_overwrite(command)
    add_tables(command)
    add_recipe(command, "retraining (default: the recipe in the checkpoint)")


def run(options: argparse.Namespace) -> None:
    check_folder(options.out)
    check_free(options.out, "compare.json", "compare.html")
    check_no_strangers(options.out, "compare.json", "compare.html")
    check_tables(options)
    names = [name.strip() for name in options.methods.split(",")]
    settings = [*SETTINGS] if options.settings == "both" else [options.settings]
    chosen = chosen_options(options)
    rows = {setting: compare.resolve_configs(names, setting == "with", **chosen) for setting in settings}
    check_integer("seeds", options.seeds, 1)
    splits = load_for(options)
    original, record = rebuilt(options, splits)
    check_targets(chosen["targets"], original, record, splits)
    ids = ids_to_forget(options, splits, record.gone)
    request = request_of(options.model, ids.tolist())
    check_no_other_request(options, request, "compare.json")
    test, tested_on = unseen(options, splits)
    compared = compare.compare(
        original,
        test,
        sets(
            splits,
            ids,
            record,
            include_duplicates=options.include_duplicates,
            duplicate_distance=options.duplicate_distance,
        ),
        rows,
        retraining(original, record, recipe(options), init(options, splits, original, record)),
        seeds=options.seeds,
        out=options.out,
        facts={
            **about(options, record),
            "request": request,
            **({} if options.fraction is None else {"forget_set": f"drawn by seed {options.seed}"}),
            **tested_on,
        },
        progress=not options.quiet,
    )
    compare.write(compared, options.out)
    tell(options, compared, f"compare.json and compare.html into {options.out}")
