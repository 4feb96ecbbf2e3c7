"""amun audit: a verdict on how well a model has forgotten."""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from os.path import realpath
from pathlib import Path

import torch
from torch import Tensor, nn

from amun_ext import auditing, info, models
from amun_ext.auditing.audit import check
from amun_ext.auditing.result import FILES
from amun_ext.auditing.verdict import CANNOT_TELL, FORGOTTEN, NOT_FORGOTTEN, OVER_FORGOTTEN
from amun_ext.cli import provenance
from amun_ext.cli.arguments import (
    RESUMES,
    Commands,
    add_checkpoint,
    add_command,
    add_data,
    add_ids,
    add_images,
    add_overwrite,
    add_tables,
    count,
)
from amun_ext.cli.earlier import check_no_other_request, check_no_strangers, now, request_of
from amun_ext.cli.loading import (
    about,
    audited_ids,
    check_folder,
    check_free,
    check_tables,
    load_for,
    rebuilt,
    record_of,
    tell,
)
from amun_ext.cli.start import add_init, init
from amun_ext.data import Splits, without
from amun_ext.deletion import Record
from amun_ext.deletion.request import RETRAIN_SEED, retraining, sets, warm_up
from amun_ext.deletion.results import SECONDS
from amun_ext.files import file_digest, workplace
from amun_ext.unlearning.config import MethodConfig
from amun_ext.validation import require

RETRAINED, TRAINING = "retrained{}.safetensors", "retraining-{}.safetensors"  # with the latter a stopped one goes on
EXIT_STATUS = {FORGOTTEN: 0, NOT_FORGOTTEN: 10, OVER_FORGOTTEN: 11, CANNOT_TELL: 12}  # with --fail-unless


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "audit",
        run,
        "measure how well a model has forgotten, by membership inference, and give a verdict with its uncertainty",
        "examples:\n"
        "  amun audit --model forgotten/model.safetensors --original original.safetensors --data fashion-mnist-mini "
        "--retrain --out audit\n"
        "  amun audit --model forgotten/model.safetensors --data fashion-mnist-mini --fraction 0.1 "
        "--references references --out audit\n\n"
        "Writes audit.json, audit.md and audit.html into the folder --out, and with --retrain the retrained models.\n"
        "The verdict compares FT AUC with that of models retrained without the ids. Without such models it compares\n"
        "with 50, if the ids are a random draw and --references or --shadows are given. Otherwise the verdict is\n"
        '"cannot tell". The verdict "forgotten" needs --original: the audit must detect that the original was trained\n'
        "on the ids.\n"
        "exit status: 0 done, 1 failed, 2 bad input; with --fail-unless forgotten also\n"
        + ", ".join(f"{code} {answer}" for answer, code in EXIT_STATUS.items()),
        RESUMES,
    )
    add_data(command)
    add_checkpoint(command)
    add_ids(command, required=False)
    command.add_argument("--out", type=Path, required=True, help="folder of the results")
    command.add_argument("--original", type=Path, help="checkpoint of the model before unlearning")
    command.add_argument(
        "--other-runs",
        type=Path,
        nargs="+",
        default=[],
        help="checkpoints unlearned as --model was, with other seeds, for KLoM (needs several retrained models); the "
        "verdict is on --model",
    )
    retrained = command.add_mutually_exclusive_group()
    retrained.add_argument(
        "--retrained-model",
        type=Path,
        nargs="+",
        default=[],
        help="checkpoints of models trained without the ids",
    )
    retrained.add_argument(
        "--retrain",
        type=count,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="train a model without the ids by the recipe in the checkpoint, or N models with different seeds, so that "
        "the verdict includes the variation between training runs",
    )
    add_init(command)
    command.add_argument("--references", type=Path, help="folder written by amun references")
    command.add_argument("--shadows", type=Path, help="folder written by amun shadows")
    command.add_argument(
        "--random-forget-set",
        action="store_true",
        help="state that the ids are a random draw from the training set (implied by --fraction)",
    )
    command.add_argument(
        "--equivalence-margin",
        type=float,
        default=auditing.MARGIN,
        help="FT AUC differences below this many points count as equal (default: %(default)s)",
    )
    command.add_argument(
        "--fail-unless", choices=["forgotten"], help="exit with a status other than 0 for any other verdict"
    )
    add_images(command)
    add_overwrite(command)
    add_tables(command)


def run(options: argparse.Namespace) -> int:
    check_folder(options.out)
    with workplace(options.out, "audit") as place:
        return _audit(options, place)


def _audit(options: argparse.Namespace, place: Path) -> int:
    paths = [options.out / RETRAINED.format(f"-{number}" if number else "") for number in range(options.retrain)]
    check_free(options.out, *FILES, *(path.name for path in paths))
    check_no_strangers(options.out, *FILES)
    check_tables(options)
    for path in (options.model, options.original):
        own = path is not None and realpath(path) in map(realpath, paths)
        require(not own, "--out", "another folder: --retrain would overwrite the model", path)
    splits = load_for(options)
    model, record = rebuilt(options, splits)
    ids, previously_forgotten = audited_ids(options, splits, record)
    request = request_of(options.model, ids.tolist())
    check_no_other_request(options, request, FILES[0])
    original = None
    if options.original is not None:
        original, original_record = rebuilt(options, splits, options.original)
        provenance.check_original(options.original, original_record, record, ids.tolist())
    references = None if options.references is None else auditing.load_references(options.references)
    shadows = None if options.shadows is None else auditing.load_shadows(options.shadows)
    runs = [rebuilt(options, splits, path) for path in options.other_runs]
    retrained = [rebuilt(options, splits, path) for path in options.retrained_model]
    removed_ids = [*ids.tolist(), *previously_forgotten]
    for path in paths:  # of an earlier run for the same ids, or none
        others = path.exists() and sorted(record_of(path).gone) != sorted(removed_ids)
        require(
            not others,
            "--out",
            "a folder without other retrained models",
            f"{path}, trained on the ids",
        )
    provenance.check_runs(options.other_runs, [each for _, each in runs], record)
    remarks = provenance.check_retrained(options.retrained_model, [each for _, each in retrained], removed_ids)
    remarks += provenance.remarks(record, ids.tolist(), references)
    given = [each for each, _ in retrained]
    unlearned = [model, *(each for each, _ in runs)]
    rest = references, shadows, previously_forgotten, options.equivalence_margin
    check(unlearned, splits, ids, original, given, *rest)
    if shadows is not None:
        provenance.check_shadows(shadows, record, previously_forgotten)
    first = init(options, splits, model, record)
    config = retraining(model, record, init=first) if paths else None
    from_scratch, took = _retrained(
        paths, place, options, splits, model, record, torch.tensor(removed_ids, device="cpu"), config
    )
    retrained += from_scratch
    found = auditing.audit(
        unlearned,
        splits,
        ids,
        original=original,
        retrained=[each for each, _ in retrained],
        references=references,
        shadows=shadows,
        previously_forgotten=previously_forgotten,
        random_forget_set=options.random_forget_set or options.fraction is not None,
        equivalence_margin=options.equivalence_margin,
        seconds=_seconds(options, record, [each for _, each in retrained], [*took.values()]),
        remarks=remarks,
        facts={
            **about(options, record),
            "request": request,
            "ids": ids.tolist(),
            "previously_forgotten_ids": previously_forgotten,
            "references": None if references is None else len(references),
            "shadows": None if shadows is None else len(shadows),
            "retrained_models": len(retrained),
            "model_digest": file_digest(options.model),
            "date": now(),
            SECONDS: took,
            "versions": info.versions(),
        },
    )
    found.write(options.out, with_images=options.with_images, place=place)
    written = ", ".join([*FILES, *(path.name for path in paths)])
    tell(options, found, f"{written} into {options.out}")
    return EXIT_STATUS[found.verdict.answer] if options.fail_unless else 0


def _retrained(
    paths: Sequence[Path],
    place: Path,
    options: argparse.Namespace,
    splits: Splits,
    model: nn.Module,
    record: Record,
    removed_ids: Tensor,
    config: MethodConfig | None,
) -> tuple[list[tuple[nn.Module, Record]], dict[str, float]]:
    """Train one model per path without `removed_ids`; also the seconds of each, by the digest of its file."""
    if config is None:
        return [], {}
    there = ~torch.isin(removed_ids, torch.tensor(splits.absent, dtype=torch.int64, device="cpu"))
    request_sets = sets(splits, removed_ids[there], replace(record, forgotten=splits.absent), include_duplicates=True)
    new_record = replace(
        record,
        forgotten=tuple(sorted(removed_ids.tolist())),
        manifest=without(record.manifest, splits.absent),
        unlearning=config.to_dict(),
        made_of=None,
        seconds=None,
    )
    warm_up()
    trained, took = [], {}
    for number, path in enumerate(paths):
        checkpoint, seed = place / TRAINING.format(number), options.seed + RETRAIN_SEED + number
        its_record = replace(new_record, seed=seed)
        if not options.overwrite and path.exists() and record_of(path) == its_record:  # an earlier audit has made it
            trained.append(rebuilt(options, splits, path))
            if (known := provenance.seconds(path, its_record)) is not None:
                took[file_digest(path)] = known
            continue
        fresh, start = not checkpoint.exists(), time.perf_counter()
        how = {"seed": seed, "checkpoint": checkpoint, "progress": not options.quiet}
        each = config.unlearn(model, request_sets.forget, request_sets.retain, **how)
        seconds = time.perf_counter() - start
        models.save_checkpoint(place / path.name, each, its_record.to_metadata())
        if fresh:  # else another try has done a part
            took[file_digest(place / path.name)] = seconds
        (place / path.name).replace(path)
        trained.append((each, its_record))
    return trained, took


def _seconds(
    options: argparse.Namespace, audited: Record, retrained: Sequence[Record], took: Sequence[float]
) -> dict[str, float]:
    """What is known of the time that models took."""
    given = [provenance.seconds(path, known) for path, known in zip(options.retrained_model, retrained, strict=False)]
    times_of = {"audited": [provenance.seconds(options.model, audited)], "retrained": [*given, *took]}
    known = {name: [each for each in times if each is not None] for name, times in times_of.items()}
    return {name: statistics.mean(times) for name, times in known.items() if times}
