"""amun audit: a verdict on how well a model has forgotten."""

import argparse
import json
from pathlib import Path

import torch

from amun_ext import audit as audits
from amun_ext import info, models
from amun_ext.checks import require
from amun_ext.cli.arguments import RESUMES, Commands, add_checkpoint, add_command, add_data, add_ids
from amun_ext.cli.loading import about, check_folder, check_free, rebuilt
from amun_ext.data import fingerprint, load
from amun_ext.deletion import forget_ids
from amun_ext.deletion.request import RETRAIN_SEED, retraining, sets


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
        "writes audit.json, audit.md and audit.html into the folder --out, with --retrain retrained.safetensors too.\n"
        "FT AUC is compared with that of a model that was retrained without the ids, or, where --references are given\n"
        "and the ids are a random draw, with 50.\n"
        "exit status: 0 done, 1 failed, 2 bad input; the verdict is in the report",
        RESUMES,
    )
    add_data(command)
    add_checkpoint(command)
    add_ids(command, required=False)
    command.add_argument("--out", type=Path, required=True, help="folder of the results")
    command.add_argument("--original", type=Path, help="checkpoint of the model before, of the same architecture")
    anew = command.add_mutually_exclusive_group()
    anew.add_argument("--retrained", type=Path, help="checkpoint of a model that was trained without the ids")
    anew.add_argument("--retrain", action="store_true", help="train one, as the checkpoint says that it was trained")
    command.add_argument("--references", type=Path, help="a folder that amun references has written")
    command.add_argument(
        "--random-draw", action="store_true", help="the ids are a random draw of the training set (--fraction is one)"
    )
    command.add_argument(
        "--margin", type=float, default=audits.MARGIN, help="points of FT AUC that are none (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    check_folder(options.out)
    check_free(options.out, *audits.FILES)
    splits = load(options.data, options.root, options.download)
    model, metadata = rebuilt(options, splits)
    forgotten = json.loads(metadata.get("forgotten", "[]"))
    given = {"ids": options.ids, "file": options.ids_file, "fraction": options.fraction}
    if all(way is None for way in given.values()):
        require(bool(forgotten), "--ids", "given, because the checkpoint has forgotten none", "none")
        given["ids"] = forgotten
    ids = forget_ids(len(splits.train), **given, seed=options.seed)
    before = sorted({*forgotten} - {*ids.tolist()})
    known = metadata.get("training_data")
    require(known in (None, fingerprint(splits.train)), "--data", "what the checkpoint was trained on", "others")
    original = None if options.original is None else rebuilt(options, splits, options.original)[0]
    references = None if options.references is None else audits.load_references(options.references)
    retrained = None if options.retrained is None else rebuilt(options, splits, options.retrained)[0]
    if options.retrain:
        gone = {name: value for name, value in metadata.items() if name != "forgotten"}
        asked = sets(splits, torch.cat([ids, torch.tensor(before, dtype=torch.int64)]), gone, with_copies=True)
        retrained = retraining(model, metadata).unlearn(
            model,
            asked.forget,
            asked.retain,
            seed=options.seed + RETRAIN_SEED,
            checkpoint=options.out / "retraining.safetensors",
            progress=True,
        )
        models.save_checkpoint(options.out / "retrained.safetensors", retrained, metadata)
        (options.out / "retraining.safetensors").unlink()
    found = audits.audit(
        model,
        splits,
        ids,
        original=original,
        retrained=retrained,
        references=references,
        before=before,
        random_draw=options.random_draw or options.fraction is not None,
        margin=options.margin,
        facts={
            **about(options, metadata),
            "ids": ids.tolist(),
            "ids forgotten before": before,
            "references": None if references is None else len(references),
            "versions": info.versions(),
        },
    )
    found.write(options.out)
    print(f"{found.to_text()}\n\nwrote {', '.join(audits.FILES)} into {options.out}")
