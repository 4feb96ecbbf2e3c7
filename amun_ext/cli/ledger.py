"""amun ledger: the requests that led to a model, and whether their record is valid."""

import argparse
import math
from collections.abc import Sequence

from amun_ext.auditing.result import FILES
from amun_ext.deletion import ledger, record_page, signature
from amun_ext.deletion.record_page import as_object
from amun_ext.deletion.request import ORIGINAL
from amun_ext.files import no_link, write_text
from amun_ext.reading import read_object
from amun_ext.report import Document, html, text
from amun_ext.report.tables import Column, Row, Table, value, word
from amun_ext.validation import is_number, listed, printable, require

MEASURES = {"UA": 1, "TA": 1, "FT AUC": 1, "gap": 2, "seconds": 1}  # of the new model, with their digits


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
    require(options.audit is None or options.action == "page", "--audit", "left out but for a page", options.audit)
    if options.action == "page":
        _write_page(options, found)
        return
    if options.key is not None:
        found = ledger.having(found, options.key)
        require(bool(found), "--key", "of a sample in a request of the ledger", printable(repr(options.key)))
    columns = [Column("date", words=True), Column("samples"), Column("method", words=True)]
    columns += [*map(Column, MEASURES), Column("model", words=True)]
    table = Table("requests", "request", columns, [_row(entry) for entry in found])
    print(text.render(Document("Ledger", [table])))


def _write_page(options: argparse.Namespace, found: Sequence[ledger.Entry]) -> None:
    audit = {} if options.audit is None else read_object(options.audit / FILES[0])
    facts = audit.get("facts")
    ours = isinstance(facts, dict) and facts.get("model_digest") == found[-1][ledger.CHILD]
    require(options.audit is None or ours, "--audit", "the folder of an audit of this model", options.audit)
    record = read_object(options.folder / ledger.RECORD)
    page = record_page.document(record, found, audit, signed=options.public_key is not None)
    no_link(options.folder / record_page.PAGE)
    write_text(options.folder / record_page.PAGE, html.render(page))
    print(f"{text.render(page)}\n\nwrote {options.folder / record_page.PAGE}")


def _row(entry: ledger.Entry) -> Row:
    results = as_object(entry.get("results"))
    measured = next((as_object(row) for name, row in results.items() if name != ORIGINAL), {})
    numbers = [(measured.get(name), digits) for name, digits in MEASURES.items()]
    return Row(
        str(entry[ledger.NUMBER]),
        [
            word(printable(str(entry.get("date")))),
            word(str(len(entry[ledger.KEYS]))),
            word(printable(str(as_object(entry.get("unlearning")).get("method")))),
            *(value(float(of) if is_number(of) else math.nan, digits) for of, digits in numbers),
            word(printable(entry[ledger.CHILD][:12])),
        ],
    )
