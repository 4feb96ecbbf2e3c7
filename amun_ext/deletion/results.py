"""The files of a request: checkpoint, report, page, record and ledger."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from amun_ext.deletion import ledger
from amun_ext.deletion.pending import Pending
from amun_ext.deletion.request import Outcome
from amun_ext.files import atomic_folder, file_digest, write_json, write_text
from amun_ext.info import devices
from amun_ext.models import save_checkpoint

MODEL, REPORT, PAGE, RECORD = ledger.MODEL, "report.json", "report.html", ledger.RECORD
RESULTS = (MODEL, REPORT, PAGE, RECORD, ledger.FILE)
DIGEST, NEW_DIGEST, SECONDS = "model_digest", "new_model_digest", "seconds_by_digest"  # facts; SHA-256
FORMAT = "amun_ext.record.1"


def write(
    outcome: Outcome,
    folder: Path,
    place: Path,
    *,
    with_images: bool = False,
    command: Sequence[str] = (),
    before: str = "",
    sign: Callable[[str], str] | None = None,
    requests: Sequence[Pending] = (),
) -> None:
    """`RESULTS`, all or none, into `folder`, whose workplace is `place`.

    command: the arguments of the command line, for the record. before: the ledger of the model before. sign: from the
    new line of it to a signature. requests: of a list, each gets a line. No time is in the checkpoint, so that equal
    requests give equal models, to the bit.
    """
    with atomic_folder(folder, place) as files:
        save_checkpoint(files / MODEL, outcome.model, outcome.metadata)
        new_digest = file_digest(files / MODEL)
        facts = {NEW_DIGEST: new_digest, SECONDS: {} if outcome.seconds is None else {new_digest: outcome.seconds}}
        report = replace(outcome.report, facts={**outcome.report.facts, **facts})
        report.to_json(files / REPORT)
        report.to_html(files / PAGE, with_images=with_images)
        lines = before
        for entry in _entries(outcome, new_digest, requests):
            lines = ledger.append(lines, entry, sign)
        write_text(files / ledger.FILE, lines)
        write_json(files / RECORD, {**_record(outcome, new_digest, command), ledger.LINE: ledger.line_hash(lines)})


def _record(outcome: Outcome, new_digest: str, command: Sequence[str]) -> dict[str, object]:
    """What it takes to do the request again, and to compare: see `amun replay`."""
    facts = outcome.report.facts
    return {
        "format": FORMAT,
        "command": [*command],
        ledger.PARENT: facts[DIGEST],
        ledger.CHILD: new_digest,
        "seconds": {name: row["seconds"] for name, row in outcome.report.rows.items() if row["seconds"] >= 0},
        "stages": {name: round(seconds, 3) for name, seconds in outcome.stages.items()},  # in seconds
        "devices": devices(),
        "threads": torch.get_num_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        **{name: facts[name] for name in ("date", "ids", "seed", "training_data", "versions")},
    }


def _entries(outcome: Outcome, new_digest: str, requests: Sequence[Pending]) -> list[dict[str, object]]:
    """The lines of the ledger. Copies that were included are in the first."""
    report, facts = outcome.report.to_dict(), outcome.report.facts
    rows: dict[str, tuple[list[int], dict[str, object]]] = {
        f"{facts['request']}-{each.number}": ([*each.ids], {"received": each.received}) for each in requests
    } or {str(facts["request"]): ([*outcome.keys, *outcome.ids_without_example], {})}
    first, *_ = rows.values()
    first[0].extend(sorted(outcome.keys.keys() - {row for ids, _ in rows.values() for row in ids}))
    common = {
        ledger.PARENT: facts[DIGEST],
        ledger.CHILD: new_digest,
        "unlearning": json.loads(outcome.metadata["unlearning"]),
        "results": report["rows"],
        "remarks": report["remarks"],
        **{name: facts[name] for name in ("date", "seed", "training_data", "versions")},
    }
    lines = []
    for request, (ids, more) in rows.items():
        keys = [outcome.keys[row] for row in ids if row in outcome.keys]
        counts = {"samples": len(keys), "samples_without_example": len(ids) - len(keys)}
        named = {ledger.REQUEST: request, ledger.KEYS: ledger.hashed_keys(keys, request)}
        lines.append({**common, **counts, **named, **more})
    return lines
