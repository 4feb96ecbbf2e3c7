"""amun demo: train, forget and compare with retraining, on the embedded images."""

import argparse

import torch

from amun_ext.cli.output_folder import check_out, print_result
from amun_ext.experiments import demo


def run(options: argparse.Namespace) -> None:
    check_out(options, *demo.FILES)
    torch.set_num_threads(1)  # so small a network gains little from a second one, and loses much on a busy machine
    report, trained, ids = demo.run(options.seed, progress=not options.quiet)
    demo.write(report, trained, ids, options.out, with_images=options.with_images)
    print_result(options, report, f"report.html, report.json and two checkpoints into {options.out}")
