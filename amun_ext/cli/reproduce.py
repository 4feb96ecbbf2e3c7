"""amun reproduce: the paper's experiments, each one command."""

import argparse
from pathlib import Path

from amun_ext.cli.arguments import RESUMES, Commands, add_command, add_options
from amun_ext.cli.arguments import device as device_type
from amun_ext.cli.output_folder import check_folder, print_result
from amun_ext.experiments import reproduce
from amun_ext.experiments.scales import SCALES
from amun_ext.validation import require


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "reproduce",
        run,
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
    command.add_argument("--dry-run", action="store_true", help="say what is to be done and end")
    command.add_argument(
        "--scale",
        choices=SCALES,
        default="small",
        help="smoke: seconds, to see that it runs; small: the embedded images and a small network; paper: CIFAR-10, "
        "ResNet-18 and 200 epochs (default: %(default)s)",
    )
    command.add_argument("--seeds", type=int, help="number of original models (default: that of the scale)")
    command.add_argument("--out", type=Path, default=Path("reproduced"), help="folder (default: %(default)s)")
    add_options(command, "--data-dir")
    command.add_argument("--device", type=device_type, default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add_options(command, "--workers", "--tables")


def run(options: argparse.Namespace) -> None:
    if options.list:
        width = max(map(len, reproduce.EXPERIMENTS))
        print("\n".join(f"{name.ljust(width)}  {row.title}" for name, row in reproduce.EXPERIMENTS.items()))
        return
    require(options.name is not None, "NAME", "given, or --list", "neither")
    if options.dry_run:
        print(reproduce.plan(options.name, options.scale, seeds=options.seeds))
        return
    check_folder(options.out)
    result = reproduce.reproduce(
        options.name,
        options.scale,
        out=options.out,
        seeds=options.seeds,
        data_dir=options.data_dir,
        device=str(options.device),
        num_workers=options.workers,
        progress=not options.quiet,
    )
    reproduce.write(result, options.out)
    print_result(options, result, f"{options.name}.json, {options.name}.html and pictures into {options.out}")
