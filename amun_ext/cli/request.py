"""amun request: add a request to a list of pending ones."""

import argparse

from amun_ext.cli.loading import load_splits, read_record, select_ids
from amun_ext.cli.output_folder import check_folder, check_free
from amun_ext.data import training_data
from amun_ext.deletion import pending
from amun_ext.deletion.keys import check_not_forgotten, keys_of
from amun_ext.info import now
from amun_ext.validation import require


def run(options: argparse.Namespace) -> None:
    check_folder(options.pending.parent)
    check_free(options.pending.parent, options.pending.name)
    require(options.pending.parent.is_dir(), "--pending", "in a folder", options.pending)
    splits = load_splits(options)
    record, data = read_record(options.model), training_data(splits)
    require(record.training_data in (None, data), "--data", "the data that the checkpoint was trained on", "other data")
    ids = select_ids(options, splits, record.forgotten_ids).tolist()
    check_not_forgotten(ids, record.forgotten_ids, keys_of(len(splits.train), splits.names))
    added = pending.add(options.pending, data, len(splits.train), ids, now())
    samples = f"{len(ids)} sample{'s' * (len(ids) != 1)}"
    print(f"request {added.number} to forget {samples} is pending in {options.pending}")
