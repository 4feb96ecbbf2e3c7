"""The arguments of amun search."""

import argparse
from pathlib import Path

from amun_ext.cli.arguments import CHECKPOINT, DATA, RESUMES, Commands, add_command, add_ids, add_options
from amun_ext.defaults import CURVE_SAMPLES, SEARCHED, names


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "search",
        "find the closest adversarial examples of some samples with several methods, and compare the methods",
        "examples:\n"
        "  amun search --model original.safetensors --data fashion-mnist-mini --methods pgd,ddn,deepfool,ffgsm "
        "--out searches\n"
        "  amun search --model net.pt --arch my_net:build --data my_data:load --part test --count 1000 --no-curves "
        "--out searches\n\n"
        "Writes METHOD.safetensors (for amun_ext.AdversarialSet.load), searches.json and searches.html into the\n"
        "folder --out, and the searches of the curves into its folder curves. Run the same command again to resume.\n"
        "exit status: 0 done, 1 failed, 2 bad input, 3 some samples have no example (their ids are printed)",
        RESUMES,
    )
    add_options(command, *DATA, *CHECKPOINT)
    command.add_argument(
        "--part", default="train", metavar="train|test", help="set to search in (default: %(default)s)"
    )
    add_ids(command, required=False).add_argument(
        "--count", type=int, help="number of random samples, drawn by --seed (default: 200, or all)"
    )
    add_options(command, "--out")
    command.add_argument(
        "--png",
        type=Path,
        metavar="DIR",
        help="write METHOD-ID.png of each image, its example, and their difference",
    )
    add_options(command, "--overwrite", "--tables")
    group = command.add_argument_group("search")
    chosen = ",".join(SEARCHED)
    group.add_argument(
        "--methods",
        default=chosen,
        help=f"some of {', '.join(names('attacks'))} (default: %(default)s)",
    )
    group.add_argument(
        "--refine",
        type=int,
        default=0,
        help="forward passes that bring each example closer (default: %(default)s)",
    )
    group.add_argument(
        "--quantize",
        type=int,
        metavar="LEVELS",
        help="255: examples stay adversarial when saved as 8-bit images",
    )
    group.add_argument(
        "--min-margin", type=float, default=0.0, help="logits by which the wrong class must lead (default: %(default)s)"
    )
    group.add_argument("--precision", help="bfloat16: run most iterations in it (default: the dtype of the model)")
    group.add_argument(
        "--curves",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"also search up to {CURVE_SAMPLES} samples with other numbers of steps, for the plot of "
        "distance against gradients; with 200 samples this doubles the time (default: on)",
    )
