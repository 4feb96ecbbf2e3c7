"""amun forget: unlearn some samples, and report on it."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from amun_ext import deletion
from amun_ext.cli.arguments import (
    RESUMES,
    Commands,
    add_checkpoint,
    add_command,
    add_data,
    add_ids,
    add_recipe,
    add_settings,
    given,
    recipe,
)
from amun_ext.cli.loading import check_folder, check_free, chosen_options, ids_to_forget, rebuilt, unseen
from amun_ext.data import load
from amun_ext.deletion import Request
from amun_ext.deletion.request import retraining, write
from amun_ext.experiments import demo
from amun_ext.search import METHODS
from amun_ext.unlearning import METHODS as UNLEARNING
from amun_ext.unlearning.plan import Plan, plan


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "forget",
        run,
        "unlearn some training samples, with AMUN unless told otherwise, and report on it",
        "examples:\n"
        "  amun forget --model original.safetensors --data fashion-mnist-mini --ids 3,17,40-60 --out forgotten\n"
        "  amun forget --model net.pt --arch my_net:build --data my_data:load --ids-file ids.csv --out forgotten\n\n"
        "writes model.safetensors, report.json and report.html into the folder --out; its model can forget more.\n"
        "A command that was stopped leaves what it has there, and goes on with it when called again.\n"
        "exit status: 0 done, 1 failed, 2 bad input, 3 some samples could not be forgotten (their ids are told)",
        RESUMES,
    )
    add_data(command)
    add_checkpoint(command)
    add_ids(command, required=True)
    command.add_argument("--out", type=Path, required=True, help="folder of the results")
    command.add_argument("--with-copies", action="store_true", help="forget equal images under other ids as well")
    command.add_argument(
        "--without-retain", action="store_true", help="fine-tune without the rest of the data (which is still measured)"
    )
    command.add_argument("--method", choices=UNLEARNING, default="amun", help="(default: %(default)s)")
    add_settings(command)
    command.add_argument(
        "--keep", type=float, metavar="RATIO", help="change only this fraction of the weights, by a saliency mask"
    )
    command.add_argument(
        "--with-forget",
        dest="include_forget",
        action=argparse.BooleanOptionalAction,
        help="fine-tune on the forget samples too (D_F), the main form of AMUN's paper (default: no)",
    )
    command.add_argument("--search", choices=METHODS, help="of the adversarial examples (default: ddn)")
    command.add_argument("--retrain", action="store_true", help="also retrain from scratch, to compare with")
    title = (
        "fine-tuning; the learning rate decides most, see the report (presets, files and other methods have their own)"
    )
    add_recipe(command, title, demo.FINE_TUNING)


def run(options: argparse.Namespace) -> int:
    check_folder(options.out)
    chosen = forget_plan(options)
    check_free(options.out, "model.safetensors", "report.json", "report.html")
    splits = load(options.data, options.root, options.download)
    ids = ids_to_forget(options, splits)
    original, metadata = rebuilt(options, splits)
    request = Request(
        ids=ids,
        with_copies=options.with_copies,
        plan=retraining(original, metadata, recipe(options)) if options.method == "retrain" else chosen,
        retrain=options.retrain and options.method != "retrain",
        seed=options.seed,
        metadata=metadata,
    )
    test, tested_on = unseen(options, splits)
    measured = replace(splits, test=test)
    outcome = deletion.forget(original, measured, request, folder=options.out, facts=tested_on, progress=True)
    write(outcome, options.out)
    print(f"{outcome.report.to_text()}\n\nwrote model.safetensors, report.json and report.html into {options.out}")
    if outcome.not_forgotten:
        shown = ", ".join(map(str, outcome.not_forgotten))
        print(f"amun: not forgotten, for want of an adversarial example: ids {shown}", file=sys.stderr)
        return 3
    return 0


def forget_plan(options: argparse.Namespace) -> Plan:
    """How to unlearn, but for the recipe of retraining, which the checkpoint knows."""
    method = UNLEARNING[options.method]
    default = {"include_forget": False, "recipe": demo.FINE_TUNING} if "include_forget" in method.options else {}
    return plan(
        options.method,
        not options.without_retain,
        **chosen_options(options),
        default=default,
        keep=options.keep,
        recipe=recipe(options),
        **given(options, "include_forget", "search"),
    )
