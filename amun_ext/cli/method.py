"""The unlearning method and its options, from the command line."""

import argparse
from dataclasses import replace
from typing import Any

from amun_ext.cli.arguments import given_options, given_recipe
from amun_ext.cli.loading import Inputs, load_options
from amun_ext.recipe import FINE_TUNING
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.config import MethodConfig, resolve_config
from amun_ext.unlearning.distill import RECIPE

# See docs/benchmarks/unlearning.md.
REASONS = {
    "distill": "--targets are prepared; with those of a cross-fit it comes closest to retraining",
    "amun": "it comes closest to retraining without --targets (amun prepare)",
}
LR_WITHOUT_RETAIN = 0.02  # of distillation


def chosen_config(options: argparse.Namespace) -> MethodConfig:
    """The options of add_method; `complete_config` adds those from the checkpoint."""
    if options.method is None:
        options.method = "amun" if options.targets is None else "distill"
        print(f"method: {options.method}, because {REASONS[options.method]}", flush=True)
    row = METHODS.get(options.method)
    default: dict[str, Any] = {}
    if row and "include_forget" in row.options:
        default = {"include_forget": False, "recipe": FINE_TUNING}
    elif options.method == "distill" and options.without_retain:
        default = {"recipe": replace(RECIPE, lr=LR_WITHOUT_RETAIN)}
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
