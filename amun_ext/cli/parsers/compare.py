"""The arguments of amun compare."""

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
)
from amun_ext.defaults import COMPARED, SETTINGS, names


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "compare",
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
        default=",".join(COMPARED),
        help=f"some of {', '.join(names('methods'))}; amun:no-forget is amun without D_F, amun:with-forget with it "
        "(default: %(default)s)",
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
