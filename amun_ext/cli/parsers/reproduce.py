"""The arguments of amun reproduce."""

from pathlib import Path

from amun_ext.cli.arguments import RESUMES, Commands, add_command, add_options, device
from amun_ext.defaults import SCALES


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "reproduce",
        "run an experiment of the paper, from training to table and figure",
        "examples:\n"
        "  amun reproduce --list\n"
        "  amun reproduce figure1 --scale small --out reproduced\n"
        "  amun reproduce table1 --scale paper --data-dir data --dry-run\n\n"
        "Writes NAME.json, NAME.html and NAME-1.svg, ... into the folder --out, and into its folder cache what\n"
        "experiments share: trained models, references, searches and the values of each cell. Run the same command\n"
        "again to resume. Remove cache when no experiment is left to run.",
        RESUMES,
    )
    command.add_argument("name", nargs="?", metavar="NAME", help="the experiment; --list names all")
    command.add_argument("--list", action="store_true", help="name the experiments and end")
    command.add_argument(
        "--dry-run", action="store_true", help="say what is to be done, estimate the hours from a batch, and end"
    )
    command.add_argument(
        "--scale",
        choices=SCALES,
        default="small",
        help="smoke: seconds, to see that it runs; small: the embedded images and a small network; paper: CIFAR-10, "
        "ResNet-18 and 200 epochs; tiny-imagenet: VGG-19 (default: %(default)s)",
    )
    command.add_argument("--seeds", type=int, help="number of original models (default: that of the scale)")
    command.add_argument("--out", type=Path, default=Path("reproduced"), help="folder (default: %(default)s)")
    add_options(command, "--data-dir")
    command.add_argument("--device", type=device, default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add_options(command, "--workers", "--tables")
