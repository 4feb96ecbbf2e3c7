"""amun demo: train, forget and compare with retraining, on the embedded images."""

import argparse
from pathlib import Path

import torch

from amun_ext.cli.arguments import Commands, add_command, add_images, add_tables, seed
from amun_ext.cli.loading import check_folder, check_free, check_tables, tell
from amun_ext.experiments import demo


def add(commands: Commands) -> None:
    command = add_command(
        commands, "demo", run, "train a small network on the embedded images, forget a tenth, compare with retraining"
    )
    command.add_argument(
        "--out", type=Path, default=Path("amun-demo"), help="folder of the results (default: %(default)s)"
    )
    command.add_argument("--seed", type=seed, default=0, help="random seed (default: %(default)s)")
    add_images(command)
    add_tables(command)


def run(options: argparse.Namespace) -> None:
    check_folder(options.out)
    check_free(options.out, *demo.FILES)
    check_tables(options)
    torch.set_num_threads(1)  # so small a network gains little from a second one, and loses much on a busy machine
    report, trained, ids = demo.run(options.seed, progress=not options.quiet)
    demo.write(report, trained, ids, options.out, with_images=options.with_images)
    tell(options, report, f"report.html, report.json and two checkpoints into {options.out}")
