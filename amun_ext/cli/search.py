"""amun search: compare adversarial searches."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from torch import Tensor

from amun_ext.cli.loading import (
    check_not_erased,
    input_facts,
    load_data,
    load_model,
    load_splits,
    read_record,
    select_ids,
)
from amun_ext.cli.output_folder import (
    check_folder,
    check_no_other_result,
    check_out,
    print_result,
    report_facts,
    request_digest,
)
from amun_ext.data import Splits
from amun_ext.distributed import by_first_rank
from amun_ext.experiments import searches
from amun_ext.files import no_link
from amun_ext.reading import read_object
from amun_ext.search import ATTACKS
from amun_ext.validation import InputError, listed, require

FILES = ("searches.json", "searches.html")
DEFAULT_COUNT = 200  # samples


def run(options: argparse.Namespace) -> int:
    check_out(options, *FILES, own=FILES)
    if options.png is not None:
        check_folder(options.png)
        no_link(options.png)
    require(options.part in ("train", "test"), "--part", "train or test", options.part)
    methods = [method.strip() for method in options.methods.split(",")]
    searches.check_methods(methods)
    splits = _load_part(options)
    ids = _searched_ids(options, splits)
    images, labels = getattr(splits, options.part)[ids]
    model, record = load_model(options, splits)
    request = request_digest(options.model, options.part, ids.tolist())
    check_no_other_result(options, FILES, request)
    by_first_rank(_remove_others)(options.out, request)
    if options.png is not None:
        there = [f"{method}-{row}.png" for method in methods for row in ids.tolist()]
        there = [name for name in there if os.path.lexists(options.png / name)]
        ours = options.overwrite or bool(report_facts(options.out, FILES[0]))
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
        facts=input_facts(options, record) | {"request": request, "part": options.part, "seed": options.seed},
        progress=not options.quiet,
    )
    by_first_rank(searches.write)(found, options.out)
    if options.png is not None:
        by_first_rank(searches.write_png)(found, options.png)
    print_result(options, found, f"searches.json, searches.html and the examples into {options.out}")
    for method, missing in found.missing.items():
        print(f"amun: no adversarial example by {method}: ids {', '.join(map(str, missing))}", file=sys.stderr)
    return 3 if found.missing else 0


def _remove_others(folder: Path, request: str) -> None:
    """Remove the examples of another request, whose result is replaced."""
    if report_facts(folder, FILES[0]).get("request") == request:
        return
    methods = read_object(folder / FILES[0]).get("methods")
    for method in [name for name in ATTACKS if isinstance(methods, dict) and name in methods]:
        (folder / f"{method}.safetensors").unlink(missing_ok=True)
        for path in (folder / "curves").glob(f"{method}-*.safetensors"):
            path.unlink()
    for name in reversed(FILES):  # the record last, so that a stopped run still knows what to remove
        (folder / name).unlink(missing_ok=True)


def _load_part(options: argparse.Namespace) -> Splits:
    """The data with the row numbers of the model's training, or as they are if it was trained on others."""
    if options.part == "train":
        with contextlib.suppress(InputError):
            return load_splits(options)
    splits = load_data(options, read_record(options.model))
    if options.part == "train":
        print("amun: the model was not trained on --data: ids are rows of --data", file=sys.stderr)
    return splits


def _searched_ids(options: argparse.Namespace, splits: Splits) -> Tensor:
    """The rows to search, by default some that are drawn; none that were erased."""
    if all(each is None for each in (options.ids, options.ids_file, options.of_class, options.fraction, options.count)):
        options.count = min(DEFAULT_COUNT, len(getattr(splits, options.part)) - len(splits.absent))
    ids = select_ids(options, splits, splits.absent, part=options.part)
    check_not_erased(ids, splits)
    return ids
