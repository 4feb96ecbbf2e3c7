"""amun purge: find and remove the traces of samples that a model has forgotten."""

import argparse
from pathlib import Path

from amun_ext import info
from amun_ext.cli.loading import read_record
from amun_ext.deletion.traces import UNFINISHED, Trace, traces
from amun_ext.files import file_digest, no_link, removed_workplaces, write_json
from amun_ext.report import Document, text
from amun_ext.report.parts import Paragraph
from amun_ext.report.tables import Column, Row, Table, word
from amun_ext.validation import printable, require

LEFT = (
    "Not listed: the images themselves, copies in other formats, the tables of a comparison or an audit, and "
    "remains of removed files in backups or on the disk."
)


def run(options: argparse.Namespace) -> None:
    expected = "given with --yes, and left out without it"
    require(options.yes == (options.receipt is not None), "--receipt", expected, options.receipt or "none")
    if options.receipt is not None:
        no_link(options.receipt)
        require(not options.receipt.exists(), "--receipt", "a new file", f"{options.receipt}, which exists")
    for folder in options.folders:
        require(folder.is_dir(), "FOLDER", "a folder", folder)
    record, kept = read_record(options.model), options.model.resolve()
    by_path = {trace.path.resolve(): trace for folder in options.folders for trace in traces(folder, record)}
    found = [trace for path, trace in by_path.items() if path != kept]
    columns = [Column("bytes"), Column("what it is", words=True)]
    rows = [Row(printable(str(trace.path)), [word(str(trace.size)), word(trace.what)]) for trace in found]
    table = Table("traces", "file", columns, rows) if rows else Paragraph("Nothing was found.")
    print(text.render(Document("Purge", [table, Paragraph(LEFT)])))
    if options.yes:
        receipt = {
            "date": info.now(),
            "model": file_digest(options.model),
            "samples": len(record.forgotten_ids),
            "removed": [_receipt_entry(trace) for trace in found],
            "versions": info.versions(),
        }
        _remove(found, receipt, options.receipt)


def _receipt_entry(trace: Trace) -> dict[str, object]:
    digest = {} if trace.path.is_dir() else {"sha256": file_digest(trace.path)}
    return {"file": str(trace.path), "what": trace.what, "bytes": trace.size, **digest}


def _remove(found: list[Trace], receipt: dict[str, object], path: Path) -> None:
    with removed_workplaces([trace.path for trace in found if trace.what == UNFINISHED]):
        write_json(path, receipt)
    for trace in found:
        trace.path.unlink(missing_ok=True)
    print(f"\nremoved {len(found)} files or folders; wrote {path}")
