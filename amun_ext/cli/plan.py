"""amun plan: predict time and memory of a request."""

import argparse
import contextlib
import json
import math

from amun_ext.cli.loading import open_inputs
from amun_ext.cli.method import chosen_config
from amun_ext.deletion import estimate
from amun_ext.deletion.plan import Sizes, plan, summary, table, to_dict
from amun_ext.validation import InputError, require


def run(options: argparse.Namespace) -> None:
    options.method = options.method or "amun"
    config = chosen_config(options)
    require(config.search is not None, "--method", "amun or another with a search", options.method)
    finite = 0 < options.bandwidth < math.inf
    require(finite, "--bandwidth", "positive and finite", options.bandwidth)
    inputs = open_inputs(options)
    train = len(inputs.splits.train) if options.train is None else options.train
    require(options.forget < train, "--forget", f"fewer than the {train} training samples", options.forget)
    original = None
    with contextlib.suppress(InputError):  # the checkpoint does not say how it was trained
        original = inputs.retraining().recipe
    expected = "left out: the checkpoint does not say how it was trained"
    require(original is not None or options.references is None, "--references", expected, options.references)
    sizes = Sizes(
        forget=options.forget,
        retain=train - options.forget,
        test=len(inputs.splits.test),
        references=options.references or 0,
        devices=options.devices,
        bandwidth=options.bandwidth * 1e9,
    )
    costs = estimate.measure(inputs.model, inputs.splits.train, config, original, options.devices)
    stages = plan(costs, sizes, config, original)
    if options.json:
        print(json.dumps(to_dict(stages, costs, sizes), indent=2))
    else:
        print("\n".join(table(stages).to_text()), summary(stages), sep="\n\n")
