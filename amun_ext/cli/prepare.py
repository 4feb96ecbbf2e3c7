"""amun prepare: out-of-fold targets for the method distill."""

import argparse

from amun_ext.cli.arguments import (
    given_recipe,
)
from amun_ext.cli.loading import open_inputs
from amun_ext.cli.output_folder import check_out_file
from amun_ext.unlearning import cross_fit
from amun_ext.validation import check_integer


def run(options: argparse.Namespace) -> None:
    check_out_file(options.out)
    check_integer("folds", options.folds, 2)
    inputs = open_inputs(options)
    splits, model, record, init = inputs
    training = inputs.retraining(given_recipe(options)).recipe
    if not options.quiet:
        print(cross_fit.cost(len(splits.train) - len(record.forgotten_ids), options.folds, training), flush=True)
    targets = cross_fit.prepare(
        model,
        splits,
        training,
        out=options.out,
        folds=options.folds,
        init=init,
        previously_forgotten=record.forgotten_ids,
        seed=options.seed,
        num_workers=options.workers,
        progress=not options.quiet,
        overwrite=options.overwrite,
    )
    print(f"out-of-fold logits of {len(targets)} samples are in {options.out}")
