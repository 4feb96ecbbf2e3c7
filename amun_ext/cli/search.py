"""amun search: compare adversarial searches."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from amun_ext.cli.arguments import (
    RESUMES,
    Commands,
    add_checkpoint,
    add_command,
    add_data,
    add_ids,
    add_overwrite,
    add_tables,
)
from amun_ext.cli.earlier import check_no_other_request, check_no_strangers, facts, request_of
from amun_ext.cli.loading import (
    about,
    check_folder,
    check_free,
    check_tables,
    id_arguments,
    load_data,
    load_for,
    rebuilt,
    record_of,
    tell,
)
from amun_ext.data import ImageDataset, Splits
from amun_ext.deletion.ids import some_ids
from amun_ext.experiments import searches
from amun_ext.files import no_link
from amun_ext.reading import read_object
from amun_ext.search import ATTACKS
from amun_ext.validation import InputError, listed, require

DEFAULT_COUNT = 200  # samples


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "search",
        run,
        "find the closest adversarial examples of some samples with several methods, and compare the methods",
        "examples:\n"
        "  amun search --model original.safetensors --data fashion-mnist-mini --methods pgd,ddn,deepfool,ffgsm "
        "--out searches\n"
        "  amun search --model net.pt --arch my_net:build --data my_data:load --part test --count 1000 --no-curves "
        "--out searches\n\n"
        "Writes METHOD.safetensors (for amun_ext.AdversarialSet.load), searches.json and searches.html into the\n"
        "folder --out, and the searches of the curves into its folder curves. Run the same command again to resume.\n"
        "exit status: 0 done, 1 failed, 2 bad input, 3 some samples have no example (their ids are printed)",
        RESUMES,
    )
    add_data(command)
    add_checkpoint(command)
    command.add_argument(
        "--part", default="train", metavar="train|test", help="set to search in (default: %(default)s)"
    )
    add_ids(command, required=False).add_argument(
        "--count", type=int, help="number of random samples, drawn by --seed (default: 200, or all)"
    )
    command.add_argument("--out", type=Path, required=True, help="folder of the results")
    command.add_argument(
        "--png",
        type=Path,
        metavar="DIR",
        help="write METHOD-ID.png of each image, its example, and their difference",
    )
    add_overwrite(command)
    add_tables(command)
    add_searches(command)


def add_searches(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("search")
    chosen = ",".join(searches.DEFAULT)
    group.add_argument("--methods", default=chosen, help=f"some of {', '.join(ATTACKS)} (default: %(default)s)")
    group.add_argument(
        "--refine",
        type=int,
        default=0,
        help="forward passes that bring each example closer (default: %(default)s)",
    )
    group.add_argument(
        "--quantize",
        type=int,
        metavar="LEVELS",
        help="255: examples stay adversarial when saved as 8-bit images",
    )
    group.add_argument(
        "--min-margin", type=float, default=0.0, help="logits by which the wrong class must lead (default: %(default)s)"
    )
    group.add_argument("--precision", help="bfloat16: run most iterations in it (default: the dtype of the model)")
    group.add_argument(
        "--curves",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"also search up to {searches.CURVE_SAMPLES} samples with other numbers of steps, for the plot of "
        "distance against gradients; with 200 samples this doubles the time (default: on)",
    )


def run(options: argparse.Namespace) -> int:
    check_folder(options.out)
    check_free(options.out, "searches.json", "searches.html")
    check_no_strangers(options.out, "searches.json", "searches.html")
    check_tables(options)
    if options.png is not None:
        check_folder(options.png)
        no_link(options.png)
    require(options.part in ("train", "test"), "--part", "train or test", options.part)
    methods = [method.strip() for method in options.methods.split(",")]
    searches.check_methods(methods)
    splits = _loaded(options)
    part = getattr(splits, options.part)
    names = splits.names if options.part == "train" else None
    ids = chosen_ids(options, part, splits.classes, splits.absent, names)
    images, labels = part[ids]
    model, record = rebuilt(options, splits)
    request = request_of(options.model, options.part, ids.tolist())
    check_no_other_request(options, request, "searches.json")
    _remove_others(options.out, request)
    if options.png is not None:
        there = [f"{method}-{row}.png" for method in methods for row in ids.tolist()]
        there = [name for name in there if os.path.lexists(options.png / name)]
        ours = options.overwrite or bool(facts(options.out, "searches.json"))
        require(ours or not there, "--png", "a folder without files of these names (--overwrite)", listed(there))
    found = searches.compare(
        model,
        images,
        labels,
        methods,
        common=searches.Common(options.refine, options.quantize, options.min_margin, options.precision),
        curves=options.curves,
        ids=ids,
        classes=splits.classes,
        out=options.out,
        facts=about(options, record) | {"request": request, "part": options.part, "seed": options.seed},
        progress=not options.quiet,
    )
    searches.write(found, options.out)
    if options.png is not None:
        searches.write_png(found, options.png)
    tell(options, found, f"searches.json, searches.html and the examples into {options.out}")
    for method, missing in found.missing.items():
        print(f"amun: no adversarial example by {method}: ids {', '.join(map(str, missing))}", file=sys.stderr)
    return 3 if found.missing else 0


def _remove_others(folder: Path, request: str) -> None:
    """The examples of another request, whose result is to be replaced."""
    if facts(folder, "searches.json").get("request") == request:
        return
    methods = read_object(folder / "searches.json").get("methods")
    for method in [name for name in ATTACKS if isinstance(methods, dict) and name in methods]:
        (folder / f"{method}.safetensors").unlink(missing_ok=True)
        for path in (folder / "curves").glob(f"{method}-*.safetensors"):
            path.unlink()
    for name in ("searches.html", "searches.json"):  # last: a run that is stopped goes on with examples of its own
        (folder / name).unlink(missing_ok=True)


def _loaded(options: argparse.Namespace) -> Splits:
    """The training samples under the ids that the model knows them by; others than these as they are."""
    if options.part == "train":
        with contextlib.suppress(InputError):
            return load_for(options)
    splits = load_data(options, record_of(options.model))
    if options.part == "train":
        print("amun: the model was not trained on --data: ids are rows of --data", file=sys.stderr)
    return splits


def chosen_ids(
    options: argparse.Namespace,
    data: ImageDataset,
    classes: Sequence[str],
    absent: Sequence[int] = (),
    names: Sequence[str] | None = None,
) -> Tensor:
    """The rows to search, none that is `absent`."""
    ways = id_arguments(options, data, classes, absent, names) | {"count": options.count}
    erased = set(absent)
    there = torch.tensor([row for row in range(len(data)) if row not in erased], device="cpu")
    given = {name: way for name, way in ways.items() if way is not None} or {"count": min(DEFAULT_COUNT, len(there))}
    if {"count", "fraction"} & given.keys():
        return there[some_ids(len(there), **given, seed=options.seed)]
    ids = some_ids(len(data), **given)
    gone = sorted({*ids.tolist()} & erased)
    require(not gone, "--ids", "of samples that are still in --data", f"{gone[:5]}, which were forgotten and erased")
    return ids
