"""amun forget: unlearn some samples, and report on it."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from amun_ext import deletion
from amun_ext.checks import require
from amun_ext.cli.arguments import RESUMES, Commands, add_checkpoint, add_command, add_data, add_ids, add_images
from amun_ext.cli.loading import check_folder, check_free, ids_to_forget, load_for, rebuilt, unseen
from amun_ext.cli.method import add_method, chosen_plan, settled
from amun_ext.cli.start import add_init, init
from amun_ext.deletion import Request
from amun_ext.deletion.request import write


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
    add_method(command)
    command.add_argument("--retrain", action="store_true", help="also retrain from scratch, to compare with")
    add_init(command)
    add_images(command)


def run(options: argparse.Namespace) -> int:
    check_folder(options.out)
    chosen = chosen_plan(options)
    check_free(options.out, "model.safetensors", "report.json", "report.html")
    own = options.model.resolve() == (options.out / "model.safetensors").resolve()
    must_be = "another folder: the result would be written over the model that is to forget"
    require(not own, "--out", must_be, options.out)
    splits = load_for(options)
    ids = ids_to_forget(options, splits)
    original, metadata = rebuilt(options, splits)
    first = init(options, splits, original, metadata)
    request = Request(
        ids=ids,
        with_copies=options.with_copies,
        plan=settled(chosen, original, metadata, options, first),
        retrain=options.retrain and options.method != "retrain",
        seed=options.seed,
        metadata=metadata,
        init=first,
    )
    test, tested_on = unseen(options, splits)
    measured = replace(splits, test=test)
    outcome = deletion.forget(original, measured, request, folder=options.out, facts=tested_on, progress=True)
    write(outcome, options.out, with_images=options.with_images)
    print(f"{outcome.report.to_text()}\n\nwrote model.safetensors, report.json and report.html into {options.out}")
    if outcome.not_forgotten:
        shown = ", ".join(map(str, outcome.not_forgotten))
        print(f"amun: not forgotten, for want of an adversarial example: ids {shown}", file=sys.stderr)
        return 3
    return 0
