"""amun ledger: the requests that led to a model, and whether their record is whole."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amun_ext.cli.arguments import Commands, add_command
from amun_ext.deletion import ledger, signature
from amun_ext.deletion.request import ORIGINAL
from amun_ext.report import Document, text
from amun_ext.report.tables import Column, Row, Table, value, word
from amun_ext.validation import is_number, listed, printable, require

MEASURES = {"UA": 1, "TA": 1, "FT AUC": 1, "gap": 2, "seconds": 1}  # of the new model, with their digits


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "ledger",
        run,
        "show the requests that led to a model, or verify that nothing was changed, moved or taken out",
        "examples:\n"
        "  amun ledger verify forgotten\n"
        "  amun ledger show forgotten --key train/anna/7.png\n\n"
        f"reads {ledger.FILE} in a folder that amun forget has written. Each line has the hash of the line before it\n"
        "and of the models before and after; the last one is of the model in the folder. Keys of samples are hashed:\n"
        "--key finds the requests for one whose key is known, the path of its file or, of other data, row N.\n"
        "exit status: 0 whole, 2 not",
    )
    command.add_argument("action", choices=("show", "verify"))
    command.add_argument("folder", type=Path, help="with the model and its ledger")
    command.add_argument("--public-key", type=Path, help="PEM file: every line must be signed by its owner")
    command.add_argument("--key", help="show only the requests for this sample")


def run(options: argparse.Namespace) -> None:
    found: Sequence[ledger.Entry] = ledger.read(options.folder)
    if options.public_key is not None:
        key = signature.public_key(options.public_key)
        others = [str(entry[ledger.NUMBER]) for entry in found if not signature.is_signed(key, *ledger.unsigned(entry))]
        require(
            not others, "--public-key", "of the signer of every line", f"another's, or no signature: {listed(others)}"
        )
    if options.action == "verify":
        print(f"whole: {len(found)} request{'s' * (len(found) != 1)}, the last of the model in {options.folder}")
        return
    if options.key is not None:
        found = ledger.having(found, options.key)
        require(bool(found), "--key", "of a sample that a request in the ledger was for", printable(repr(options.key)))
    print(text.render(Document("Ledger", [_table(found)])))


def _table(found: Sequence[ledger.Entry]) -> Table:
    columns = [Column("date", words=True), Column("samples"), Column("method", words=True)]
    columns += [*map(Column, MEASURES), Column("model", words=True)]
    return Table("requests", "request", columns, [_row(entry) for entry in found])


def _row(entry: ledger.Entry) -> Row:
    results = _object(entry.get("results"))
    made = next((_object(row) for name, row in results.items() if name != ORIGINAL), {})
    numbers = [(made.get(name), digits) for name, digits in MEASURES.items()]
    return Row(
        str(entry[ledger.NUMBER]),
        [
            word(printable(str(entry.get("date")))),
            word(str(len(entry[ledger.KEYS]))),
            word(printable(str(_object(entry.get("unlearning")).get("method")))),
            *(value(float(of) if is_number(of) else math.nan, digits) for of, digits in numbers),
            word(printable(entry[ledger.CHILD][:12])),
        ],
    )


def _object(of: object) -> Mapping[str, Any]:
    """What somebody else may have written in the place of an object is none."""
    return of if isinstance(of, dict) else {}
