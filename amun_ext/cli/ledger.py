"""amun ledger: the requests that led to a model, and whether their record is valid."""

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
        "show the requests that led to a model, or verify that no entry was changed, moved or removed",
        "examples:\n"
        "  amun ledger verify forgotten\n"
        "  amun ledger show forgotten --key train/anna/7.png\n\n"
        f"Reads {ledger.FILE} in a folder written by amun forget. Each line has the hash of the previous line and of\n"
        "the models before and after the request; the last line belongs to the model in the folder. Keys of samples\n"
        "are hashed: --key finds the requests for a sample by its key, which is the path of its image file, or row N\n"
        "for other data.\n"
        "exit status: 0 valid, 2 not valid",
    )
    command.add_argument("action", choices=("show", "verify"))
    command.add_argument("folder", type=Path, help="folder with the model and its ledger")
    command.add_argument("--public-key", type=Path, help="PEM file: require that its owner has signed every line")
    command.add_argument("--key", help="show only the requests for this sample")


def run(options: argparse.Namespace) -> None:
    found: Sequence[ledger.Entry] = ledger.read(options.folder)
    if options.public_key is not None:
        key = signature.public_key(options.public_key)
        others = [str(entry[ledger.NUMBER]) for entry in found if not signature.is_signed(key, *ledger.unsigned(entry))]
        require(
            not others,
            "--public-key",
            "the key that signed every line",
            f"another key, or no signature, in line {listed(others)}",
        )
    if options.action == "verify":
        print(f"valid: {len(found)} request{'s' * (len(found) != 1)}, the last one for the model in {options.folder}")
        return
    if options.key is not None:
        found = ledger.having(found, options.key)
        require(bool(found), "--key", "of a sample in a request of the ledger", printable(repr(options.key)))
    columns = [Column("date", words=True), Column("samples"), Column("method", words=True)]
    columns += [*map(Column, MEASURES), Column("model", words=True)]
    table = Table("requests", "request", columns, [_row(entry) for entry in found])
    print(text.render(Document("Ledger", [table])))


def _row(entry: ledger.Entry) -> Row:
    results = _object(entry.get("results"))
    measured = next((_object(row) for name, row in results.items() if name != ORIGINAL), {})
    numbers = [(measured.get(name), digits) for name, digits in MEASURES.items()]
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
    """The object, or an empty one: the ledger may have been edited."""
    return of if isinstance(of, dict) else {}
