"""amun forget: unlearn some samples, and report on it."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from os.path import realpath
from pathlib import Path

import torch
from torch import nn

from amun_ext import deletion
from amun_ext.cli.loading import held_back_test_set, input_facts, open_inputs, read_record, select_ids
from amun_ext.cli.method import chosen_config, complete_config
from amun_ext.cli.output_folder import (
    check_folder,
    check_no_other_result,
    check_out,
    describe_request,
    finished_request,
    print_profile,
    print_result,
)
from amun_ext.data import Splits, training_data
from amun_ext.data.images import subset
from amun_ext.deletion import Request, estimate, guards, ledger, pending
from amun_ext.deletion.pending import Pending
from amun_ext.deletion.request import retraining, unfamiliar_samples
from amun_ext.deletion.results import DIGEST, MODEL, RESULTS, write
from amun_ext.deletion.signature import private_key, signature
from amun_ext.distributed import by_first_rank, entered_by_first_rank
from amun_ext.files import file_digest, keep_only, workplace
from amun_ext.info import now
from amun_ext.report.html import in_words
from amun_ext.unlearning.cross_fit import remove_targets
from amun_ext.validation import InputError, listed, printable, require


def run(options: argparse.Namespace) -> int:
    check_folder(options.out)
    if options.dry_run:
        return _forget(options, None)
    with entered_by_first_rank(workplace(options.out, "forget")) as place:
        return _forget(options, place)


def _forget(options: argparse.Namespace, place: Path | None) -> int:
    """place: the workplace; None for a dry run."""
    config = chosen_config(options)
    check_out(options, *RESULTS)
    own = realpath(options.model) == realpath(options.out / MODEL)
    require(not own, "--out", "another folder: the result would overwrite --model", options.out)
    key = None if options.sign_key is None else private_key(options.sign_key)
    sign = None if key is None else partial(signature, key)
    inputs = open_inputs(options, **config.inputs)
    splits, original, record, init = inputs
    before = ledger.text_beside(options.model)
    model_digest = file_digest(options.model)
    record = replace(record, made_of=(*(record.made_of or ()), model_digest))
    waiting: list[Pending] = []
    if options.pending is not None:
        waiting = _pending_requests(options, splits, record.forgotten_ids, place)
        if not waiting:
            print(f"no request is pending in {options.pending}")
            return 0
        options.ids = ",".join(map(str, dict.fromkeys(row for each in waiting for row in each.ids)))
    request = Request(
        ids=select_ids(options, splits, record.forgotten_ids),
        include_duplicates=options.include_duplicates,
        duplicate_distance=options.duplicate_distance,
        config=complete_config(config, inputs, options),
        retrain=options.retrain and options.method != "retrain",
        seed=options.seed,
        record=record,
        init=init,
    )
    test, tested_on = held_back_test_set(options, splits)
    measured = replace(splits, test=test)
    request_digest = f"{request.digest(model_digest, measured)}{' with images' * options.with_images}"
    done = finished_request(options.out, request_digest)
    if done is not None:
        if place is not None:
            by_first_rank(_clean_up)(options, splits, waiting)
        print(f"already done: {describe_request(done)} in {options.out}")
        return _status(done["ids_without_example"])
    check_no_other_result(options, RESULTS)
    if place is None:
        _print_plan(original, measured, request)
        return 0
    by_first_rank(keep_only)(place, request_digest, options.overwrite)
    outcome = deletion.forget(
        original,
        measured,
        request,
        place=place,
        history=ledger.entries(before, ledger.FILE),
        facts={
            **input_facts(options, record),
            DIGEST: model_digest,
            "request": request_digest,
            "date": now(),
            **tested_on,
        },
        progress=not options.quiet,
    )
    guards.check(outcome, original, options.floor)
    how = {"with_images": options.with_images, "command": options.command}
    by_first_rank(write)(outcome, options.out, place, **how, before=before, sign=sign, requests=waiting)
    by_first_rank(_clean_up)(options, splits, waiting)
    print_profile(options, outcome.stages)
    print_result(options, outcome.report, f"{', '.join(RESULTS)} into {options.out}")
    return _status(outcome.ids_without_example)


def _pending_requests(
    options: argparse.Namespace, splits: Splits, forgotten: Sequence[int], place: Path | None
) -> list[Pending]:
    """Those in the list, without what the model has forgotten already, which is also removed from the list."""
    about = options.pending, training_data(splits), len(splits.train)
    requests = pending.read(*about)
    left = pending.without(requests, forgotten)
    if left != requests:
        gone = sorted({row for each in requests for row in each.ids} & {*forgotten})
        print(f"amun: left out, because the model has forgotten them: ids {listed([*map(str, gone)])}", file=sys.stderr)
        if place is not None:
            by_first_rank(pending.remove)(*about, requests, forgotten)
    return left


def _clean_up(options: argparse.Namespace, splits: Splits, waiting: Sequence[Pending]) -> None:
    """Remove all that the new model has forgotten from the lists of targets, which no later request may use, and of
    pending requests."""
    forgotten_ids = read_record(options.out / MODEL).forgotten_ids
    if options.targets is not None and not options.replays:
        remove_targets(
            options.targets, subset(splits.train, torch.tensor(forgotten_ids, dtype=torch.int64, device="cpu"))
        )
        print(f"the rows of the forgotten samples are removed from {options.targets}")
    if waiting:
        pending.remove(options.pending, training_data(splits), len(splits.train), waiting, forgotten_ids)
        print(f"the forgotten samples are removed from {options.pending}")


def _print_plan(original: nn.Module, splits: Splits, request: Request) -> None:
    request_sets = request.sets(splits)
    stages = {"unlearning": request.config}
    if request.config.method != "retrain":
        with contextlib.suppress(InputError):  # the checkpoint does not say how it was trained
            stages["retraining"] = retraining(original, request.record, init=request.init)
    took = {name: estimate.seconds(original, request_sets, config) for name, config in stages.items()}
    print(f"samples to forget: {len(request_sets.ids)}, ids {listed([*map(str, request_sets.ids.tolist())])}")
    print(f"samples to retain: {len(request_sets.retain)}; forgotten by earlier requests: {len(request_sets.before)}")
    for remark in unfamiliar_samples(original, splits, request_sets):
        print(printable(f"note: {remark}"))
    for name, value in request.config.to_dict().items():
        print(printable(f"  {name}: {in_words(value)}"))
    for name, seconds in took.items():
        hint = "" if name == "unlearning" or request.retrain else " (only with --retrain)"
        print(f"{name} would take about {seconds:.2g} seconds{hint}")


def _status(ids_without_example: Sequence[int]) -> int:
    if ids_without_example:
        shown = ", ".join(map(str, ids_without_example))
        print(f"amun: not forgotten, because no adversarial example was found: ids {shown}", file=sys.stderr)
    return 3 if ids_without_example else 0
