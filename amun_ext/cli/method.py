"""The unlearning method and its options, from the command line."""

import argparse

from amun_ext.cli.arguments import add_recipe, add_settings, given_options, given_recipe
from amun_ext.cli.loading import Inputs, load_options
from amun_ext.experiments import demo
from amun_ext.search import ATTACKS
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.config import MethodConfig, resolve_config


def add_method(command: argparse.ArgumentParser) -> None:
    command.add_argument("--method", choices=METHODS, help="default: distill with --targets, otherwise amun")
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
    command.add_argument("--search", choices=ATTACKS, help="adversarial search (default: ddn)")
    title = (
        "fine-tuning (the learning rate matters most; presets, tuned options and other methods have their own defaults)"
    )
    add_recipe(command, title, demo.FINE_TUNING)


def chosen_config(options: argparse.Namespace) -> MethodConfig:
    """The options of add_method; `complete_config` adds those from the checkpoint."""
    if options.method is None:  # distill is closer to retraining, see docs/benchmarks/unlearning.md
        options.method = "amun" if options.targets is None else "distill"
    method = METHODS[options.method]
    default = {"include_forget": False, "recipe": demo.FINE_TUNING} if "include_forget" in method.options else {}
    return resolve_config(
        options.method,
        not options.without_retain,
        **load_options(options),
        default=default,
        fraction=options.mask_fraction,
        recipe=given_recipe(options),
        **given_options(options, "include_forget", "search"),
    )


def complete_config(config: MethodConfig, inputs: Inputs, options: argparse.Namespace) -> MethodConfig:
    """The config with the recipe of the checkpoint for method retrain, and `init` for methods that have it."""
    if config.method == "retrain":
        return inputs.retraining(given_recipe(options))
    return config.with_init(inputs.init)
