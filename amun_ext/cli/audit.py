"""amun audit: a verdict on how well a model has forgotten."""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os.path import realpath
from pathlib import Path

import torch
from torch import Tensor, nn

from amun_ext import auditing, info, models
from amun_ext.auditing.audit import check
from amun_ext.auditing.result import FILES
from amun_ext.auditing.verdict import CANNOT_TELL, FORGOTTEN, NOT_FORGOTTEN, OVER_FORGOTTEN
from amun_ext.cli import audit_by_request, provenance
from amun_ext.cli.loading import Inputs, audited_ids, input_facts, load_model, open_inputs, read_record
from amun_ext.cli.output_folder import (
    check_folder,
    check_no_other_result,
    check_out,
    print_profile,
    print_result,
    request_digest,
)
from amun_ext.data import without
from amun_ext.deletion.request import RETRAIN_SEED, sets, warm_up
from amun_ext.deletion.results import SECONDS
from amun_ext.distributed import by_first_rank, entered_by_first_rank
from amun_ext.files import file_digest, workplace
from amun_ext.report import Document, text
from amun_ext.validation import require

RETRAINED, TRAINING = "retrained{}.safetensors", "retraining-{}.safetensors"  # the latter to resume from
EXIT_STATUS = {FORGOTTEN: 0, NOT_FORGOTTEN: 10, OVER_FORGOTTEN: 11, CANNOT_TELL: 12}  # with --fail-unless


def run(options: argparse.Namespace) -> int:
    check_folder(options.out)
    with entered_by_first_rank(workplace(options.out, "audit")) as place:
        return _audit(options, place)


def _audit(options: argparse.Namespace, place: Path) -> int:
    paths = [options.out / RETRAINED.format(f"-{number}" if number else "") for number in range(options.retrain)]
    check_out(options, *FILES, *(path.name for path in paths), own=FILES)
    for path in (options.model, options.original):
        own = path is not None and realpath(path) in map(realpath, paths)
        require(not own, "--out", "another folder: --retrain would overwrite the model", path)
    inputs = open_inputs(options)
    splits, model, record, _ = inputs
    ids, previously_forgotten = audited_ids(options, splits, record)
    by_request = audit_by_request.requested_ids(options, splits)
    request = request_digest(options.model, ids.tolist())
    check_no_other_result(options, FILES, request)
    original = None
    if options.original is not None:
        original, original_record = load_model(options, splits, options.original)
        provenance.check_original(options.original, original_record, record, ids.tolist())
    references = None if options.references is None else auditing.load_references(options.references)
    shadows = None if options.shadows is None else auditing.load_shadows(options.shadows)
    runs = [load_model(options, splits, path) for path in options.other_runs]
    loaded = [load_model(options, splits, path) for path in options.retrained_model]
    retrained, records = [each for each, _ in loaded], [each for _, each in loaded]
    removed_ids = [*ids.tolist(), *previously_forgotten]
    for path in paths:  # an earlier run for the same ids may have left some
        other = path.exists() and sorted(read_record(path).forgotten_ids) != sorted(removed_ids)
        require(not other, "--out", "a folder without other retrained models", f"{path}, trained on the ids")
    provenance.check_runs(options.other_runs, [each for _, each in runs], record)
    remarks = provenance.check_retrained(options.retrained_model, records, removed_ids)
    remarks += provenance.remarks(record, ids.tolist(), references)
    unlearned, margin = [model, *(each for each, _ in runs)], options.equivalence_margin
    teachers = {each for known in (record, *(of for _, of in runs), *records) for each in known.teachers or ()}
    check(unlearned, splits, ids, original, retrained, references, shadows, previously_forgotten, margin, teachers)
    if shadows is not None:
        provenance.check_shadows(shadows, record, previously_forgotten)
    seconds = {
        "audited": [provenance.seconds(options.model, record)],
        "retrained": [*map(provenance.seconds, options.retrained_model, records)],
    }
    took: dict[str, float] = {}
    begun = time.perf_counter()
    if paths:
        from_scratch, took = _retrain(paths, place, options, inputs, removed_ids)
        retrained += from_scratch
        seconds["retrained"] += took.values()
    known = {name: [each for each in times if each is not None] for name, times in seconds.items()}

    def audit(some: Tensor, more: Mapping[str, object]) -> auditing.Audit:
        others = sorted({*removed_ids} - {*some.tolist()})
        return auditing.audit(
            unlearned,
            splits,
            some,
            original=original,
            retrained=retrained,
            references=references,
            shadows=shadows,
            previously_forgotten=others,
            teachers=teachers,
            random_forget_set=options.random_forget_set or options.fraction is not None,
            equivalence_margin=margin,
            seconds={name: statistics.mean(times) for name, times in known.items() if times},
            remarks=remarks,
            facts={
                **input_facts(options, record),
                "request": request,
                "ids": some.tolist(),
                "previously_forgotten_ids": others,
                "references": None if references is None else len(references),
                "shadows": None if shadows is None else len(shadows),
                "retrained_models": len(retrained),
                "model_digest": file_digest(options.model),
                "date": info.now(),
                SECONDS: took,
                "versions": info.versions(),
                **more,
            },
        )

    start = time.perf_counter()
    of_requests = {number: audit(torch.tensor(some, device="cpu"), {}) for number, some in by_request.items() if some}
    for number, each in of_requests.items():
        by_first_rank(each.write)(options.out / f"request-{number}", with_images=options.with_images)
    answers = {str(number): each.verdict.answer for number, each in of_requests.items()}
    found = audit(ids, {"requests": answers} if answers else {})
    print_profile(options, {"retraining": start - begun, "attacks and measures": time.perf_counter() - start})
    by_first_rank(found.write)(options.out, with_images=options.with_images, place=place)
    written = ", ".join([*FILES, *(path.name for path in paths), *(f"request-{number}" for number in of_requests)])
    print_result(options, found, f"{written} into {options.out}")
    if by_request:
        print(f"\n{text.render(Document('Requests', [audit_by_request.table(by_request, of_requests)]))}")
    statuses = [EXIT_STATUS[each.verdict.answer] for each in (found, *of_requests.values())]
    return max(statuses) if options.fail_unless else 0


def _retrain(
    paths: Sequence[Path], place: Path, options: argparse.Namespace, inputs: Inputs, removed_ids: Sequence[int]
) -> tuple[list[nn.Module], dict[str, float]]:
    """Train one model per path without `removed_ids`; also the seconds of each, by the digest of its file."""
    splits, model, record, _ = inputs
    config = inputs.retraining()
    absent = {*splits.absent}
    there = torch.tensor([number for number in removed_ids if number not in absent], dtype=torch.int64, device="cpu")
    again = replace(record, forgotten=splits.absent)
    request_sets = sets(splits, there, again, include_duplicates=True, duplicate_distance=0)
    new_record = replace(
        record,
        forgotten=tuple(sorted(removed_ids)),
        manifest=without(record.manifest, splits.absent),
        unlearning=config.to_dict(),
        made_of=None,
        teachers=None,
        seconds=None,
    )
    warm_up()
    trained, took = [], {}
    for number, path in enumerate(paths):
        checkpoint, seed = place / TRAINING.format(number), options.seed + RETRAIN_SEED + number
        its_record = replace(new_record, seed=seed)
        if not options.overwrite and path.exists() and read_record(path) == its_record:  # an earlier audit has made it
            trained.append(load_model(options, splits, path)[0])
            seconds = provenance.seconds(path, its_record)
        else:
            resumed, start = checkpoint.exists(), time.perf_counter()
            how = {"seed": seed, "checkpoint": checkpoint, "progress": not options.quiet}
            trained.append(config.unlearn(model, request_sets.forget, request_sets.retain, **how))
            seconds = None if resumed else time.perf_counter() - start
            by_first_rank(models.save_checkpoint)(place / path.name, trained[-1], its_record.to_metadata())
            by_first_rank((place / path.name).replace)(path)
        if seconds is not None:
            took[file_digest(path)] = seconds
    return trained, took
