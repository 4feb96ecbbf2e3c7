"""amun prepare: out-of-fold targets for the method distill."""

import argparse

from amun_ext import auditing
from amun_ext.cli.arguments import given_recipe
from amun_ext.cli.loading import open_inputs
from amun_ext.cli.output_folder import check_out_file
from amun_ext.cli.provenance import check_teachers
from amun_ext.unlearning import Targets, cross_fit
from amun_ext.validation import check_integer, require


def run(options: argparse.Namespace) -> None:
    check_out_file(options.out)
    check_integer("folds", options.folds, 2)
    targets = _cross_fitted(options) if options.references is None else _from_references(options)
    print(f"out-of-fold logits of {len(targets)} samples are in {options.out}")


def _cross_fitted(options: argparse.Namespace) -> Targets:
    inputs = open_inputs(options)
    splits, model, record, init = inputs
    training = inputs.retraining(given_recipe(options)).recipe
    if not options.quiet:
        print(cross_fit.cost(len(splits.train) - len(record.forgotten_ids), options.folds, training), flush=True)
    return cross_fit.prepare(
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


def _from_references(options: argparse.Namespace) -> Targets:
    given = given_recipe(options)
    require(not given, "--references", "given without a recipe, because no model is trained", ", ".join(given))
    references = auditing.load_references(options.references, logits=True)
    splits, model, record, _ = open_inputs(options)
    check_teachers(references, record)
    return auditing.prepare_from_references(
        references,
        model,
        splits,
        out=options.out,
        previously_forgotten=record.forgotten_ids,
        overwrite=options.overwrite,
    )
