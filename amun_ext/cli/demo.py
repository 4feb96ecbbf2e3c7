"""amun demo: train, forget and compare with retraining, on the embedded images."""

import argparse
from pathlib import Path

import torch

from amun_ext.cli.arguments import Commands, add_command, add_options
from amun_ext.cli.output_folder import check_out, print_result
from amun_ext.experiments import demo


def add(commands: Commands) -> None:
    command = add_command(
        commands, "demo", run, "train a small network on the embedded images, forget a tenth, compare with retraining"
    )
    help_of_out = "folder of the results (default: %(default)s)"
    command.add_argument("--out", type=Path, default=Path("amun-demo"), help=help_of_out)
    add_options(command, "--seed", "--with-images", "--tables")


def run(options: argparse.Namespace) -> None:
    check_out(options, *demo.FILES)
    torch.set_num_threads(1)  # so small a network gains little from a second one, and loses much on a busy machine
    report, trained, ids = demo.run(options.seed, progress=not options.quiet)
    demo.write(report, trained, ids, options.out, with_images=options.with_images)
    print_result(options, report, f"report.html, report.json and two checkpoints into {options.out}")
