"""amun audit: a verdict on how well a model has forgotten."""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from amun_ext import audit as audits
from amun_ext import info, models
from amun_ext.audit.verdict import CANNOT_TELL, FORGOTTEN, NOT_FORGOTTEN, OVER_FORGOTTEN
from amun_ext.checks import require
from amun_ext.cli import provenance
from amun_ext.cli.arguments import RESUMES, Commands, add_checkpoint, add_command, add_data, add_ids, add_images
from amun_ext.cli.loading import about, check_folder, check_free, ids_in_question, load_for, rebuilt
from amun_ext.cli.start import add_init, init
from amun_ext.data import Splits, without
from amun_ext.deletion.request import RETRAIN_SEED, retraining, sets, warm_up
from amun_ext.files import plain, workplace
from amun_ext.unlearning.plan import Plan

RETRAINED, TRAINING = "retrained{}.safetensors", "retraining-{}.safetensors"  # with the latter a stopped one goes on
EXIT_STATUS = {FORGOTTEN: 0, NOT_FORGOTTEN: 10, OVER_FORGOTTEN: 11, CANNOT_TELL: 12}  # with --fail-unless
Metadata = dict[str, str]


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
        "writes audit.json, audit.md and audit.html into the folder --out, with --retrain the models, too.\n"
        "FT AUC is compared with that of models that were retrained without the ids, or, where --references or\n"
        "--shadows are given and the ids are a random draw, with 50.\n"
        '"forgotten" needs --original: the audit must see that the model before was trained on the ids.\n'
        "exit status: 0 done, 1 failed, 2 bad input; with --fail-unless forgotten also\n"
        + ", ".join(f"{code} {answer}" for answer, code in EXIT_STATUS.items()),
        RESUMES,
    )
    add_data(command)
    add_checkpoint(command)
    add_ids(command, required=False)
    command.add_argument("--out", type=Path, required=True, help="folder of the results")
    command.add_argument("--original", type=Path, help="checkpoint of the model before, of the same architecture")
    anew = command.add_mutually_exclusive_group()
    anew.add_argument(
        "--retrained", type=Path, nargs="+", default=[], help="checkpoints of models that were trained without the ids"
    )
    anew.add_argument(
        "--retrain",
        type=int,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="train one, as the checkpoint says that it was trained, or N with different seeds, whose spread the "
        "verdict then holds",
    )
    add_init(command)
    command.add_argument("--references", type=Path, help="a folder that amun references has written")
    command.add_argument("--shadows", type=Path, help="a folder that amun shadows has written")
    command.add_argument(
        "--random-draw", action="store_true", help="the ids are a random draw of the training set (--fraction is one)"
    )
    command.add_argument(
        "--margin", type=float, default=audits.MARGIN, help="points of FT AUC that are none (default: %(default)s)"
    )
    command.add_argument(
        "--fail-unless", choices=["forgotten"], help="end with another status than 0 where the verdict is another"
    )
    add_images(command)


def run(options: argparse.Namespace) -> int:
    check_folder(options.out)
    require(options.retrain >= 0, "--retrain", "a number of models", options.retrain)
    made = [options.out / RETRAINED.format(f"-{number}" if number else "") for number in range(options.retrain)]
    check_free(options.out, *audits.FILES, *(path.name for path in made))
    for path in (options.model, options.original):
        own = path is not None and path.resolve() in [each.resolve() for each in made]
        require(not own, "--out", "another folder: --retrain would write over what is audited", path)
    splits = load_for(options)
    model, metadata = rebuilt(options, splits)
    ids, before = ids_in_question(options, splits, metadata)
    original = None if options.original is None else rebuilt(options, splits, options.original)[0]
    references = None if options.references is None else audits.load_references(options.references)
    shadows = None if options.shadows is None else audits.load_shadows(options.shadows)
    retrained = [rebuilt(options, splits, path) for path in options.retrained]
    gone = [*ids.tolist(), *before]
    remarks = provenance.check_retrained(options.retrained, [known for _, known in retrained], gone)
    remarks += provenance.remarks(metadata, ids.tolist(), references)
    given = [each for each, _ in retrained]
    audits.check(model, splits, ids, original, given, references, shadows, before, options.margin)
    if shadows is not None:
        provenance.check_shadows(shadows, metadata, before)
    first = init(options, splits, model, metadata)
    anew = retraining(model, metadata, init=first) if made else None
    place = workplace(options.out, "audit") if made else options.out
    retrained += _retrained(made, place, options, splits, model, metadata, torch.tensor(gone), anew)
    found = audits.audit(
        model,
        splits,
        ids,
        original=original,
        retrained=[each for each, _ in retrained],
        references=references,
        shadows=shadows,
        before=before,
        random_draw=options.random_draw or options.fraction is not None,
        margin=options.margin,
        seconds=_seconds(metadata, [known for _, known in retrained]),
        remarks=remarks,
        facts={
            **about(options, metadata),
            "ids": ids.tolist(),
            "ids forgotten before": before,
            "references": None if references is None else len(references),
            "shadows": None if shadows is None else len(shadows),
            "retrained models": len(retrained),
            "versions": info.versions(),
        },
    )
    found.write(options.out, with_images=options.with_images)
    if made:
        shutil.rmtree(place)
    told = ", ".join([*audits.FILES, *(path.name for path in made)])
    print(f"{found.to_text()}\n\nwrote {told} into {options.out}")
    return EXIT_STATUS[found.verdict.answer] if options.fail_unless else 0


def _retrained(
    paths: Sequence[Path],
    place: Path,
    options: argparse.Namespace,
    splits: Splits,
    model: nn.Module,
    metadata: Metadata,
    gone: Tensor,
    anew: Plan | None,
) -> list[tuple[nn.Module, Metadata]]:
    """One for each of `paths`, trained without `gone`."""
    if anew is None:
        return []
    told, own = without(metadata, splits.absent), ("seconds", "unlearning")
    others = {name: value for name, value in told.items() if name not in own}
    others |= {"forgotten": json.dumps(splits.absent)}
    asked = sets(
        splits, gone[~torch.isin(gone, torch.tensor(splits.absent, dtype=torch.int64))], others, with_copies=True
    )
    others |= {"forgotten": json.dumps(sorted(gone.tolist())), "unlearning": json.dumps(plain(anew.to_dict()))}
    warm_up()
    made = []
    for number, path in enumerate(paths):
        checkpoint = place / TRAINING.format(number)
        fresh, start = not checkpoint.exists(), time.perf_counter()
        how = {"seed": options.seed + RETRAIN_SEED + number, "checkpoint": checkpoint, "progress": True}
        each = anew.unlearn(model, asked.forget, asked.retain, **how)
        told = {"seconds": f"{time.perf_counter() - start:.3f}"} if fresh else {}  # else another try has done a part
        models.save_checkpoint(path, each, others | told)
        made.append((each, others | told))
    return made


def _seconds(audited: Metadata, retrained: Sequence[Metadata]) -> dict[str, float]:
    """What checkpoints say of the time that they took."""
    told = {"audited": [audited], "retrained": retrained}
    known = {name: [float(each["seconds"]) for each in of if "seconds" in each] for name, of in told.items()}
    return {name: statistics.mean(times) for name, times in known.items() if times}
