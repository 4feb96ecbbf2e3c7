"""The unlearning method and its options, from the command line."""

import argparse

from amun_ext.cli.arguments import given_options, given_recipe
from amun_ext.cli.loading import Inputs, load_options
from amun_ext.recipe import FINE_TUNING
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.config import MethodConfig, resolve_config


def chosen_config(options: argparse.Namespace) -> MethodConfig:
    """The options of add_method; `complete_config` adds those from the checkpoint."""
    if options.method is None:  # distill is closer to retraining, see docs/benchmarks/unlearning.md
        options.method = "amun" if options.targets is None else "distill"
    row = METHODS.get(options.method)
    default = {"include_forget": False, "recipe": FINE_TUNING} if row and "include_forget" in row.options else {}
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
