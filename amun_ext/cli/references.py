"""amun references: reference models for audits."""

import argparse

from amun_ext import auditing
from amun_ext.cli.arguments import (
    given_recipe,
)
from amun_ext.cli.loading import open_inputs
from amun_ext.cli.output_folder import check_folder


def run(options: argparse.Namespace) -> None:
    check_folder(options.out)
    inputs = open_inputs(options)
    references = auditing.train_references(
        inputs.model,
        inputs.splits,
        inputs.retraining(given_recipe(options)).recipe,
        out=options.out,
        init=inputs.init,
        models=options.num_models,
        keep_logits=options.keep_logits,
        seed=options.seed,
        num_workers=options.workers,
        progress=not options.quiet,
    )
    print(f"{len(references)} references of {references.membership.shape[1]} samples are in {options.out}")
