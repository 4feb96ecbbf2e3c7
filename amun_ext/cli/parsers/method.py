"""The arguments of the unlearning method and its options."""

import argparse

from amun_ext.cli.arguments import add_recipe, add_settings
from amun_ext.defaults import names
from amun_ext.recipe import FINE_TUNING


def add_method(command: argparse.ArgumentParser) -> None:
    command.add_argument("--method", choices=names("methods"), help="default: distill with --targets, otherwise amun")
    command.add_argument(
        "--without-retain", action="store_true", help="fine-tune without the retain set, which is still measured"
    )
    add_settings(command)
    command.add_argument(
        "--mask-fraction",
        type=float,
        metavar="RATIO",
        help="update only this fraction of the weights, chosen by a saliency mask",
    )
    command.add_argument(
        "--with-forget",
        dest="include_forget",
        action=argparse.BooleanOptionalAction,
        help="also fine-tune on the forget samples (D_F), as in the main form of AMUN's paper (default: no)",
    )
    command.add_argument("--search", choices=names("attacks"), help="adversarial search (default: ddn)")
    title = (
        "fine-tuning (the learning rate matters most; presets, tuned options and other methods have their own defaults)"
    )
    add_recipe(command, title, FINE_TUNING)
