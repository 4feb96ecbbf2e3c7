"""amun shadows: shadow models, for the per-sample attack of an audit."""

import argparse

from amun_ext import auditing
from amun_ext.auditing.shadows import cost
from amun_ext.cli.loading import audited_ids, open_inputs
from amun_ext.cli.method import chosen_config, complete_config
from amun_ext.cli.output_folder import check_folder
from amun_ext.cli.provenance import check_method


def run(options: argparse.Namespace) -> None:
    check_folder(options.out)
    config = chosen_config(options)
    inputs = open_inputs(options, **config.inputs)
    splits, model, record, init = inputs
    ids, previously_forgotten = audited_ids(options, splits, record)
    config = complete_config(config, inputs, options)
    recipe = inputs.retraining().recipe
    check_method("the flags", config.to_dict(), record)
    if not options.quiet:
        print(cost(splits, ids, config, recipe, options.num_models), flush=True)
    shadows = auditing.train_shadows(
        model,
        splits,
        ids,
        config,
        recipe,
        out=options.out,
        init=init,
        previously_forgotten=previously_forgotten,
        models=options.num_models,
        seed=options.seed,
        num_workers=options.workers,
        progress=not options.quiet,
    )
    print(f"{len(shadows)} shadows of {len(shadows.rows)} samples are in {options.out}")
